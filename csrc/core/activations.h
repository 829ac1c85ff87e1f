/* Activations and their derivatives, of one vector and of arrays. fastbp/maths/activations.py has the
 * formulas; here they are arranged so that nothing cancels, overflows or underflows before the
 * result does:
 *
 * - A result that may be subnormal is made of the exponential's mantissa and multiplied by its
 *   power of two at the end, so that it is rounded once.
 * - A large argument of the exponential is a sum of two numbers, as its absolute error becomes a
 *   relative one.
 * - Where a derivative crosses zero, its numerator is a sum of differences from the root's values,
 *   which have the same sign; the root is a sum of two numbers.
 *
 * Arguments are cut where the function has become 0, 1 or z, so that infinities are no special
 * case.
 */
#include "programs.h"

#define NORMAL_MOST NUMBER(NORMAL_MOST)
#define LOGISTIC_MOST NUMBER(LOGISTIC_MOST)
#define GELU_TANH_MOST NUMBER(GELU_TANH_MOST)

static const real tail_q[] = {NUMBER(TAIL)};
static const real gelu_slope_q[] = {NUMBER(GELU_SLOPE)};
static const real selu_scale = (real)FB_SELU_SCALE;
static const real selu_depth = (real)(FB_SELU_SCALE * FB_SELU_ALPHA);

INLINE vec nan_like(vec z, vec value) { return if_equal(z, z, value, z); }
INLINE vec if_negative(vec z, vec yes, vec no) { return if_greater((vec){0}, z, yes, no); }
INLINE vec if_positive(vec z, vec yes, vec no) { return if_greater(z, (vec){0}, yes, no); }

/* These three are NaN where z is. */
INLINE vec at_least(real least, vec z) { return vmax(splat(least), z); }
INLINE vec at_most(real most, vec z) { return vmin(splat(most), z); }
INLINE vec magnitude(vec z, real most) { return at_most(most, vabs(z)); }

/* a - root, to twice the precision. */
INLINE two_words from_root(vec a, real high, real low)
{
    two_words d = sum(a, splat(-high));
    return ordered_sum(d.high, d.low - low);
}

/* The sigmoid and its kin. tanh z is 2σ(2z) - 1. */

/* (1 + t)², rounded about once for small t. */
INLINE vec one_plus_squared(vec t) { return 1 + t * (2 + t); }

INLINE vec sigmoid_slope(vec z)
{
    vec t = vexp(-vabs(z));
    return t / one_plus_squared(t);
}
INLINE vec sigmoid_second(vec z)
{
    vec t = vexp(-vabs(z));
    return with_sign_of(t * (1 - t) / ((1 + t) * one_plus_squared(t)), -z);
}

/* The exponential linear units. */

/* The parameter of a function, and constants that depend on it. */
typedef struct {
    vec c, low; /* the parameter, rounded, and the rest */
    vec celu_least, celu_linear; /* where celu has become -c, and where it is z */
} act_constants;

INLINE act_constants constants_of(const fb_act *a)
{
    real c = (real)a->constant, least = c * EXP_LEAST;
    return (act_constants){splat(c), splat((real)(a->constant - (double)c)),
                           splat(least < -LARGEST ? -LARGEST : least), splat(-c * (EPSILON / 8))};
}

/* c·e^z for z <= 0, also where it is normal and e^z not. */
INLINE vec times_exp(vec c, vec z)
{
    reduced e = reduce_exp(at_least(SCALE_LEAST, z), (vec){0});
    return scale(c * e.p + c, e);
}

/* e^(z/c) for z <= 0. */
INLINE reduced celu_exp(act_constants c, vec z)
{
    z = vmax(c.celu_least, z);
    vec quotient = z / c.c;
    return reduce_exp(quotient, (residual(z, quotient, c.c) - quotient * c.low) / c.c);
}
INLINE vec celu_slope(act_constants c, vec z)
{
    reduced e = celu_exp(c, z);
    return scale(e.p + 1, e);
}

/* gelu z = z·Φ(z), by the tail Φ(-a) = e^(-a²/2) q(t) / (1 + a), a >= 0, q a polynomial. */

INLINE reduced normal_exp(vec a)
{
    two_words square = product(a, a);
    return reduce_exp((real)-0.5 * square.high, (real)-0.5 * square.low);
}

/* t = (a - 4) / (a + 4) */
INLINE vec normal_variable(vec a) { return 2 * (a / (a + NUMBER(TAIL_MIDDLE))) - 1; }

INLINE vec gelu(vec z)
{
    vec a = magnitude(z, NORMAL_MOST), tail = POLYNOMIAL(tail_q, normal_variable(a));
    reduced e = normal_exp(a);
    vec y = ratio(product(a, tail * e.p + tail), sum(splat(1), a));
    return with_sign_of(at_least(0, z) - scale(y, e), z);
}

/* gelu'(-a) */
INLINE vec gelu_slope_below(vec a)
{
    vec slope = POLYNOMIAL(gelu_slope_q, normal_variable(a));
    reduced e = normal_exp(a);
    two_words d = from_root(a, (real)NUMBER(GELU_ROOT_HI), (real)NUMBER(GELU_ROOT_LO));
    slope = slope * e.p + slope;
    return -scale(slope * d.high + slope * d.low, e);
}
INLINE vec gelu_second(vec z)
{
    vec a = magnitude(z, NORMAL_MOST);
    return (2 - a * a) * (real)NUMBER(DENSITY_0) * vexp((real)-0.5 * a * a);
}

/* z·σ(v(z)) with v(z) = c1 z + c3 z³: silu (c1 = 1, c3 = 0) and gelu_tanh. */

/* The function, from |v|. */
INLINE vec gated(vec z, two_words v)
{
    reduced e = reduce_exp(-v.high, -v.low);
    vec m = e.p + 1, t = scale(m, e), y = z * if_negative(z, m, splat(1)) / (1 + t);
    return if_negative(z, scale(y, e), y);
}

/* 2^-k T e^x for T = high + low. */
INLINE vec mantissa(reduced e, vec high, vec low) { return high + (high * e.p + low); }

/* The derivative at z = -a, t (1 + t - a v'(a)) / (1 + t)² with t = e^-v(a). The bracket is 0 at
 * a0, where t is T; with d = a - a0, δ = v(a) - v(a0), s = δ / d and g = 2 (s - c1) it is therefore
 * T (e^-δ - 1) - d (s + g). T = high + low. */
INLINE vec gated_slope_below(real high, real low, two_words delta, two_words d, vec s, vec g)
{
    reduced e = reduce_exp(-delta.high, -delta.low);
    vec m = mantissa(e, splat(high), splat(low)), t = scale(m, e);
    vec bracket = ((high * expm1_of(e) - d.low * (s + g)) - d.high * g) - d.high * s;
    return scale(ratio(product(m, bracket), one_plus_product(t, 2 + t)), e);
}

INLINE vec silu(vec z)
{
    two_words v = {magnitude(z, LOGISTIC_MOST), {0}};
    return gated(at_least(-LOGISTIC_MOST, z), v);
}
INLINE vec silu_slope_below(vec a)
{
    two_words d = from_root(a, (real)NUMBER(SILU_ROOT_HI), (real)NUMBER(SILU_ROOT_LO));
    return gated_slope_below((real)NUMBER(SILU_EXP_HI), (real)NUMBER(SILU_EXP_LO), d, d, splat(1),
                             (vec){0});
}
INLINE vec silu_second(vec z)
{
    vec a = magnitude(z, LOGISTIC_MOST), t = vexp(-a);
    return t * (2 - a * (1 - t) / (1 + t)) / one_plus_squared(t);
}

INLINE vec gelu_tanh(vec z)
{
    const real c1 = (real)NUMBER(GELU_TANH_1_HI), c3 = (real)NUMBER(GELU_TANH_3_HI);
    const real c1_low = (real)NUMBER(GELU_TANH_1_LO), c3_low = (real)NUMBER(GELU_TANH_3_LO);
    vec a = magnitude(z, GELU_TANH_MOST);
    two_words square = product(a, a), cubic = product(square.high, splat(c3));
    two_words s = sum(splat(c1), cubic.high);
    s.low += cubic.low + c3 * square.low + c3_low * square.high + c1_low;
    two_words v = product(a, s.high);
    v.low += a * s.low;
    return gated(at_least(-GELU_TANH_MOST, z), v);
}

/* Here s = c3 a² + GELU_TANH_S1 a + GELU_TANH_S0. */
INLINE vec gelu_tanh_slope_below(vec a)
{
    const real c1 = (real)NUMBER(GELU_TANH_1_HI), c1_low = (real)NUMBER(GELU_TANH_1_LO);
    two_words d = from_root(a, (real)NUMBER(GELU_TANH_ROOT_HI), (real)NUMBER(GELU_TANH_ROOT_LO));
    two_words linear = product(a, splat((real)NUMBER(GELU_TANH_3_HI)));
    vec low = linear.low + a * (real)NUMBER(GELU_TANH_3_LO) + (real)NUMBER(GELU_TANH_S1_LO);
    linear = sum(linear.high, splat((real)NUMBER(GELU_TANH_S1_HI)));
    low += linear.low;
    two_words s = product(a, linear.high);
    low = a * low + (real)NUMBER(GELU_TANH_S0_LO) + s.low;
    s = sum(s.high, splat((real)NUMBER(GELU_TANH_S0_HI)));
    low += s.low;
    two_words delta = product(d.high, s.high);
    delta.low += d.high * low + d.low * s.high;
    vec g = 2 * ((s.high - c1) + ((real)1.5 * low - c1_low)); /* with the low part of s + g */
    return gated_slope_below((real)NUMBER(GELU_TANH_EXP_HI), (real)NUMBER(GELU_TANH_EXP_LO), delta,
                             d, s.high, g);
}
INLINE vec gelu_tanh_second(vec z)
{
    const real c1 = (real)NUMBER(GELU_TANH_1_HI), c3 = (real)NUMBER(GELU_TANH_3_HI);
    vec a = magnitude(z, GELU_TANH_MOST), square = a * a;
    vec t = vexp(-a * (c1 + c3 * square)), slope = c1 + 3 * c3 * square;
    vec bend = a * slope * slope * (1 - t) / (1 + t);
    return t * (2 * slope + 6 * c3 * square - bend) / one_plus_squared(t);
}

/* mish z = z·w. With t = e^-|z|, x = t for z >= 0 and x = t/2 for z < 0, w is 1 + 2x and t (1 + x),
 * in this order, over 1 + 2x(1 + x). */

INLINE vec mish(vec z)
{
    reduced e = reduce_exp(-magnitude(z, LOGISTIC_MOST), (vec){0});
    vec m = e.p + 1, t = scale(m, e), x = if_negative(z, (real)0.5 * t, t);
    vec numerator = 1 + if_negative(z, x * m + e.p, 2 * x);
    vec y = ratio(product(at_least(-LOGISTIC_MOST, z), numerator), one_plus_product(2 * x, 1 + x));
    y = with_sign_of(if_negative(z, scale(y, e), y), z); /* -0 stays */
    return if_greater(z, splat(LOGISTIC_MOST), z, y);
}

/* The denominator is (1 + 2x(1 + x))² = 1 + x (4 + 8x + 8x² + 4x³), the numerator for z >= 0
 * 1 + 4t + t² (6 + 4t + 4z (1 + t)). For z = -a < 0 it is t (n(t) / 4 - a (1 + t)), n(t) = t³ +
 * 4t² + 6t + 4. The bracket is 0 at a0, where t is T, and therefore (t - T) times
 * t²/4 + MISH_1 t + MISH_0, less (a - a0)(1 + t). */
INLINE vec mish_slope(vec z)
{
    const real t0 = (real)NUMBER(MISH_EXP_HI), t0_low = (real)NUMBER(MISH_EXP_LO);
    const real c0 = (real)NUMBER(MISH_0), c1 = (real)NUMBER(MISH_1);
    vec zero = {0}, one = splat(1), a = magnitude(z, LOGISTIC_MOST);
    two_words d = from_root(a, (real)NUMBER(MISH_ROOT_HI), (real)NUMBER(MISH_ROOT_LO));
    reduced e = reduce_exp(-if_negative(z, d.high, a), -if_negative(z, d.low, zero));
    vec m = mantissa(e, if_negative(z, splat(t0), one), if_negative(z, splat(t0_low), zero));
    vec t = scale(m, e), x = t * if_negative(z, splat((real)0.5), one);

    vec difference = t0 * expm1_of(e) * (t * ((real)0.25 * t + c1) + c0) - d.low;
    two_words bracket = sum(difference - d.high * t, -d.high);
    two_words below = product(m, bracket.high);
    below.low += m * bracket.low;
    vec above = 1 + t * (4 + t * (6 + 4 * (t + a * (1 + t))));
    two_words numerator = {if_negative(z, below.high, above), if_negative(z, below.low, zero)};

    two_words slope = ordered_sum(splat(4), ((4 * x + 8) * x + 8) * x);
    two_words denominator = one_plus_product(x, slope.high);
    denominator.low += x * slope.low;
    vec y = ratio(numerator, denominator);
    return if_negative(z, scale(y, e), y);
}

/* 2w' + z w''. Over (1 + 2x(1 + x))², w' is t (1 + t) for z < 0, else 4t² (1 + t); w'' is
 * w' (1 - σ - 2wσ). */
INLINE vec mish_second(vec z)
{
    vec a = magnitude(z, LOGISTIC_MOST), t = vexp(-a), x = if_negative(z, (real)0.5 * t, t);
    vec q = 1 + 2 * x * (1 + x), w = if_negative(z, t * (1 + x), 1 + 2 * x) / q;
    vec slope = t * (1 + t) * if_negative(z, splat(1), 4 * t) / (q * q);
    vec s = if_negative(z, t, splat(1)) / (1 + t);
    return slope * (2 + with_sign_of(a, z) * (1 - s - 2 * w * s));
}

/* One vector of an activation or a derivative. `kind` is a constant where these are inlined, so
 * that of the switch one case remains; a kind without a case traps. */

INLINE vec act(int kind, act_constants c, vec z)
{
    vec a = magnitude(z, LARGEST);
    switch (kind) {
    case FB_RELU:
    case FB_RELU_Z: return at_least(0, z);
    case FB_LEAKY_RELU: return if_positive(z, z, c.c * z);
    case FB_SIGMOID: return vsigmoid(z);
    case FB_TANH: return vtanh(z);
    case FB_ELU: return if_negative(z, c.c * vexpm1(z), z);
    case FB_SELU: return if_negative(z, selu_depth * vexpm1(z), selu_scale * z);
    case FB_CELU: return if_greater(z, c.celu_linear, z, c.c * expm1_of(celu_exp(c, z)));
    case FB_SOFTPLUS: return at_least(0, z) + vlog1p(vexp(-vabs(z)));
    case FB_SOFTSIGN: return with_sign_of(a / (1 + a), z);
    case FB_GELU: return gelu(z);
    case FB_GELU_TANH: return gelu_tanh(z);
    case FB_SILU: return silu(z);
    case FB_MISH: return mish(z);
    case FB_HARD_TANH: return at_most(1, at_least(-1, z));
    case FB_HARD_SIGMOID: return (at_most(3, at_least(-3, z)) + 3) / 6;
    case FB_RELU6: return at_most(6, at_least(0, z));
    case FB_EXP: return vexp(z);
    case FB_SIN: return vsin(z);
    default: __builtin_trap();
    }
}

/* g'(z) from g'(-|z|), for a function g with g(z) - g(-z) = z. */
INLINE vec both_sides(vec z, vec below) { return if_positive(z, 1 - below, below); }

INLINE vec act_derivative(int kind, act_constants c, vec z)
{
    vec zero = {0}, one = splat(1), a = vabs(z), t;
    switch (kind) {
    case FB_RELU: /* the constant is the derivative at 0 of both */
    case FB_RELU_Z: return if_positive(z, one, if_negative(z, zero, if_equal(z, zero, c.c, z)));
    case FB_LEAKY_RELU: return if_positive(z, one, nan_like(z, c.c));
    case FB_SIGMOID: return sigmoid_slope(z);
    case FB_TANH: return 4 * sigmoid_slope(2 * z);
    case FB_ELU: return if_positive(z, one, times_exp(c.c, z));
    case FB_SELU: return if_positive(z, splat(selu_scale), times_exp(splat(selu_depth), z));
    case FB_CELU: return if_positive(z, one, celu_slope(c, z));
    case FB_SOFTPLUS: return vsigmoid(z);
    case FB_SOFTSIGN: t = 1 / (1 + a); return t * t;
    case FB_GELU: return both_sides(z, gelu_slope_below(at_most(NORMAL_MOST, a)));
    case FB_GELU_TANH: return both_sides(z, gelu_tanh_slope_below(at_most(GELU_TANH_MOST, a)));
    case FB_SILU: return both_sides(z, silu_slope_below(at_most(LOGISTIC_MOST, a)));
    case FB_MISH: return mish_slope(z);
    case FB_HARD_TANH: return nan_like(z, if_greater(one, a, one, zero));
    case FB_HARD_SIGMOID: return nan_like(z, if_greater(splat(3), a, splat((real)(1. / 6)), zero));
    case FB_RELU6: return nan_like(z, if_positive(z, if_greater(splat(6), z, one, zero), zero));
    case FB_EXP: return vexp(z);
    case FB_SIN: return vcos(z);
    case FB_LINEAR: return one;
    default: __builtin_trap();
    }
}

INLINE vec act_second(int kind, act_constants c, vec z)
{
    vec zero = {0}, t;
    switch (kind) {
    case FB_LINEAR: return zero;
    case FB_SIGMOID: return sigmoid_second(z);
    case FB_TANH: return 8 * sigmoid_second(2 * z);
    case FB_ELU: return if_positive(z, zero, times_exp(c.c, z));
    case FB_SELU: return if_positive(z, zero, times_exp(splat(selu_depth), z));
    case FB_CELU: return if_positive(z, zero, celu_slope(c, z) / c.c);
    case FB_SOFTPLUS: return sigmoid_slope(z);
    case FB_SOFTSIGN:
        t = 1 / (1 + vabs(z));
        return if_equal(z, zero, zero, with_sign_of(2 * t * t * t, -z));
    case FB_GELU: return gelu_second(z);
    case FB_GELU_TANH: return gelu_tanh_second(z);
    case FB_SILU: return silu_second(z);
    case FB_MISH: return mish_second(z);
    case FB_EXP: return vexp(z);
    case FB_SIN: return -vsin(z);
    case FB_RELU: return nan_like(z, zero);
    default: __builtin_trap();
    }
}

/* The derivative from y = act(z), where y determines it. */
INLINE vec act_derivative_from_y(int kind, act_constants c, vec y)
{
    vec one = splat(1), t;
    switch (kind) {
    case FB_RELU: return if_positive(y, one, y); /* which is 0 or NaN otherwise */
    case FB_LEAKY_RELU:
    case FB_HARD_TANH:
    case FB_RELU6: return act_derivative(kind, c, y);
    case FB_SIGMOID: return y * (1 - y);
    case FB_TANH: return 1 - y * y;
    case FB_ELU: return if_positive(y, one, y + c.c);
    case FB_SELU: return if_positive(y, splat(selu_scale), y + selu_depth);
    case FB_CELU: return if_positive(y, one, y / c.c + 1);
    case FB_SOFTSIGN: t = 1 - vabs(y); return t * t;
    case FB_EXP: return y;
    default: __builtin_trap();
    }
}

/* The same for arrays: each kind has its own loop, so that no vector pays for the choice. */

#define EACH_KNOWN_FROM_Y(CASE)                                                                    \
    CASE(FB_RELU) CASE(FB_LEAKY_RELU) CASE(FB_SIGMOID) CASE(FB_TANH) CASE(FB_ELU) CASE(FB_SELU)    \
    CASE(FB_CELU) CASE(FB_SOFTSIGN) CASE(FB_HARD_TANH) CASE(FB_RELU6) CASE(FB_EXP)
#define EACH_CURVED(CASE)                                                                          \
    CASE(FB_SIGMOID) CASE(FB_TANH) CASE(FB_ELU) CASE(FB_SELU) CASE(FB_CELU) CASE(FB_SOFTPLUS)      \
    CASE(FB_SOFTSIGN) CASE(FB_GELU) CASE(FB_GELU_TANH) CASE(FB_SILU) CASE(FB_MISH) CASE(FB_EXP)    \
    CASE(FB_SIN)
#define EACH_BENT(CASE) /* those that bend but are linear elsewhere, too */                        \
    EACH_CURVED(CASE) CASE(FB_RELU) CASE(FB_RELU_Z) CASE(FB_LEAKY_RELU) CASE(FB_HARD_TANH)         \
    CASE(FB_HARD_SIGMOID) CASE(FB_RELU6)

#define ONE_MORE(kind) +1
_Static_assert(1 EACH_BENT(ONE_MORE) == FB_USER, "a kind is in no list; all but FB_LINEAR bend");

/* Whether the derivative needs Z; for the others Y is enough. */
INLINE int act_needs_z(int kind)
{
#define CASE(kind) case kind:
    switch (kind) {
    EACH_KNOWN_FROM_Y(CASE)
    case FB_LINEAR: return 0;
    default: return 1;
    }
}

/* out = the expression of x, a vector of Z; n elements. */
#define EACH_VECTOR(expression)                                                                    \
    {                                                                                              \
        idx i_ = 0;                                                                                \
        for (; i_ + VL <= n; i_ += VL) {                                                           \
            vec x = load(Z + i_);                                                                  \
            store(out + i_, expression);                                                           \
        }                                                                                          \
        if (i_ < n) {                                                                              \
            mask m_ = first_lanes(n - i_);                                                         \
            vec x = load_first(Z + i_, m_);                                                        \
            store_first(out + i_, m_, expression);                                                 \
        }                                                                                          \
    }

/* out (n) = act(Z), act'(Z), act''(Z). */

static void act_values(const fb_act *a, idx n, const real *Z, real *out)
{
    act_constants c = constants_of(a);
#define VALUES(kind) case kind: EACH_VECTOR(act(kind, c, x)) break;
    switch (a->kind) {
    EACH_BENT(VALUES)
    default: if (out != Z) memcpy(out, Z, (size_t)n * sizeof(real));
    }
}

static void act_derivatives(const fb_act *a, idx n, const real *Z, real *out)
{
    act_constants c = constants_of(a);
#define DERIVATIVES(kind) case kind: EACH_VECTOR(act_derivative(kind, c, x)) break;
    switch (a->kind) {
    EACH_BENT(DERIVATIVES)
    default: EACH_VECTOR(act_derivative(FB_LINEAR, c, x))
    }
}

static void act_seconds(const fb_act *a, idx n, const real *Z, real *out)
{
    act_constants c = constants_of(a);
#define SECONDS(kind) case kind: EACH_VECTOR(act_second(kind, c, x)) break;
    switch (a->kind) {
    EACH_CURVED(SECONDS)
    case FB_LINEAR: EACH_VECTOR(act_second(FB_LINEAR, c, x)) break;
    default: EACH_VECTOR(act_second(FB_RELU, c, x))
    }
}

__attribute__((noinline)) static void user_apply(const fb_user *user, int order, idx n,
                                                 const real *Z, real *out)
{
    program_run run;
    if (user->function) {
        ((fb_function *)user->function)(order, n, Z, out);
        return;
    }
    program_start(&run, user->programs[order], NULL);
    program_apply(&run, n, &Z, &out);
}

/* Y (n) = act(Z) and Z = act'(Z), by one program. */
__attribute__((noinline)) static void user_values_and_slopes(const fb_user *user, idx n, real *Z,
                                                             real *Y)
{
    program_run run;
    program_start(&run, user->programs[3], NULL);
    program_apply(&run, n, (const real *[]){Z}, (real *[]){Y, Z});
}

/* In the backward pass it stands for an activation whose derivatives are in the place of Z. */
static const fb_act by_slopes = {.kind = FB_USER};

/* out (n) = act(Z) (order 0), act'(Z) (1) or act''(Z) (2); out may be Z. */
static void act_apply(const fb_act *a, int order, idx n, const real *Z, real *out)
{
    if (a->kind == FB_USER) user_apply(a->user, order, n, Z, out);
    else if (order == 0) act_values(a, n, Z, out);
    else if (order == 1) act_derivatives(a, n, Z, out);
    else act_seconds(a, n, Z, out);
}

/* The public function. */
static void activation(const fb_act *a, int order, idx n, const void *Z, void *out)
{
    act_apply(a, order, n, Z, out);
}

/* out = D ∘ the expression of x, a vector of Y, for blocks (rows, columns). */
#define EACH_ROW(expression)                                                                       \
    for (idx i_ = 0; i_ < rows; i_++) {                                                            \
        const real *d_ = D + i_ * ldd, *y_ = Y + i_ * ldy;                                         \
        real *out_ = out + i_ * ldo;                                                               \
        idx j_ = 0;                                                                                \
        for (; j_ + VL <= columns; j_ += VL) {                                                     \
            vec x = load(y_ + j_);                                                                 \
            store(out_ + j_, load(d_ + j_) * (expression));                                        \
        }                                                                                          \
        if (j_ < columns) {                                                                        \
            mask m_ = first_lanes(columns - j_);                                                   \
            vec x = load_first(y_ + j_, m_);                                                       \
            store_first(out_ + j_, m_, load_first(d_ + j_, m_) * (expression));                    \
        }                                                                                          \
    }

/* out = D ∘ act'(·), from Y; D itself for FB_LINEAR. */
INLINE void backward_from_y(const fb_act *a, idx rows, idx columns, const real *D, idx ldd,
                            const real *Y, idx ldy, real *out, idx ldo)
{
    act_constants c = constants_of(a);
#define FROM_Y(kind) case kind: EACH_ROW(act_derivative_from_y(kind, c, x)) break;
    switch (a->kind) {
    EACH_KNOWN_FROM_Y(FROM_Y)
    default:
        if (out != D)
            for (idx i = 0; i < rows; i++)
                memcpy(out + i * ldo, D + i * ldd, (size_t)columns * sizeof(real));
    }
}

/* out = D ∘ Y. */
static void scale_by(idx rows, idx columns, const real *D, idx ldd, const real *Y, idx ldy,
                     real *out, idx ldo)
{
    EACH_ROW(x)
}

/* out = D ∘ act'(Z), by pieces of rows that stay in the cache. Where all rows of D share one row of
 * Z (ldz 0), its derivatives are computed once. A user's compiled function multiplies by them
 * itself. */
static void backward_from_z(const fb_act *a, idx rows, idx columns, const real *D, idx ldd,
                            const real *Z, idx ldz, real *out, idx ldo)
{
    enum { PIECE = 256 };
    real slopes[PIECE];
    if (a == &by_slopes) {
        scale_by(rows, columns, D, ldd, Z, ldz, out, ldo);
        return;
    }
    int multiplies = a->kind == FB_USER && a->user->function && (ldz != 0 || rows == 1);
    idx piece = multiplies && out == D ? columns : PIECE;
    for (idx j = 0; j < columns; j += piece) {
        idx n = columns - j < piece ? columns - j : piece;
        for (idx i = 0; i < rows; i++) {
            const real *d = D + i * ldd + j, *z = Z + i * ldz + j;
            real *result = out + i * ldo + j;
            if (multiplies) {
                if (result != d) memcpy(result, d, (size_t)n * sizeof(real));
                user_apply(a->user, 3, n, z, result);
                continue;
            }
            if (i == 0 || ldz != 0) act_apply(a, 1, n, z, slopes);
            scale_by(1, n, d, 0, slopes, 0, result, 0);
        }
    }
}

/* out = D ∘ act'(·), from Y where Y determines the derivative, else from Z; out may be D. Blocks
 * (rows, columns); ldy and ldz may be 0 for a row that all rows of D share. */
static void act_backward(const fb_act *a, idx rows, idx columns, const real *D, idx ldd,
                         const real *Y, idx ldy, const real *Z, idx ldz, real *out, idx ldo)
{
    int from_z = act_needs_z(a->kind);
    if (ldd == ldo && ldd == (from_z ? ldz : ldy) && (rows == 1 || ldd - columns < VL)) {
        if (rows > 1) columns = (rows - 1) * ldd + columns; /* one long row, gaps included */
        rows = 1;
    }
    if (from_z) backward_from_z(a, rows, columns, D, ldd, Z, ldz, out, ldo);
    else backward_from_y(a, rows, columns, D, ldd, Y, ldy, out, ldo);
}
