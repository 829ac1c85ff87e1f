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

/* Copy rows of a shuffled batch side by side. */
static rows_of_data gather(const fb_plan *plan, const buffers *B, const fb_problem *problem,
                           const int64_t *order, idx n)
{
    idx n_in = plan->layers[0].n_in, n_out = plan->layers[plan->n_layers - 1].n_out;
    const real *X = problem->X, *T = problem->y, *weights = problem->weights;
    for (idx i = 0; i < n; i++) {
        idx row = (idx)order[i];
        memcpy(B->X + i * n_in, X + row * n_in, (size_t)n_in * sizeof(real));
        if (T) memcpy(B->T + i * n_out, T + row * n_out, (size_t)n_out * sizeof(real));
        if (weights) B->weights[i] = weights[row];
        if (problem->labels) B->labels[i] = problem->labels[row];
    }
    return (rows_of_data){B->X, T ? B->T : NULL, weights ? B->weights : NULL,
                          problem->labels ? B->labels : NULL};
}

/* The objective of a batch and its gradient in B->grad. */
static double batch_objective(const fb_plan *plan, const buffers *B, const fb_problem *problem,
                              const int64_t *order, idx first, idx n, double scale, idx most)
{
    double sum = 0;
    transpose_weights(plan, B, B->params, 0);
    for (idx i = 0; i < n; i += most) {
        idx rows = n - i < most ? n - i : most;
        rows_of_data data = order ? gather(plan, B, problem, order + first + i, rows)
                                  : stored_rows(plan, problem, first + i);
        sum += rows_loss(plan, B, problem, B->params, data, rows, scale, B->grad, i > 0);
    }
    double objective = scale * sum;
    if (problem->l2 > 0) objective += penalty(plan, problem->l2, B->params, B->grad);
    return objective;
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

static int run_steps(const fb_plan *plan, const buffers *B, const fb_problem *problem, fb_run *run,
                     idx most)
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
        double scale = problem->scale * (run->averaged ? (double)n / (double)rows : 1);
        const int64_t *order = run->order ? run->order + epoch * n : NULL;
        if (j == 0) memcpy(start, B->params, bytes);
        double objective = batch_objective(plan, B, problem, order, first, rows, scale, most);
        run->losses[epoch] += objective;
        run->monitor[2] = objective;
        if (!isfinite(objective)) return FB_NON_FINITE_OBJECTIVE;
        if (run->step == 0)
            run->monitor[0] = fmax(fabs(objective), FB_DOUBLE ? 0x1p-52 : 0x1p-23);
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
    idx n_params = plan->n_params, padded = round_up(n_params);
    idx most = tile_rows(plan, (idx)run->batch_size);
    buffers B;
    fb_workspace *workspace = take_buffers(
        &B, plan, most, most, FOR_FORWARD | FOR_BACKWARD | FOR_BATCHES | FOR_TRAINING);
    if (!workspace) return FB_NO_MEMORY;
    real *moments = run->moments;
    size_t bytes = (size_t)n_params * sizeof(real), gap = (size_t)(padded - n_params) * sizeof(real);
    memcpy(B.params, run->params, bytes);
    memset(B.params + n_params, 0, gap);
    memset(B.grad, 0, (size_t)padded * sizeof(real));
    for (idx i = 0; i < (idx)run->n_moments; i++) {
        memcpy(B.moments + i * padded, moments + i * n_params, bytes);
        memset(B.moments + i * padded + n_params, 0, gap);
    }
    fp_mode mode = flush_subnormals();
    int reason = run_steps(plan, &B, problem, run, most);
    restore_mode(mode);
    memcpy(run->params, B.params, bytes);
    for (idx i = 0; i < (idx)run->n_moments; i++)
        memcpy(moments + i * n_params, B.moments + i * padded, bytes);
    fb_give(&plan->pool, workspace);
    return reason;
}
