/* Training: the contract's train(), a loop of steps, and the bookkeeping at the end of each epoch.
 *
 * It works on copies of parameters and moments that are padded with zeros, so that loops over them
 * need whole vectors only, and writes them back at the end. Meanwhile subnormal numbers are flushed
 * to zero. The validation is a row_sum like the batch, over the buffers of the same workers.
 */

typedef struct {
    const fb_plan *plan;
    fb_run *run;
    real *params, *moments, *grad; /* padded */
    row_sum batch, validation;
    double powers[2]; /* of Adam's β1 and β2, for the step before */
} training;

/* A step. */

/* Set the gradient of parameters that are not free to 0. */
static void freeze(idx n, const uint8_t *free, real *grad)
{
    for (idx i = 0; i < n; i++) grad[i] = free[i] ? grad[i] : 0;
}

/* Scale the gradient down to a norm of about `most`, if its norm is larger. */
static void clip(idx n, real *grad, double most)
{
    double_sum squares = {{{0}}};
    for (idx i = 0; i < n; i += VL) {
        vec g = load(grad + i);
        add_to(&squares, g * g);
    }
    double factor = most / (sqrt(total_of(squares)) + FB_CLIP_EPSILON);
    if (!(factor < 1)) return;
    vec f = splat((real)factor);
    for (idx i = 0; i < n; i += VL) store(grad + i, f * load(grad + i));
}

/* average (n) = the mean of `count` vectors, from the mean of count - 1 and the last one, p. */
static void add_to_average(idx n, double *average, const real *p, int64_t count)
{
    double share = 1 / (double)count;
    for (idx i = 0; i < n; i++) average[i] += share * ((double)p[i] - average[i]);
}

/* One step from the gradient, with learning rate lr. */
static void step(training *t, double lr)
{
    const fb_plan *plan = t->plan;
    fb_run *run = t->run;
    idx n_params = plan->n_params, padded = round_up(n_params);
    if (plan->free) freeze(n_params, plan->free, t->grad);
    if (run->clip_norm < INFINITY) clip(padded, t->grad, run->clip_norm);
    update(run, plan->free, n_params, padded, t->params, t->moments, t->grad, lr,
           t->powers);
    run->step++;
    if (run->average_from >= 0 && run->step > run->average_from)
        add_to_average(n_params, run->average, t->params, run->step - run->average_from);
}

/* The end of an epoch. */

/* The parameters that a fit would return now: the present ones, or the average, which it rounds
 * into the memory of the gradient, unused between steps. */
static const real *candidate(const training *t)
{
    const fb_run *run = t->run;
    if (run->average_from < 0 || run->step <= run->average_from) return t->params;
    for (idx i = 0; i < t->plan->n_params; i++) t->grad[i] = (real)run->average[i];
    return t->grad;
}

/* Record the candidate in run->best if its value `watched` is the lowest, and count the epochs
 * without progress. */
static void watch(const training *t, const real *params, double watched)
{
    fb_run *run = t->run;
    double *monitor = run->monitor, last = monitor[FB_LAST_PROGRESS];
    if (watched < monitor[FB_LOWEST]) {
        memcpy(run->best, params, (size_t)t->plan->n_params * sizeof(real));
        monitor[FB_LOWEST] = watched;
    }
    if (watched < (last < INFINITY ? last - run->tol * fabs(last) : last)) {
        monitor[FB_LAST_PROGRESS] = watched;
        monitor[FB_EPOCHS_WITHOUT] = 0;
    } else {
        monitor[FB_EPOCHS_WITHOUT]++;
    }
}

/* Checks and records at the end of an epoch with mean objective `mean`; *validated = the objective
 * of the validation. Returns a stop code, FB_DONE to go on. */
static int end_of_epoch(training *t, double mean, double *validated)
{
    fb_run *run = t->run;
    idx n_params = t->plan->n_params;
    real *good = run->good, *start = good + n_params;
    if (!is_finite(n_params, t->params)) return FB_NON_FINITE_PARAMETERS;
    if (mean <= FB_GROWTH_LIMIT * run->monitor[FB_FIRST_OBJECTIVE]) {
        memcpy(good, start, (size_t)n_params * sizeof(real));
        run->monitor[FB_EPOCHS_GROWN] = 0;
    } else if (++run->monitor[FB_EPOCHS_GROWN] >= FB_GROWTH_EPOCHS) {
        return FB_GROWN;
    }
    if (run->validation || run->patience) {
        const real *params = candidate(t);
        t->validation.params = params;
        if (run->validation) *validated = objective(&t->validation);
        if (run->patience) watch(t, params, run->validation ? *validated : mean);
    }
    if (mean <= run->goal) return FB_GOAL_MET;
    if (run->patience && run->monitor[FB_EPOCHS_WITHOUT] >= (double)run->patience)
        return FB_NO_PROGRESS;
    return FB_DONE;
}

/* The loop. */

/* Up to run->n_steps steps; returns the stop code. */
static int run_steps(training *t)
{
    const fb_plan *plan = t->plan;
    fb_run *run = t->run;
    row_sum *sum = &t->batch;
    const fb_problem *problem = sum->problem;
    idx n = (idx)problem->n, batch = (idx)run->batch_size;
    int64_t per_epoch = (n + batch - 1) / batch, j = run->step % per_epoch;
    int full = n <= batch && n <= sum->tile; /* whether one tile is all there is */
    size_t bytes = (size_t)plan->n_params * sizeof(real);
    double *losses = run->losses, *validated = run->validated;
    sum->order = run->order;
    for (int64_t k = 0; k < run->n_steps; k++) {
        idx first = (idx)j * batch, rows = n - first < batch ? n - first : batch;
        uint64_t key = plan->drops ? dropout_key(run->seed, run->step) : 0;
        sum->first = first, sum->n = rows;
        sum->scale = problem->scale * (run->averaged ? (double)n / (double)rows : 1);
        sum->dropout = plan->drops ? &key : NULL;
        if (j == 0)
            memcpy((real *)run->good + plan->n_params, t->params, bytes);
        double value = objective(sum);
        *losses += value;
        sum->resident = sum->lane_major && full && !run->order && !run->validation;
        run->monitor[FB_LAST_OBJECTIVE] = value;
        if (!isfinite(value)) return FB_NON_FINITE_OBJECTIVE;
        if (run->step == 0)
            run->monitor[FB_FIRST_OBJECTIVE] = fmax(fabs(value), FB_DOUBLE ? 0x1p-52 : 0x1p-23);
        step(t, run->rates[run->n_rates > 1 ? k : 0]);
        if (++j < per_epoch) continue;
        int reason = end_of_epoch(t, *losses / (double)per_epoch, validated);
        if (reason) return reason;
        j = 0, losses++;
        if (run->validation) validated++;
        if (sum->order) sum->order += n;
    }
    return FB_DONE;
}

/* to (count, n), rows ldt apart, = from, rows ldf apart. */
static void copy_rows(idx count, idx n, const real *from, idx ldf, real *to, idx ldt)
{
    for (idx i = 0; i < count; i++) memcpy(to + i * ldt, from + i * ldf, (size_t)n * sizeof(real));
}

/* The public function. */
static int train(fb_plan *plan, const fb_problem *problem, fb_run *run)
{
    idx n = plan->n_params, padded = round_up(n), count = (idx)run->n_moments;
    training t = {.plan = plan, .run = run};
    t.batch = sum_of_losses(plan, problem, NULL, NULL);
    t.batch.n = (idx)run->batch_size;
    if (run->validation) t.validation = sum_of_losses(plan, run->validation, NULL, NULL);
    idx most = t.batch.n > t.validation.n ? t.batch.n : t.validation.n;
    idx rows = tile_rows(plan, most), workers = useful_workers(most, (idx)run->threads);
    needs need = {FOR_FORWARD | FOR_BACKWARD | FOR_BATCHES | FOR_WEIGHTS | FOR_TRAINING, rows, rows,
                  0};
    if (plan->drops) need.what |= FOR_DROPOUT;
    t.batch.tile = tile_rows(plan, t.batch.n), t.batch.flush = t.validation.flush = 1;
    /* The factors of dropout lie row by row. */
    t.batch.lane_major = fb_is_lane_major(plan, t.batch.n) && !plan->drops;
    t.validation.lane_major = t.batch.lane_major;
    buffers crew[FB_MOST_PARTS], without_dropout[FB_MOST_PARTS];
    if (!begin_sum(&t.batch, crew, workers, need)) return FB_NO_MEMORY;
    workers = t.batch.workers;
    t.params = crew->params, t.moments = crew->moments, t.grad = crew->grad;
    t.batch.params = t.params, t.batch.result = t.grad;
    for (idx i = 0; i < workers; i++) {
        without_dropout[i] = crew[i];
        without_dropout[i].A = crew[i].Y, without_dropout[i].factors = NULL;
    }
    t.validation.crew = without_dropout, t.validation.team = t.batch.team;
    for (int k = 0; k < 2; k++) t.powers[k] = power(run->constants[k], run->step);
    memset(t.params, 0, (size_t)padded * sizeof(real));
    memset(t.moments, 0, (size_t)(count * padded) * sizeof(real));
    memset(t.grad, 0, (size_t)padded * sizeof(real));
    copy_rows(1, n, run->params, n, t.params, padded);
    copy_rows(count, n, run->moments, n, t.moments, padded);
    fp_mode mode = flush_subnormals();
    int reason = run_steps(&t);
    restore_mode(mode);
    copy_rows(1, n, t.params, padded, run->params, n);
    copy_rows(count, n, t.moments, padded, run->moments, n);
    end_sum(&t.batch);
    return reason;
}
