/* Training: update rules, and the loop that runs whole stretches of steps.
 *
 * Parameters, gradient and moments lie in padded copies, so that the rules work on whole vectors;
 * what the padding holds reaches nothing. Subnormal numbers are flushed to zero meanwhile.
 */

/* The update rules; each is one pass over the parameters. Formulas: the contract's Optimizer. */

static void sgd_step(idx n, real *p, real *v, const real *g, double momentum, double lr,
                     int nesterov)
{
    vec rate = splat((real)lr), mu = splat((real)momentum);
    if (!v) {
        for (idx i = 0; i < n; i += VL) store(p + i, load(p + i) - rate * load(g + i));
        return;
    }
    for (idx i = 0; i < n; i += VL) {
        vec gi = load(g + i), vi = mu * load(v + i) + gi;
        store(v + i, vi);
        store(p + i, load(p + i) - rate * (nesterov ? gi + mu * vi : vi));
    }
}

/* β^t, exactly 0 from where 1 - β^t rounds to 1. */
static double decay(double beta, int64_t t)
{
    return (double)t * (1 - beta) > 40 ? 0 : pow(beta, (double)t);
}

static void adam_step(idx n, real *p, real *m, real *s, const real *g, const double *constants,
                      double lr, int64_t t)
{
    double beta1 = constants[0], beta2 = constants[1];
    vec rate = splat((real)(lr / (1 - decay(beta1, t))));
    vec correction = splat((real)(1 / sqrt(1 - decay(beta2, t))));
    vec share1 = splat((real)(1 - beta1)), share2 = splat((real)(1 - beta2));
    vec keep2 = splat((real)beta2), eps = splat((real)constants[2]);
    for (idx i = 0; i < n; i += VL) {
        vec gi = load(g + i), mi = load(m + i), si = load(s + i);
        mi += share1 * (gi - mi);
        si = keep2 * si + share2 * gi * gi;
        store(m + i, mi);
        store(s + i, si);
        store(p + i, load(p + i) - rate * mi / (vsqrt(si) * correction + eps));
    }
}

/* Whether all are finite: x·0 is 0 for those, NaN for others. */
static int all_finite(idx n, const real *x)
{
    vec sum = {0};
    for (idx i = 0; i < n; i += VL) sum += load(x + i) * 0;
    return hsum(sum) == 0;
}

static void step(const fb_run *run, const buffers *B, idx padded, double lr)
{
    real *first = run->n_moments > 0 ? B->moments : NULL;
    if (run->optimizer == FB_ADAM)
        adam_step(padded, B->params, first, B->moments + padded, B->grad, run->constants, lr,
                  run->step + 1);
    else
        sgd_step(padded, B->params, first, B->grad, run->constants[0], lr,
                 run->optimizer == FB_NESTEROV);
}

/* The gradient of parameters that are not free counts as 0. */
static void freeze(idx n, const uint8_t *free, real *grad)
{
    for (idx i = 0; i < n; i++) grad[i] = free[i] ? grad[i] : 0;
}

static int run_steps(const fb_plan *plan, const buffers *B, row_sum *sum, fb_team *team,
                     const fb_problem *problem, fb_run *run)
{
    idx n = (idx)problem->n, n_params = plan->n_params, padded = round_up(n_params);
    idx batch = (idx)run->batch_size;
    int64_t steps_per_epoch = (n + batch - 1) / batch, first_epoch = run->step / steps_per_epoch;
    real *good = run->good, *start = good + n_params;
    size_t bytes = (size_t)n_params * sizeof(real);
    for (int64_t k = 0; k < run->n_steps; k++) {
        idx epoch = (idx)(run->step / steps_per_epoch - first_epoch);
        int64_t j = run->step % steps_per_epoch;
        idx first = (idx)j * batch, rows = n - first < batch ? n - first : batch;
        uint64_t key = plan->drops ? dropout_key(run->seed, run->step) : 0;
        sum->order = run->order ? run->order + epoch * n : NULL;
        sum->first = first, sum->n = rows;
        sum->scale = problem->scale * (run->averaged ? (double)n / (double)rows : 1);
        sum->dropout = plan->drops ? &key : NULL;
        if (j == 0) memcpy(start, B->params, bytes);
        double value = objective(sum, team);
        run->losses[epoch] += value;
        run->monitor[2] = value;
        if (!isfinite(value)) return FB_NON_FINITE_OBJECTIVE;
        if (run->step == 0) run->monitor[0] = fmax(fabs(value), FB_DOUBLE ? 0x1p-52 : 0x1p-23);
        if (plan->free) freeze(n_params, plan->free, B->grad);
        step(run, B, padded, run->rates[run->n_rates > 1 ? k : 0]);
        run->step++;
        if (j < steps_per_epoch - 1) continue;
        if (!all_finite(padded, B->params)) return FB_NON_FINITE_PARAMETERS;
        double mean = run->losses[epoch] / (double)steps_per_epoch;
        if (mean <= run->growth_limit * run->monitor[0]) {
            memcpy(good, start, bytes);
            run->monitor[1] = 0;
        } else if (++run->monitor[1] >= (double)run->growth_epochs) {
            return FB_GROWN;
        }
    }
    return FB_DONE;
}

static int train(fb_plan *plan, const fb_problem *problem, fb_run *run)
{
    idx n_params = plan->n_params, padded = round_up(n_params), batch = (idx)run->batch_size;
    idx tile = tile_rows(plan, batch), workers = useful_workers(batch, (idx)run->threads);
    idx n_slots = slots_for(batch, workers, padded);
    needs others = {FOR_FORWARD | FOR_BACKWARD | FOR_BATCHES, tile, tile, 0};
    if (plan->drops) others.what |= FOR_DROPOUT;
    needs first = others;
    first.what |= FOR_WEIGHTS | FOR_TRAINING;
    first.extra = n_slots * padded;
    buffers crew[FB_MOST_PARTS], *B = crew;
    workers = take_crew(crew, plan, workers, first, others);
    if (!workers) return FB_NO_MEMORY;
    real *moments = run->moments;
    size_t bytes = (size_t)n_params * sizeof(real);
    size_t gap = (size_t)(padded - n_params) * sizeof(real);
    memcpy(B->params, run->params, bytes);
    memset(B->params + n_params, 0, gap);
    memset(B->grad, 0, (size_t)padded * sizeof(real));
    for (idx i = 0; i < (idx)run->n_moments; i++) {
        memcpy(B->moments + i * padded, moments + i * n_params, bytes);
        memset(B->moments + i * padded + n_params, 0, gap);
    }
    row_sum sum = {.plan = plan,
                   .problem = problem,
                   .params = B->params,
                   .crew = crew,
                   .tile = tile,
                   .penalised = has_penalties(problem),
                   .flush = 1,
                   .grad = B->grad,
                   .slots = B->extra,
                   .n_slots = n_slots};
    fb_team *team = fb_team_new(workers);
    fp_mode mode = flush_subnormals();
    int reason = run_steps(plan, B, &sum, team, problem, run);
    restore_mode(mode);
    fb_team_free(team);
    memcpy(run->params, B->params, bytes);
    for (idx i = 0; i < (idx)run->n_moments; i++)
        memcpy(moments + i * n_params, B->moments + i * padded, bytes);
    give_crew(crew, plan, workers);
    return reason;
}
