/* Levenberg and Marquardt's method for the sum of squares of a problem: the contract's descend().
 *
 * The steps are those of fastbp/backends/marquardt.py, which explains the method and its numbers;
 * normal_sums() gives the linear model, jtr_sum() the second derivative along a step.
 */

/* A search: its vectors in the workspace, and the results of its last trial. Vectors have n =
 * n_free entries, `moved` and `trial` n_params. */
typedef struct {
    fb_plan *plan;
    const fb_problem *problem;
    fb_descent *d;
    idx n;
    real *U, *negative, *pack; /* the factor, and memory for cholesky() */
    real *x, *gradient, *damping, *step, *bend, *moved, *trial;
    outputs records[2]; /* of the layers' outputs */
    outputs *here, *there; /* at d->params and at the trial; null if outputs are not recorded */
    double total; /* sum of squares with the prior, at d->params */
    double steepest; /* largest |gradient| */
    double nu; /* next factor of the damping */
    double predicted, gain; /* of the trial, and `squares`: its sum of squares */
    double squares;
    int small, is_short, promises; /* see try_step() */
} search;

/* sqrt(Σ scales v²) */
INLINE double length(idx n, const real *v, const real *scales)
{
    double sum = 0;
    for (idx i = 0; i < n; i++) sum += v[i] * v[i] * scales[i];
    return sqrt(sum);
}

/* moved (n_params) = base, and factor·v (n_free) added to its free entries. */
static void move(const search *s, const real *base, double factor, const real *v, real *moved)
{
    const fb_plan *plan = s->plan;
    for (idx i = 0; i < plan->n_params; i++)
        moved[i] = base[i] + (!plan->free || plan->free[i] ? factor * *v++ : 0);
}

/* Σ prior·p² over the free parameters. */
static double prior_of(const search *s, const real *params)
{
    const real *prior = s->d->prior;
    double sum = 0;
    for (idx i = 0, k = 0; i < s->plan->n_params; i++)
        if (!s->plan->free || s->plan->free[i]) sum += prior[k++] * params[i] * params[i];
    return sum;
}

/* d->normal = the normal equations at params, *squares = the sum of squares there. */
static int linearise(search *s, const real *params, outputs *at_params, double *squares)
{
    fb_descent *d = s->d;
    return normal_sums(s->plan, s->problem, params, (idx)d->threads,
                       (fb_rho){(int)d->rho, d->rho_scale}, at_params, d->normal, squares);
}

/* s->squares = the sum of squares at the trial. */
static int sum_at_trial(search *s)
{
    fb_descent *d = s->d;
    d->state[FB_NFEV]++;
    if (s->there) s->there->recorded = 0;
    return normal_sums(s->plan, s->problem, s->trial, (idx)d->threads,
                       (fb_rho){(int)d->rho, d->rho_scale}, s->there, NULL, &s->squares);
}

/* Set what follows from d->params and the linear model there, in d->normal: total, gradient and
 * status. `fresh` says that the search has just arrived there; then the scales are updated too. */
static void arrive(search *s, int fresh)
{
    fb_descent *d = s->d;
    idx n = s->n;
    const real *JTr = d->normal + n * n;
    select_free(s->plan, d->params, s->x);
    s->total = d->state[FB_SQUARES] + prior_of(s, d->params);
    double mean = 0, cosine = 0;
    s->steepest = 0;
    for (idx i = 0; i < n; i++) {
        double squared = d->normal[i * n + i] + d->prior[i];
        s->gradient[i] = JTr[i] + d->prior[i] * s->x[i];
        double g = fabs(s->gradient[i]);
        mean += squared / (double)n;
        if (!(g <= s->steepest)) s->steepest = g;
        double c = squared * s->total > 0 ? g / sqrt(squared * s->total) : 0;
        if (!(c <= cosine)) cosine = c;
    }
    for (idx i = 0; fresh && i < n; i++) {
        double measured = d->uniform ? mean : d->normal[i * n + i] + d->prior[i];
        double scale = fmax(measured, FB_DECAY * d->scales[i]);
        d->scales[i] = scale > 0 ? scale : 1;
    }
    int flat = s->steepest <= d->min_grad || !(cosine > d->gtol);
    if (fresh) d->state[FB_STATUS] = flat ? FB_FLAT : FB_RUNNING;
}

/* s->step = the first-order step v, with the factor in U. Returns 0 if there is none, as the damped
 * matrix is not positive definite or v not finite. */
static int first_order(search *s)
{
    fb_descent *d = s->d;
    idx n = s->n;
    double mu = d->state[FB_MU];
    for (idx i = 0; i < n; i++) {
        memcpy(s->U + i * n + i, d->normal + i * n + i, (size_t)(n - i) * sizeof(real));
        s->damping[i] = d->prior[i] + mu * d->scales[i];
        s->U[i * n + i] += s->damping[i];
        s->step[i] = -s->gradient[i];
    }
    if (!cholesky(n, s->U, s->negative, s->pack)) return 0;
    solve_factored(n, s->U, s->step);
    s->predicted = 0;
    for (idx i = 0; i < n; i++)
        s->predicted += s->step[i] * (mu * d->scales[i] * s->step[i] - s->gradient[i]);
    return isfinite(s->predicted);
}

/* Add the bend, half the acceleration, to the step. *is_straight: whether the bend is short enough
 * for the step to count. Returns FB_DONE or FB_NO_MEMORY. */
static int bend_step(search *s, int *is_straight)
{
    fb_descent *d = s->d;
    idx n = s->n;
    const real *JTr = d->normal + n * n;
    d->state[FB_NFEV]++;
    move(s, d->params, FB_PROBE, s->step, s->moved);
    fb_rho rho = {(int)d->rho, d->rho_scale};
    int code = jtr_sum(s->plan, s->problem, d->params, s->moved, (idx)d->threads, rho, s->here,
                          s->bend);
    if (code < 0) return code;
    for (idx i = 0; i < n; i++) {
        double linear = -s->gradient[i] - s->damping[i] * s->step[i];
        s->bend[i] = linear / FB_PROBE - (s->bend[i] - JTr[i]) / (FB_PROBE * FB_PROBE);
    }
    solve_factored(n, s->U, s->bend);
    *is_straight = 2 * length(n, s->bend, d->scales) <=
                   FB_LONGEST_BEND * length(n, s->step, d->scales);
    for (idx i = 0; i < n; i++) s->step[i] += s->bend[i];
    return FB_DONE;
}

/* Try a step with the present damping. Returns 1 if it is to be taken, 0 if not, or FB_NO_MEMORY.
 * Afterwards `is_short` says that the step is short next to x, `small` that it changes the sum by
 * little, `promises` that the linear model predicts more than rounding could hide. */
static int try_step(search *s)
{
    fb_descent *d = s->d;
    int straight = 1, code;
    s->small = s->is_short = s->promises = 0;
    if (!first_order(s)) return 0;
    if (d->bend && s->predicted > FB_STRAIGHT * s->total) {
        code = bend_step(s, &straight);
        if (code < 0) return code;
    }
    double size = length(s->n, s->x, d->scales);
    double relative = length(s->n, s->step, d->scales) / fmax(size, FB_LEAST_LENGTH);
    s->is_short = relative <= d->xtol;
    s->small = fabs(s->predicted) <= d->ftol * s->total;
    s->promises = relative > FB_PROMISED && s->predicted > FB_PROMISED * s->total &&
                  s->total > FB_ROUNDED * size * size;
    if (!straight) return 0;
    move(s, d->params, 1, s->step, s->trial);
    code = sum_at_trial(s);
    if (code < 0) return code;
    double total = s->squares + prior_of(s, s->trial);
    s->gain = isfinite(total) ? s->total - total : -INFINITY;
    s->small = s->small && fabs(s->gain) <= d->ftol * s->total;
    int enough = s->gain > FB_TOO_LITTLE * s->predicted;
    int is_last = s->small && s->gain >= -FB_UNSEEN * s->total;
    return s->predicted > 0 && (enough || is_last);
}

static int is_finite(idx n, const real *x)
{
    vec zero = {0}; /* a number times 0; NaN from what is not finite */
    for (idx i = 0; i < n; i += VL) zero += load_first(x + i, first_lanes(n - i)) * 0;
    return hsum(zero) == 0;
}

/* Move to the trial. Returns 0, and stays, if the linear model there is not finite; else 1, or
 * FB_NO_MEMORY. */
static int take(search *s)
{
    fb_descent *d = s->d;
    double *state = d->state, rho = s->gain / s->predicted, swing = 2 * rho - 1;
    int code = linearise(s, s->trial, s->there, &s->squares);
    if (code < 0) return code;
    state[FB_NJEV]++;
    if (!is_finite(s->n * (s->n + 1), d->normal)) {
        /* d->normal is that of the trial: compute the one at d->params again. */
        code = linearise(s, d->params, s->here, &state[FB_SQUARES]);
        return code < 0 ? code : 0;
    }
    state[FB_USED] = state[FB_MU];
    double factor = fabs(rho - 1) > FB_EXACT ? fmax(1.0 / 3, 1 - swing * swing * swing) : FB_EXACT;
    if (d->mu_dec > 0) factor = d->mu_dec;
    state[FB_MU] = fmax(FB_LEAST_MU, state[FB_MU] * factor);
    state[FB_NIT]++;
    state[FB_RHO] = rho;
    state[FB_SQUARES] = s->squares;
    memcpy(d->params, s->trial, (size_t)s->plan->n_params * sizeof(real));
    outputs *swap = s->here;
    s->here = s->there, s->there = swap;
    arrive(s, 1);
    if (state[FB_STATUS] == FB_RUNNING && (s->small || s->is_short))
        state[FB_STATUS] = s->small ? FB_SMALL : FB_SHORT;
    return 1;
}

/* One iteration: raise the damping until a step is taken (1), or the search ends (0). Or
 * FB_NO_MEMORY. */
static int iterate(search *s)
{
    fb_descent *d = s->d;
    double *state = d->state;
    int promised = 0;
    s->nu = 2;
    while (state[FB_STATUS] == FB_RUNNING) {
        int code = try_step(s);
        promised |= s->promises;
        if (code > 0) code = take(s);
        if (code) return code;
        state[FB_MU] *= d->mu_inc > 0 ? d->mu_inc : s->nu;
        s->nu *= 2;
        if (state[FB_MU] > d->mu_max) state[FB_STATUS] = FB_STUCK;
        if (s->small || s->is_short)
            state[FB_STATUS] = promised ? FB_STUCK : s->small ? FB_SMALL : FB_SHORT;
    }
    return 0;
}

/* Whether the layers' outputs are recorded: where they fit into the cache, for one worker, and if
 * no activation needs Z. */
static int records_outputs(const fb_plan *plan, idx n, idx threads)
{
    enum { MOST = 1 << 20 }; /* bytes */
    for (idx l = 0; l < plan->n_layers; l++)
        if (plan->layers[l].z_column >= 0) return 0;
    return useful_workers(n, threads) == 1 &&
           size_of_outputs(plan, n) * (idx)sizeof(real) <= MOST;
}

/* How many numbers the table of an `outputs` takes. */
INLINE idx size_of_table(const fb_plan *plan)
{
    return round_up(plan->n_layers * (idx)(sizeof(block) / sizeof(real)));
}

/* How many numbers lay_out_search() needs; n_recorded rows of data, or 0, have their outputs
 * recorded. */
static idx size_of_search(const fb_plan *plan, idx n_recorded)
{
    idx n = plan->n_free;
    idx record = n_recorded ? size_of_table(plan) + size_of_outputs(plan, n_recorded) : 0;
    return n * n + n * FB_FACTOR_ROWS + 6 * round_up(n) + 2 * round_up(plan->n_params) + 2 * record;
}

static void lay_out_search(search *s, real *place, idx n_recorded)
{
    idx n = s->n, padded = round_up(n);
    real **vectors[] = {&s->x, &s->gradient, &s->damping, &s->step, &s->bend};
    for (int i = 0; n_recorded && i < 2; i++) {
        s->records[i].table = (block *)(void *)place, place += size_of_table(s->plan);
        s->records[i].Y = place, place += size_of_outputs(s->plan, n_recorded);
    }
    s->here = n_recorded ? s->records : NULL, s->there = n_recorded ? s->records + 1 : NULL;
    s->moved = place, place += round_up(s->plan->n_params);
    s->trial = place, place += round_up(s->plan->n_params);
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++)
        *vectors[i] = place, place += padded;
    s->negative = place, place += n * FB_FACTOR_ROWS;
    s->U = place;
}

/* The public function: up to d->steps steps; returns how many it took, with a row of d->records
 * (total/2, damping, rho, steepest) for each, or FB_NO_MEMORY. */
static int descend(fb_plan *plan, const fb_problem *problem, fb_descent *d)
{
    search s = {.plan = plan, .problem = problem, .d = d, .n = plan->n_free};
    idx n = (idx)problem->n, n_recorded = records_outputs(plan, n, (idx)d->threads) ? n : 0;
    buffers B;
    if (!take_buffers(&B, plan, (needs){0, 0, 0, size_of_search(plan, n_recorded)}))
        return FB_NO_MEMORY;
    s.pack = B.pack;
    lay_out_search(&s, B.extra, n_recorded);
    int code = 0, fresh = d->state[FB_NJEV] == 0;
    if (fresh) {
        code = linearise(&s, d->params, s.here, &d->state[FB_SQUARES]);
        d->state[FB_NJEV]++;
    }
    idx taken = 0;
    if (code >= 0) arrive(&s, fresh);
    while (code >= 0 && taken < d->steps && d->state[FB_STATUS] == FB_RUNNING) {
        code = iterate(&s);
        if (code <= 0) break;
        double *record = d->records + 4 * taken++;
        record[0] = s.total / 2, record[1] = d->state[FB_USED], record[2] = d->state[FB_RHO];
        record[3] = s.steepest;
        if (s.total <= d->goal) break;
    }
    give_buffers(&B, plan);
    return code < 0 ? code : (int)taken;
}
