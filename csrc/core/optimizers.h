/* The optimizers: formulas.h has a pass of each rule over parameters p, gradient g and moments, all
 * (n,), n a multiple of VL, so that the rules work on whole vectors. The gradient is 0 in the padding
 * and for parameters that are not free, and a gradient of 0 moves no parameter. Weight decay would
 * move them, so it has a pass of its own.
 */

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

/* One step of the run's optimizer. moments (n_moments, n); `powers` are those of the first two
 * constants for the step before, and become those of this one. */
static void update(const fb_run *run, const uint8_t *free, idx n_params, idx n, real *p,
                   real *moments, const real *g, double lr, double *powers)
{
    const double *constants = run->constants;
    if (constants[3] != 0) decay_weights(n_params, p, free, lr * constants[3]);
    switch (run->optimizer) {
    EACH_RULE_WITH_POWERS(CASE)
        for (int k = 0; k < 2; k++)
            powers[k] = next_power(constants[k], run->step + 1, powers[k]);
    }
    apply_rule(run->optimizer, n, p, moments, g, lr, constants, powers);
}
