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
    fb_team *team;
    row_sum batch, validation;
    double powers[2]; /* of Adam's β1 and β2, for the step before */
} training;

/* to (n) = from */
INLINE void copy(idx n, const real *from, real *to)
{
    idx i = 0;
    for (; i + VL <= n; i += VL) store(to + i, load(from + i));
    if (i < n) store_first(to + i, first_lanes(n - i), load_first(from + i, first_lanes(n - i)));
}

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

/* Whether all x are finite: x·0 is 0 for finite x, else NaN. */
static int all_finite(idx n, const real *x)
{
    vec sum = {0};
    for (idx i = 0; i < n; i += VL) sum += load(x + i) * 0;
    return hsum(sum) == 0;
}

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
    if (!all_finite(round_up(n_params), t->params)) return FB_NON_FINITE_PARAMETERS;
    if (mean <= FB_GROWTH_LIMIT * run->monitor[FB_FIRST_OBJECTIVE]) {
        copy(n_params, start, good);
        run->monitor[FB_EPOCHS_GROWN] = 0;
    } else if (++run->monitor[FB_EPOCHS_GROWN] >= FB_GROWTH_EPOCHS) {
        return FB_GROWN;
    }
    if (run->validation || run->patience) {
        const real *params = candidate(t);
        t->validation.params = params;
        if (run->validation) *validated = objective(&t->validation, t->team);
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
    double *losses = run->losses, *validated = run->validated;
    sum->order = run->order;
    for (int64_t k = 0; k < run->n_steps; k++) {
        idx first = (idx)j * batch, rows = n - first < batch ? n - first : batch;
        uint64_t key = plan->drops ? dropout_key(run->seed, run->step) : 0;
        sum->first = first, sum->n = rows;
        sum->scale = problem->scale * (run->averaged ? (double)n / (double)rows : 1);
        sum->dropout = plan->drops ? &key : NULL;
        if (j == 0)
            copy(plan->n_params, t->params, (real *)run->good + plan->n_params);
        double value = objective(sum, t->team);
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

/* padded (count, round_up(n_params)) = vectors (count, n_params), and back. */
static void pad(const fb_plan *plan, const real *vectors, idx count, real *padded)
{
    idx n = plan->n_params, size = round_up(n);
    for (idx i = 0; i < count; i++, vectors += n, padded += size) {
        memcpy(padded, vectors, (size_t)n * sizeof(real));
        memset(padded + n, 0, (size_t)(size - n) * sizeof(real));
    }
}

static void unpad(const fb_plan *plan, const real *padded, idx count, real *vectors)
{
    idx n = plan->n_params, size = round_up(n);
    for (idx i = 0; i < count; i++)
        memcpy(vectors + i * n, padded + i * size, (size_t)n * sizeof(real));
}

/* A sum over n rows of the problem in which all workers flush subnormal numbers. */
static row_sum flushing_sum(const fb_plan *plan, const fb_problem *problem, const buffers *crew,
                            idx n, int lane_major)
{
    return (row_sum){.plan = plan,
                     .problem = problem,
                     .crew = crew,
                     .n = n,
                     .tile = tile_rows(plan, n),
                     .scale = problem->scale,
                     .lane_major = lane_major,
                     .penalised = has_penalties(problem),
                     .flush = 1};
}

/* The public function. */
static int train(fb_plan *plan, const fb_problem *problem, fb_run *run)
{
    idx batch = (idx)run->batch_size, n_validated = run->validation ? (idx)run->validation->n : 0;
    idx most = batch > n_validated ? batch : n_validated, rows = tile_rows(plan, most);
    idx padded = round_up(plan->n_params), threads = (idx)run->threads;
    idx n_slots = slots_for(batch, useful_workers(batch, threads), padded);
    /* The factors of dropout lie row by row. */
    int lane_major = fb_is_lane_major(plan, batch) && !plan->drops;
    needs others = {FOR_FORWARD | FOR_BACKWARD | FOR_BATCHES, rows, rows,
                    size_of_lane_major(plan, lane_major, rows)};
    if (plan->drops) others.what |= FOR_DROPOUT;
    needs first = others;
    first.what |= FOR_WEIGHTS | FOR_TRAINING;
    first.extra += n_slots * padded;
    buffers crew[FB_MOST_PARTS], without_dropout[FB_MOST_PARTS];
    idx workers = take_crew(crew, plan, useful_workers(most, threads), first, others);
    if (!workers) return FB_NO_MEMORY;
    for (idx i = 0; lane_major && i < workers; i++) lay_out_lane_major(plan, crew + i, rows);
    training t = {.plan = plan, .run = run, .team = fb_team_new(workers)};
    t.params = crew->params, t.moments = crew->moments, t.grad = crew->grad;
    t.batch = flushing_sum(plan, problem, crew, batch, lane_major);
    t.batch.params = t.params, t.batch.grad = t.grad;
    t.batch.slots = crew->extra + others.extra, t.batch.n_slots = n_slots;
    if (run->validation) {
        for (idx i = 0; i < workers; i++) {
            without_dropout[i] = crew[i];
            without_dropout[i].A = crew[i].Y, without_dropout[i].factors = NULL;
        }
        t.validation =
            flushing_sum(plan, run->validation, without_dropout, n_validated, lane_major);
    }
    for (int k = 0; k < 2; k++) t.powers[k] = power(run->constants[k], run->step);
    pad(plan, run->params, 1, t.params);
    pad(plan, run->moments, (idx)run->n_moments, t.moments);
    memset(t.grad, 0, (size_t)padded * sizeof(real));
    fp_mode mode = flush_subnormals();
    int reason = run_steps(&t);
    restore_mode(mode);
    fb_team_free(t.team);
    unpad(plan, t.params, 1, run->params);
    unpad(plan, t.moments, (idx)run->n_moments, run->moments);
    give_crew(crew, plan, workers);
    return reason;
}
