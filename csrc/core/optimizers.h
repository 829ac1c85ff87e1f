/* The update rules of the optimizers: each is one pass over parameters p, gradient g and moments.
 * The contract's Optimizer has the formulas.
 *
 * All are (n,), n a multiple of VL, so that the rules work on whole vectors. The gradient is 0 in
 * the padding and for parameters that are not free, and a gradient of 0 moves no parameter. Weight
 * decay would move them, so it has a pass of its own.
 */

/* v: the velocity, null without momentum. */

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

/* p -= share·p where training may change p; `free` holds zeros and ones. */
static void decay_weights(idx n, real *p, const uint8_t *free, double share)
{
    real lost = (real)share;
    for (idx i = 0; i < n; i++) p[i] *= 1 - lost * (real)(free ? free[i] : 1);
}

/* β^t: a power up to the last multiple of 64, products from there. So next_power() gives the same
 * bits wherever a run is resumed. Exactly 0 where 1 - β^t rounds to 1. */
static double power(double beta, int64_t t)
{
    int64_t i = t - t % 64;
    double result = (double)i * (1 - beta) > 40 ? 0 : pow(beta, (double)i);
    for (; i < t; i++) result *= beta;
    return result;
}

/* β^t, where `before` is β^(t - 1). */
INLINE double next_power(double beta, int64_t t, double before)
{
    return t % 64 == 0 ? power(beta, t) : before * beta;
}

/* m, s: first and second moment; powers: β1^t and β2^t. */
static void adam_step(idx n, real *p, real *m, real *s, const real *g, const double *constants,
                      double lr, const double *powers)
{
    double beta1 = constants[0], beta2 = constants[1];
    vec rate = splat((real)(lr / (1 - powers[0])));
    vec correction = splat((real)(1 / sqrt(1 - powers[1])));
    vec share1 = splat((real)(1 - beta1)), share2 = splat((real)(1 - beta2));
    vec keep2 = splat((real)beta2), eps = splat((real)constants[2]);
    for (idx i = 0; i < n; i += VL) {
        vec gi = load(g + i), mi = load(m + i), si = load(s + i);
        mi += share1 * (gi - mi);
        si = keep2 * si + share2 * gi * gi;
        store(m + i, mi);
        store(s + i, si);
        store(p + i, load(p + i) - divide(rate * mi, vsqrt(si) * correction + eps));
    }
}

/* s: mean square. v: velocity, null without momentum. a: mean gradient, null unless centered. */
static void rmsprop_step(idx n, real *p, real *s, real *v, real *a, const real *g,
                         const double *constants, double lr)
{
    vec keep = splat((real)constants[0]), share = splat((real)(1 - constants[0]));
    vec eps = splat((real)constants[1]), mu = splat((real)constants[2]), rate = splat((real)lr);
    for (idx i = 0; i < n; i += VL) {
        vec gi = load(g + i), q = keep * load(s + i) + share * gi * gi;
        store(s + i, q);
        if (a) {
            vec ai = load(a + i);
            ai += share * (gi - ai);
            store(a + i, ai);
            q = vmax((vec){0}, q - ai * ai); /* a NaN remains one */
        }
        vec d = divide(gi, vsqrt(q) + eps);
        if (v) {
            d += mu * load(v + i);
            store(v + i, d);
        }
        store(p + i, load(p + i) - rate * d);
    }
}

/* s: sum of squares. */
static void adagrad_step(idx n, real *p, real *s, const real *g, double epsilon, double lr)
{
    vec eps = splat((real)epsilon), rate = splat((real)lr);
    for (idx i = 0; i < n; i += VL) {
        vec gi = load(g + i), si = load(s + i) + gi * gi;
        store(s + i, si);
        store(p + i, load(p + i) - divide(rate * gi, vsqrt(si) + eps));
    }
}

/* One step of the run's optimizer. moments (n_moments, n); `powers` are those of Adam's β1 and β2
 * for the step before, and become those of this one. */
static void update(const fb_run *run, const uint8_t *free, idx n_params, idx n, real *p,
                   real *moments, const real *g, double lr, double *powers)
{
    const double *constants = run->constants;
    real *second = moments + n, *third = second + n;
    switch (run->optimizer) {
    case FB_ADAM:
        if (constants[3] != 0) decay_weights(n_params, p, free, lr * constants[3]);
        for (int k = 0; k < 2; k++)
            powers[k] = next_power(constants[k], run->step + 1, powers[k]);
        adam_step(n, p, moments, second, g, constants, lr, powers);
        break;
    case FB_RMSPROP: {
        real *v = constants[2] != 0 ? second : NULL;
        real *a = constants[3] != 0 ? (v ? third : second) : NULL;
        rmsprop_step(n, p, moments, v, a, g, constants, lr);
        break;
    }
    case FB_ADAGRAD:
        adagrad_step(n, p, moments, g, constants[0], lr);
        break;
    case FB_SGD:
    case FB_NESTEROV:
        sgd_step(n, p, run->n_moments > 0 ? moments : NULL, g, constants[0], lr,
                 run->optimizer == FB_NESTEROV);
        break;
    default: __builtin_trap();
    }
}
