/* Elementary functions on vectors, and the activations made of them.
 *
 * exp, tanh, sigmoid and log1p are polynomials after argument reduction, without branches or tables,
 * accurate to about 1 to 2 ULP over the whole range of the dtype, subnormal results and NaN included
 * (the coefficients are derived by tools/polynomials.py).
 */
#include "polynomials.h"

#if FB_DOUBLE
#define COEFFICIENTS(name) FB_##name##_F64
#define MANTISSA_BITS 52
#define EXPONENT_BIAS 1023
#define EXP_LEAST (-746) /* e^x is 0 below */
#define EXP_MOST 710 /* and infinite above */
#define EXPM1_LEAST (-40) /* e^x - 1 rounds to -1 below */
#define TO_INTEGER 0x1.8p52 /* added to x and subtracted again, rounds x to an integer */
#else
#define COEFFICIENTS(name) FB_##name##_F32
#define MANTISSA_BITS 23
#define EXPONENT_BIAS 127
#define EXP_LEAST (-104)
#define EXP_MOST 89
#define EXPM1_LEAST (-20)
#define TO_INTEGER 0x1.8p23f
#endif

static const real exp_q[] = {COEFFICIENTS(EXP)};
static const real atanh_q[] = {COEFFICIENTS(ATANH)};
#define LENGTH(list) ((int)(sizeof(list) / sizeof(*list)))

/* Horner's rule, from the highest power down. */
#define POLYNOMIAL(list, x, result)                                                                \
    vec result = splat(list[LENGTH(list) - 1]);                                                    \
    UNROLL for (int i_ = LENGTH(list) - 2; i_ >= 0; i_--) result = result * x + list[i_];

typedef struct {
    vec p; /* e^r - 1, |r| <= ln2/2 */
    vec k; /* an integer; e^x = 2^k (1 + p) */
    vec shifted; /* k + TO_INTEGER, whose low bits are k */
} reduced;

INLINE reduced reduce_exp(vec x)
{
    vec shifted = x * (real)COEFFICIENTS(LOG2E) + (real)TO_INTEGER;
    vec k = shifted - (real)TO_INTEGER;
    vec r = x - k * (real)COEFFICIENTS(LN2_HI);
    r = r - k * (real)COEFFICIENTS(LN2_LO);
    POLYNOMIAL(exp_q, r, q)
    return (reduced){r + r * r * q, k, shifted};
}

/* 2^k for an integer vector k within the normal exponents. */
INLINE vec power_of_two(ivec k) { return (vec)((k + EXPONENT_BIAS) << MANTISSA_BITS); }

INLINE ivec to_integer(vec shifted) { return (ivec)shifted - (ivec)splat((real)TO_INTEGER); }

INLINE vec vexp(vec x)
{
    x = vmin(splat(EXP_MOST), vmax(splat(EXP_LEAST), x));
    reduced e = reduce_exp(x);
    vec y = e.p + 1;
#if FB_ISA == 2
    return OP(scalef)(y, e.k);
#else
    ivec k = to_integer(e.shifted), half = k >> 1; /* in two steps: 2^k alone may be out of range */
    return y * power_of_two(half) * power_of_two(k - half);
#endif
}

/* With a = |x| and t = e^-2a - 1, tanh a = -t / (t + 2). Near 1 the roundings of t and t + 2 would add
 * up to 2.5 ULP; 1 - 2 (t + 1) / (t + 2), the same, scales them down. */
INLINE vec vtanh(vec x)
{
    vec a = vabs(x), limit = splat((real)0.75);
    reduced e = reduce_exp(vmax(splat(EXPM1_LEAST), -2 * a));
    vec s = power_of_two(to_integer(e.shifted));
    vec t = s * e.p + (s - 1), u = s * e.p + s;
    vec quotient = if_greater(a, limit, 2 * u, (vec){0} - t) / (t + 2); /* -t would turn 0 into -0 */
    return with_sign_of(if_greater(a, limit, 1 - quotient, quotient), x);
}

INLINE vec vsigmoid(vec x)
{
    vec t = vexp(-vabs(x));
    return if_greater((vec){0}, x, t, splat(1)) / (1 + t);
}

/* log(1 + u) for 0 <= u <= 1, as 2 atanh(u / (2 + u)). */
INLINE vec vlog1p(vec u)
{
    vec s = u / (u + 2), s2 = s * s;
    POLYNOMIAL(atanh_q, s2, q)
    return 2 * (s + s * s2 * q);
}

/* One vector of an activation or its derivative; `kind` is known where these are inlined. */

INLINE vec act(int kind, vec c, vec z)
{
    switch (kind) {
    case FB_RELU:
    case FB_RELU_Z: return vmax((vec){0}, z); /* this order lets NaN through */
    case FB_LEAKY_RELU: return if_greater(z, (vec){0}, z, c * z);
    case FB_SIGMOID: return vsigmoid(z);
    case FB_TANH: return vtanh(z);
    default: return z;
    }
}

INLINE vec act_derivative(int kind, vec c, vec z)
{
    vec zero = {0}, one = splat(1), t;
    switch (kind) {
    case FB_RELU: /* the constant is the derivative at 0 of both */
    case FB_RELU_Z:
        return if_greater(z, zero, one, if_greater(zero, z, zero, if_equal(z, zero, c, z)));
    case FB_LEAKY_RELU:
        return if_greater(z, zero, one, if_greater(zero, z, c, if_equal(z, zero, c, z)));
    case FB_SIGMOID:
        t = vexp(-vabs(z));
        return t / ((1 + t) * (1 + t));
    case FB_TANH:
        t = vexp(-2 * vabs(z)); /* 1 - tanh² would cancel */
        return 4 * t / ((1 + t) * (1 + t));
    default: return one;
    }
}

/* The derivative from y = act(z), where y determines it. */
INLINE vec act_derivative_from_y(int kind, vec c, vec y)
{
    vec zero = {0}, one = splat(1);
    switch (kind) {
    case FB_RELU: return if_greater(y, zero, one, y * 0); /* y * 0 is 0, or NaN for NaN */
    case FB_LEAKY_RELU:
        return if_greater(y, zero, one, if_greater(zero, y, c, if_equal(y, zero, c, y)));
    case FB_SIGMOID: return y * (1 - y);
    case FB_TANH: return 1 - y * y;
    default: return one;
    }
}

/* The same over memory: each case is a loop of its own, so that no vector pays for the choice. */

#define FOR_VECTORS(n, expression, source, target)                                                 \
    {                                                                                              \
        idx i_ = 0;                                                                                \
        for (; i_ + VL <= (n); i_ += VL) {                                                         \
            vec x = load((source) + i_);                                                           \
            store((target) + i_, expression);                                                      \
        }                                                                                          \
        if (i_ < (n)) {                                                                            \
            mask m_ = first_lanes((n) - i_);                                                       \
            vec x = load_first((source) + i_, m_);                                                 \
            store_first((target) + i_, m_, expression);                                            \
        }                                                                                          \
    }                                                                                              \
    break;

/* out = act^(order)(Z), elementwise; they may be the same array. */
static void act_apply(const fb_act *a, int order, idx n, const real *Z, real *out)
{
    vec c = splat((real)a->constant);
    if (a->kind == FB_USER) {
        a->function(order, n, Z, out);
        return;
    }
    if (order == 1) {
        switch (a->kind) {
        case FB_RELU:
        case FB_RELU_Z: FOR_VECTORS(n, act_derivative(FB_RELU_Z, c, x), Z, out)
        case FB_LEAKY_RELU: FOR_VECTORS(n, act_derivative(FB_LEAKY_RELU, c, x), Z, out)
        case FB_SIGMOID: FOR_VECTORS(n, act_derivative(FB_SIGMOID, c, x), Z, out)
        case FB_TANH: FOR_VECTORS(n, act_derivative(FB_TANH, c, x), Z, out)
        default: FOR_VECTORS(n, act_derivative(FB_LINEAR, c, x), Z, out)
        }
        return;
    }
    switch (a->kind) {
    case FB_RELU:
    case FB_RELU_Z: FOR_VECTORS(n, act(FB_RELU, c, x), Z, out)
    case FB_LEAKY_RELU: FOR_VECTORS(n, act(FB_LEAKY_RELU, c, x), Z, out)
    case FB_SIGMOID: FOR_VECTORS(n, act(FB_SIGMOID, c, x), Z, out)
    case FB_TANH: FOR_VECTORS(n, act(FB_TANH, c, x), Z, out)
    default: if (out != Z) memcpy(out, Z, (size_t)n * sizeof(real));
    }
}

static void activation(const fb_act *a, int order, idx n, const void *Z, void *out)
{
    act_apply(a, order, n, Z, out);
}

INLINE int act_needs_z(int kind) { return kind == FB_RELU_Z || kind == FB_USER; }

#define SCALE_ROWS(derivative, source, ld_source)                                                  \
    for (idx i = 0; i < rows; i++) {                                                               \
        const real *d_ = D + i * ldd, *s_ = (source) + i * (ld_source);                            \
        real *o_ = out + i * ldo;                                                                  \
        idx j = 0;                                                                                 \
        for (; j + VL <= columns; j += VL) {                                                       \
            vec x = load(s_ + j);                                                                  \
            store(o_ + j, load(d_ + j) * (derivative));                                            \
        }                                                                                          \
        if (j < columns) {                                                                         \
            mask m_ = first_lanes(columns - j);                                                    \
            vec x = load_first(s_ + j, m_);                                                        \
            store_first(o_ + j, m_, load_first(d_ + j, m_) * (derivative));                        \
        }                                                                                          \
    }                                                                                              \
    break;

/* out = D ∘ act'(·), from Y where Y determines it, else from Z; out may be D. */
static void act_backward(const fb_act *a, idx rows, idx columns, const real *D, idx ldd,
                         const real *Y, idx ldy, const real *Z, idx ldz, real *out, idx ldo)
{
    vec c = splat((real)a->constant);
    int z_needed = act_needs_z(a->kind);
    if (ldd == ldo && ldd == (z_needed ? ldz : ldy) && (rows == 1 || ldd - columns < VL)) {
        if (rows > 1) columns = (rows - 1) * ldd + columns; /* one long row, gaps included */
        rows = 1;
    }
    switch (a->kind) {
    case FB_RELU: SCALE_ROWS(act_derivative_from_y(FB_RELU, c, x), Y, ldy)
    case FB_RELU_Z: SCALE_ROWS(act_derivative(FB_RELU_Z, c, x), Z, ldz)
    case FB_LEAKY_RELU: SCALE_ROWS(act_derivative_from_y(FB_LEAKY_RELU, c, x), Y, ldy)
    case FB_SIGMOID: SCALE_ROWS(act_derivative_from_y(FB_SIGMOID, c, x), Y, ldy)
    case FB_TANH: SCALE_ROWS(act_derivative_from_y(FB_TANH, c, x), Y, ldy)
    default:
        if (out != D)
            for (idx i = 0; i < rows; i++)
                memcpy(out + i * ldo, D + i * ldd, (size_t)columns * sizeof(real));
    }
}
