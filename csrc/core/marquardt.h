/* Levenberg and Marquardt's method for a sum of squares.
 *
 * The steps are those of fastbp/maths/marquardt.py, which explains the method and its numbers. They
 * are the same for all sums of squares, which network_squares.h and curve.h bring.
 */

typedef struct search search;

/* A sum of squares of residuals r with the Jacobian J. The functions return FB_DONE or
 * FB_NO_MEMORY. */
typedef struct {
    /* s->d->normal = the normal equations, *squares = the sum, at s->trial or at s->d->params. */
    int (*linearise)(search *s, int at_trial, double *squares);
    /* s->squares = the sum at s->trial. */
    int (*sum_at_trial)(search *s);
    /* s->bend = Jᵀr at s->moved, J being that of the linear model. */
    int (*jtr_at_moved)(search *s);
    /* v = the solution of the damped equations for the step or, if `bends`, for the bend, where
     * Cholesky's method fails because an entry of the factor's squared diagonal is less than the
     * share `least_pivot` of the matrix's. Null: such a step fails. */
    void (*solve_by_qr)(search *s, int bends, real *v);
    double least_pivot;
} sum_functions;

/* A search: its vectors in the workspace, and the results of its last trial. Vectors have n
 * entries, one per free parameter, `moved` and `trial` n_params. */
struct search {
    const sum_functions *sum;
    fb_descent *d;
    idx n, n_params;
    const uint8_t *free; /* per parameter; null for all */
    real *U, *negative, *pack; /* the factor, and memory for cholesky() */
    real *x, *gradient, *damping, *step, *bend, *moved, *trial;
    real *held; /* 1 for a parameter at a bound that the gradient would push across, else 0 */
    double total; /* sum of squares with the prior, at d->params */
    double steepest; /* largest |gradient| */
    double nu; /* next factor of the damping */
    double predicted, gain; /* of the trial, and `squares`: its sum of squares */
    double squares;
    int by_qr; /* whether U is not the factor, but solve_by_qr() is to be used */
    int small, is_short, promises; /* see try_step() */
};

/* sqrt(Σ scales v²) */
INLINE double length(idx n, const real *v, const real *scales)
{
    double sum = 0;
    for (idx i = 0; i < n; i++) sum += v[i] * v[i] * scales[i];
    return sqrt(sum);
}

/* moved (n_params) = d->params, and factor·v (n) added to its free entries. */
static void move(const search *s, double factor, const real *v, real *moved)
{
    for (idx i = 0; i < s->n_params; i++)
        moved[i] = s->d->params[i] + (!s->free || s->free[i] ? factor * *v++ : 0);
}

/* Σ prior·p² over the free parameters. */
static double prior_of(const search *s, const real *params)
{
    const real *prior = s->d->prior;
    double sum = 0;
    for (idx i = 0, k = 0; i < s->n_params; i++)
        if (!s->free || s->free[i]) sum += prior[k++] * params[i] * params[i];
    return sum;
}

/* Set held[i]; the gradient of a parameter that is held becomes 0. */
static void hold(search *s, idx i)
{
    const fb_descent *d = s->d;
    real x = s->x[i], g = s->gradient[i];
    s->held[i] = (x <= d->lower[i] && g > 0) || (x >= d->upper[i] && g < 0);
    if (s->held[i] != 0) s->gradient[i] = 0;
}

/* Set what follows from d->params and the linear model there, in d->normal: total, gradient and
 * status. `fresh` says that the search has just arrived there; then the scales are updated too. */
static void arrive(search *s, int fresh)
{
    fb_descent *d = s->d;
    idx n = s->n;
    const real *JTr = d->normal + n * n;
    select_free(s->n_params, s->free, d->params, s->x);
    s->total = d->state[FB_SQUARES] + prior_of(s, d->params);
    double mean = 0, cosine = 0;
    s->steepest = 0;
    for (idx i = 0; i < n; i++) {
        double squared = d->normal[i * n + i] + d->prior[i];
        s->gradient[i] = JTr[i] + d->prior[i] * s->x[i];
        if (d->lower) hold(s, i);
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

/* v = the solution of the damped equations with the right-hand side v, which is that of the step or
 * of the bend. */
static void solve(search *s, int bends, real *v)
{
    if (s->by_qr) s->sum->solve_by_qr(s, bends, v);
    else solve_factored(s->n, s->U, v);
    for (idx i = 0; s->d->lower && i < s->n; i++)
        if (s->held[i] != 0) v[i] = 0;
}

/* Factor the damped matrix. Returns 0 if it is not positive definite. */
static int factor_damped(search *s)
{
    fb_descent *d = s->d;
    idx n = s->n;
    int is_factored = cholesky(n, s->U, s->negative, s->pack);
    for (idx i = 0; is_factored && i < n; i++) {
        double pivot = s->U[i * n + i], entry = d->normal[i * n + i] + s->damping[i];
        is_factored = !(pivot * pivot < s->sum->least_pivot * entry);
    }
    s->by_qr = !is_factored && s->sum->solve_by_qr;
    return is_factored || s->by_qr;
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
        if (d->lower && s->held[i] != 0) s->damping[i] = FB_HELD;
        s->U[i * n + i] += s->damping[i];
        s->step[i] = -s->gradient[i];
    }
    if (!factor_damped(s)) return 0;
    solve(s, 0, s->step);
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
    move(s, FB_PROBE, s->step, s->moved);
    int code = s->sum->jtr_at_moved(s);
    if (code < 0) return code;
    for (idx i = 0; i < n; i++) {
        double linear = -s->gradient[i] - s->damping[i] * s->step[i];
        s->bend[i] = linear / FB_PROBE - (s->bend[i] - JTr[i]) / (FB_PROBE * FB_PROBE);
    }
    solve(s, 1, s->bend);
    *is_straight = 2 * length(n, s->bend, d->scales) <=
                   FB_LONGEST_BEND * length(n, s->step, d->scales);
    for (idx i = 0; i < n; i++) s->step[i] += s->bend[i];
    return FB_DONE;
}

/* Shorten the trial to the bounds and the step with it, and predict the gain anew. */
static void clip_step(search *s)
{
    const fb_descent *d = s->d;
    idx n = s->n;
    for (idx i = 0, k = 0; i < s->n_params; i++) {
        if (s->free && !s->free[i]) continue;
        s->trial[i] = fmin(fmax(s->trial[i], d->lower[k]), d->upper[k]);
        s->step[k] = s->trial[i] - d->params[i];
        k++;
    }
    s->predicted = 0;
    for (idx i = 0; i < n; i++) {
        double slope = dot(n, d->normal + i * n, s->step) + d->prior[i] * s->step[i];
        s->predicted -= s->step[i] * (2 * s->gradient[i] + slope);
    }
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
    move(s, 1, s->step, s->trial);
    if (d->lower) clip_step(s);
    double size = length(s->n, s->x, d->scales);
    double relative = length(s->n, s->step, d->scales) / fmax(size, FB_LEAST_LENGTH);
    s->is_short = relative <= d->xtol;
    s->small = fabs(s->predicted) <= d->ftol * s->total;
    s->promises = relative > FB_PROMISED && s->predicted > FB_PROMISED * s->total &&
                  s->total > FB_ROUNDED * size * size;
    if (!straight) return 0;
    d->state[FB_NFEV]++;
    code = s->sum->sum_at_trial(s);
    if (code < 0) return code;
    double total = s->squares + prior_of(s, s->trial);
    s->gain = isfinite(total) ? s->total - total : -INFINITY;
    s->small = s->small && fabs(s->gain) <= d->ftol * s->total;
    int enough = s->gain > FB_TOO_LITTLE * s->predicted;
    int is_last = s->small && s->gain >= -FB_UNSEEN * s->total;
    return s->predicted > 0 && (enough || is_last);
}

/* Move to the trial. Returns 0, and stays, if the linear model there is not finite; else 1, or
 * FB_NO_MEMORY. */
static int take(search *s)
{
    fb_descent *d = s->d;
    double *state = d->state, rho = s->gain / s->predicted, swing = 2 * rho - 1;
    int code = s->sum->linearise(s, 1, &s->squares);
    if (code < 0) return code;
    state[FB_NJEV]++;
    if (!is_finite(s->n * (s->n + 1), d->normal)) {
        /* d->normal is that of the trial: compute the one at d->params again. */
        code = s->sum->linearise(s, 0, &state[FB_SQUARES]);
        return code < 0 ? code : 0;
    }
    state[FB_USED] = state[FB_MU];
    double factor = fabs(rho - 1) > FB_EXACT ? fmax(1.0 / 3, 1 - swing * swing * swing) : FB_EXACT;
    if (d->mu_dec > 0) factor = d->mu_dec;
    state[FB_MU] = fmax(FB_LEAST_MU, state[FB_MU] * factor);
    state[FB_NIT]++;
    state[FB_RHO] = rho;
    state[FB_SQUARES] = s->squares;
    memcpy(d->params, s->trial, (size_t)s->n_params * sizeof(real));
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

/* How many numbers lay_out_search() needs, beside `pack`. */
static idx size_of_search(idx n, idx n_params)
{
    return n * n + n * FB_FACTOR_ROWS + 6 * round_up(n) + 2 * round_up(n_params);
}

static void lay_out_search(search *s, real *place)
{
    idx padded = round_up(s->n), n_params = round_up(s->n_params);
    real **vectors[] = {&s->x, &s->gradient, &s->damping, &s->step, &s->bend, &s->held};
    s->moved = place, place += n_params;
    s->trial = place, place += n_params;
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++)
        *vectors[i] = place, place += padded;
    s->negative = place, place += s->n * FB_FACTOR_ROWS;
    s->U = place;
}

/* Make the search ready to step from d->params. Its linear model is that in d->normal if `is_there`
 * and the search did not begin now. Returns FB_DONE or FB_NO_MEMORY. */
static int begin(search *s, int is_there)
{
    double *state = s->d->state;
    int code = FB_DONE, fresh = state[FB_NJEV] == 0;
    if (fresh || !is_there) code = s->sum->linearise(s, 0, &state[FB_SQUARES]);
    if (code < 0) return code;
    state[FB_NJEV] += fresh;
    arrive(s, fresh);
    return FB_DONE;
}

/* record (4) = total/2, damping, rho, steepest */
static void write_record(const search *s, double *record)
{
    record[0] = s->total / 2, record[1] = s->d->state[FB_USED];
    record[2] = s->d->state[FB_RHO], record[3] = s->steepest;
}

/* Take up to d->steps steps. Returns how many it took, with a record of each, or FB_NO_MEMORY. */
static int take_steps(search *s, double *records)
{
    fb_descent *d = s->d;
    idx taken = 0;
    while (taken < d->steps && d->state[FB_STATUS] == FB_RUNNING) {
        int code = iterate(s);
        if (code < 0) return code;
        if (!code) break;
        write_record(s, records + 4 * taken++);
        if (s->total <= d->goal) break;
    }
    return (int)taken;
}
