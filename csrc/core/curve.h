/* The sum of squares of a curve, for marquardt.h: the contract's fit_curve(). The residuals are
 * r = w (f(x; p) - y), float64.
 *
 * A program computes the derivatives by p for some rows of data, and the products of these rows are
 * added to the normal equations while they are in the cache. Where Cholesky's method loses too
 * many digits, Householder's and Givens' rotations solve the equations without squaring J's
 * condition number.
 */

typedef struct {
    search search; /* first, so that its functions find the rest */
    const fb_curve *curve;
    idx m, ld; /* rows of data; the leading dimension of J */
    real *J; /* (n, ld): the columns of sqrt(D) times the Jacobian, zeros behind the m rows */
    real *r; /* (ld): sqrt(D) times the residuals; with J it is a matrix (n + 1, ld) */
    real *roots; /* (m): w·sqrt(rho'), from which J and r have D; see factors_of() */
    real *moved; /* (ld): sqrt(D) times the residuals at s->moved, or those of curve_sum() */
    real *Q; /* memory for solve_curve_by_qr() */
} curve_search;

/* r (m) = factors·(f - y), in the place of f. Returns Σ r². */
static double subtract_data(const fb_curve *curve, const real *factors, real *r)
{
    double_sum sum = {0};
    for (idx i = 0, n = (idx)curve->n; i < n; i += VL) {
        mask m = first_lanes(n - i);
        vec e = load_first(r + i, m) - load_first(curve->y + i, m);
        if (factors) e *= load_first(factors + i, m);
        add_to(&sum, e * e);
        store_first(r + i, m, e);
    }
    return total_of(sum);
}

/* J (n, ld), of which `rows` rows from i on = themselves times factors. */
static void scale_rows(idx n, idx i, idx rows, const real *factors, real *J, idx ld)
{
    for (idx j = 0; factors && j < n; j++)
        multiply(rows, J + j * ld + i, factors + i, J + j * ld + i);
}

/* The outputs (n_outputs, ld) of the program that is ready to run, for `rows` rows from i on. */
static void evaluate_rows(const fb_curve *curve, program_run *run, idx i, idx rows, real *results,
                          idx ld)
{
    const real *inputs[FB_MOST_PLACES];
    real *outputs[FB_MOST_PLACES];
    for (idx k = 0; k < run->program->n_inputs; k++) inputs[k] = curve->columns[k] + i;
    for (idx k = 0; k < run->program->n_outputs; k++) outputs[k] = results + k * ld + i;
    program_apply(run, rows, inputs, outputs);
}

/* r (m) = factors·(f - y) at params. Returns Σ r². */
static double residuals_at(const fb_curve *curve, const real *params, const real *factors, real *r)
{
    program_run run;
    program_start(&run, curve->value, params);
    evaluate_rows(curve, &run, 0, (idx)curve->n, r, 0);
    return subtract_data(curve, factors, r);
}

/* The roots of D: the weights if residuals count as their squares, null for 1. */
static const real *factors_of(const curve_search *s)
{
    return s->search.d->rho == FB_LINEAR_RHO ? s->curve->weights : s->roots;
}

/* Σ scale²·rho of residuals r (m). Unless `roots` is null, it is set, and r becomes
 * sqrt(rho')·r. */
INLINE double robust_sum(const curve_search *s, real *r, real *roots)
{
    const double *weights = s->curve->weights;
    double sum = 0, slope;
    for (idx i = 0; i < s->m; i++) {
        sum += robust_square(rho_of(s->search.d), r[i], &slope);
        if (!roots) continue;
        r[i] *= sqrt(slope);
        roots[i] = (weights ? weights[i] : 1) * sqrt(slope);
    }
    return sum;
}

/* Returns the sum of squares at params; s->moved = the residuals there, with the weights alone. */
static double curve_sum(curve_search *s, const real *params)
{
    double sum = residuals_at(s->curve, params, s->curve->weights, s->moved);
    return s->search.d->rho == FB_LINEAR_RHO ? sum : robust_sum(s, s->moved, NULL);
}

/* normal (n + 1, n) += the products of `rows` rows of J (n + 1, ld), on and below the diagonal. */
static void add_products(idx n, idx rows, const real *J, idx ld, real *normal)
{
    epilogue add = {NULL, (real)-INFINITY, 1, 0};
    for (idx a = 0; a <= n; a++, normal += n)
        row_dots(a < n ? a + 1 : n, rows, J, ld, J + a * ld, normal, add);
}

/* The residuals at the trial are those of its sum of squares: computed together with J they would
 * be rounded differently, and the last steps' gains are smaller than that. */
static int linearise_curve(search *general, int at_trial, double *squares)
{
    enum { ROWS = 256 };
    curve_search *s = (curve_search *)(void *)general;
    fb_descent *d = general->d;
    idx n = general->n, ld = s->ld;
    *squares = at_trial ? general->squares : curve_sum(s, d->params);
    memcpy(s->r, s->moved, (size_t)ld * sizeof(real));
    if (d->rho != FB_LINEAR_RHO) robust_sum(s, s->r, s->roots);
    program_run run;
    program_start(&run, s->curve->slopes, at_trial ? general->trial : d->params);
    memset(d->normal, 0, (size_t)(n * (n + 1)) * sizeof(real));
    for (idx i = 0; i < s->m; i += ROWS) {
        idx rows = s->m - i < ROWS ? s->m - i : ROWS;
        evaluate_rows(s->curve, &run, i, rows, s->J, ld);
        scale_rows(n, i, rows, factors_of(s), s->J, ld);
        add_products(n, rows, s->J + i, ld, d->normal);
    }
    for (idx i = 0; i < n; i++)
        for (idx j = 0; j < i; j++) d->normal[j * n + i] = d->normal[i * n + j];
    return FB_DONE;
}

static int curve_sum_at_trial(search *general)
{
    general->squares = curve_sum((curve_search *)(void *)general, general->trial);
    return FB_DONE;
}

static int curve_jtr_at_moved(search *general)
{
    curve_search *s = (curve_search *)(void *)general;
    residuals_at(s->curve, general->moved, factors_of(s), s->moved);
    for (idx j = 0; j < general->n; j++) general->bend[j] = dot(s->m, s->J + j * s->ld, s->moved);
    return FB_DONE;
}

/* v = argmin ‖Jv + q‖² + Σ damping·v² by Householder's reflections of the columns of J and of
 * diag(sqrt(damping)) below it. For the step q is r, for the bend half the second derivative of r
 * along the step. */
static void solve_curve_by_qr(search *general, int bends, real *v)
{
    curve_search *s = (curve_search *)(void *)general;
    idx n = general->n, m = s->m, rows = m + n, ld = round_up(rows);
    real *Q = s->Q, *q = Q + n * ld;
    memset(Q, 0, (size_t)((n + 1) * ld) * sizeof(real));
    for (idx j = 0; j <= n; j++) memcpy(Q + j * ld, s->J + j * s->ld, (size_t)m * sizeof(real));
    for (idx j = 0; j < n; j++) Q[j * ld + m + j] = sqrt(general->damping[j]);
    if (bends) {
        for (idx i = 0; i < m; i++) q[i] = (s->moved[i] - q[i]) / (FB_PROBE * FB_PROBE);
        for (idx j = 0; j < n; j++) add_multiple(m, -general->step[j] / FB_PROBE, Q + j * ld, q);
    }
    for (idx k = 0; k < n; k++) {
        real *normal = Q + k * ld + k, size = sqrt(dot(rows - k, normal, normal));
        real corner = *normal > 0 ? -size : size;
        *normal -= corner;
        for (idx j = k + 1; j <= n; j++) {
            real *column = Q + j * ld + k;
            real share = dot(rows - k, normal, column) / (corner * *normal);
            add_multiple(rows - k, share, normal, column);
        }
        *normal = corner;
    }
    for (idx k = n - 1; k >= 0; k--) {
        v[k] = -q[k] / Q[k * ld + k];
        add_multiple(k, v[k], Q + k * ld, q);
    }
}

static const sum_functions curve_functions = {linearise_curve, curve_sum_at_trial,
                                              curve_jtr_at_moved, solve_curve_by_qr,
                                              FB_LEAST_PIVOT};

/* The public function: up to d->steps steps; returns how many it took, or FB_NO_MEMORY. The records
 * begin with that of d->params. */
static int fit_curve(fb_pool *pool, const fb_curve *curve, fb_descent *d)
{
    idx n = (idx)curve->n_params, m = (idx)curve->n, ld = round_up(m);
    curve_search s = {
        .search = {.sum = &curve_functions, .d = d, .n = n, .n_params = n},
        .curve = curve,
        .m = m,
        .ld = ld,
    };
    idx pack = n > FB_FACTOR_ROWS ? PACK_SIZE : 0;
    idx size = pack + (n + 3) * ld + (n + 1) * round_up(m + n) + size_of_search(n, n);
    fb_workspace *workspace = fb_pool_take(pool, (size_t)size * sizeof(real));
    if (!workspace) return FB_NO_MEMORY;
    real *place = (real *)(void *)workspace->bytes;
    s.search.pack = place, place += pack;
    s.J = place, place += (n + 1) * ld, s.r = place - ld;
    s.Q = place, place += (n + 1) * round_up(m + n);
    s.roots = place, place += ld;
    s.moved = place, place += ld;
    lay_out_search(&s.search, place);
    for (idx j = 0; j <= n; j++) memset(s.J + j * ld + m, 0, (size_t)(ld - m) * sizeof(real));
    memset(s.moved + m, 0, (size_t)(ld - m) * sizeof(real));
    if (d->state[FB_NJEV] == 0) d->state[FB_USED] = d->state[FB_RHO] = NAN;
    int code = begin(&s.search, 0);
    if (code >= 0) write_record(&s.search, d->records);
    if (code >= 0 && s.search.total > d->goal) code = take_steps(&s.search, d->records + 4);
    fb_pool_give(pool, workspace);
    return code;
}

/* The public function: r (m) and J (n, m) with the weights, at params. */
static void curve_residuals(const fb_curve *curve, const void *params, void *r, void *J)
{
    idx m = (idx)curve->n;
    program_run run;
    residuals_at(curve, params, curve->weights, r);
    program_start(&run, curve->slopes, params);
    evaluate_rows(curve, &run, 0, m, J, m);
    scale_rows((idx)curve->n_params, 0, m, curve->weights, J, m);
}
