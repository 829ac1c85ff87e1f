/* Elementary functions of vectors: exp, expm1, tanh, sigmoid, log, sin, cos.
 *
 * They are polynomials after argument reduction, without tables, accurate to about 1 to 3 ULP over
 * the whole range of the dtype, subnormal results and NaN included. tools/polynomials.py derives
 * the coefficients and the limits. Where one number of the dtype is not precise enough, a value is
 * the sum of two.
 */
#include "polynomials.h"

#if FB_DOUBLE
#define NUMBER(name) FB_##name##_F64
#define MANTISSA_BITS 52
#define EXPONENT_BIAS 1023
#define EPSILON 0x1p-52
#define LARGEST 0x1.fffffffffffffp1023
#define TO_INTEGER 0x1.8p52 /* added to x and subtracted again, rounds x to an integer */
#define HIGH_HALF INT64_C(-0x8000000) /* selects the sign, the exponent and half of the mantissa */
#else
#define NUMBER(name) FB_##name##_F32
#define MANTISSA_BITS 23
#define EXPONENT_BIAS 127
#define EPSILON 0x1p-23f
#define LARGEST 0x1.fffffep127f
#define TO_INTEGER 0x1.8p23f
#define HIGH_HALF (-0x1000)
#endif
#define EXP_LEAST NUMBER(EXP_LEAST)
#define EXP_MOST NUMBER(EXP_MOST)
#define SCALE_LEAST NUMBER(SCALE_LEAST)
#define EXPM1_LEAST NUMBER(EXPM1_LEAST)
#define SIN_MOST NUMBER(SIN_MOST)

/* Polynomials. */

static const real exp_q[] = {NUMBER(EXP)};
static const real atanh_q[] = {NUMBER(ATANH)};
static const real sin_q[] = {NUMBER(SIN)};

/* c[0] + c[step] x + c[2 step] x² + ... + c[last] x^(last/step), by Horner's rule. */
INLINE vec horner(const real *c, int last, int step, vec x)
{
    vec result = splat(c[last]);
    UNROLL for (int i = last - step; i >= 0; i -= step) result = result * x + c[i];
    return result;
}

/* The polynomial of a list of coefficients, lowest power first. A long one is split into even and
 * odd powers, which the processor computes at once. */
#define POLYNOMIAL(list, x) polynomial(list, (int)(sizeof(list) / sizeof(*list)) - 1, x)
INLINE vec polynomial(const real *c, int degree, vec x)
{
    if (degree < 12) return horner(c, degree, 1, x);
    vec square = x * x, odd = horner(c + 1, (degree - 1) / 2 * 2, 2, square);
    return odd * x + horner(c, degree / 2 * 2, 2, square);
}

/* Sums of two numbers. The errors of products and sums are numbers of the dtype themselves (T. J.
 * Dekker, "A floating-point technique for extending the available precision", 1971). */

typedef struct {
    vec high, low; /* |low| is about the rounding of high */
} two_words;

/* a·b - p, exactly for p = a·b as rounded. */
INLINE vec product_error(vec a, vec b, vec p)
{
#if FB_ISA
    return OP(fmsub)(a, b, p);
#elif defined(__FP_FAST_FMA)
    UNROLL for (int i = 0; i < VL; i++)
        p[i] = FB_DOUBLE ? (real)__builtin_fma(a[i], b[i], -p[i])
                         : (real)__builtin_fmaf((float)a[i], (float)b[i], (float)-p[i]);
    return p;
#else /* products of halves are exact */
    vec a1 = (vec)((ivec)a & HIGH_HALF), b1 = (vec)((ivec)b & HIGH_HALF), a2 = a - a1, b2 = b - b1;
    return ((a1 * b1 - p) + a1 * b2 + a2 * b1) + a2 * b2;
#endif
}

/* x - a·b, rounded once if a·b is close to x. */
INLINE vec residual(vec x, vec a, vec b)
{
#if FB_ISA
    return OP(fnmadd)(a, b, x);
#else
    vec p = a * b;
    return (x - p) - product_error(a, b, p);
#endif
}

INLINE two_words product(vec a, vec b)
{
    vec p = a * b;
    return (two_words){p, product_error(a, b, p)};
}

/* 1 + a·b, for a·b >= 0. */
INLINE two_words one_plus_product(vec a, vec b)
{
    vec s = 1 + a * b;
    return (two_words){s, product_error(a, b, s - 1)};
}

/* a + b; ordered_sum() is cheaper and needs |a| >= |b| or a = 0. */
INLINE two_words sum(vec a, vec b)
{
    vec s = a + b, b_ = s - a;
    return (two_words){s, (a - (s - b_)) + (b - b_)};
}
INLINE two_words ordered_sum(vec a, vec b)
{
    vec s = a + b;
    return (two_words){s, b - (s - a)};
}

/* a / b, rounded about once. */
INLINE vec ratio(two_words a, two_words b)
{
    vec inverse = 1 / b.high, q = a.high * inverse;
    return q + inverse * (residual(a.high, q, b.high) + (a.low - q * b.low));
}

/* exp and its kin. */

typedef struct {
    vec p; /* e^r - 1, |r| <= ln2/2 */
    vec k; /* an integer; e^x = 2^k (1 + p) */
    vec shifted; /* k + TO_INTEGER, whose low bits are k */
} reduced;

/* The exponential's parts for x + low. */
INLINE reduced reduce_exp(vec x, vec low)
{
    vec shifted = x * (real)NUMBER(LOG2E) + (real)TO_INTEGER;
    vec k = shifted - (real)TO_INTEGER;
    vec r = x - k * (real)NUMBER(LN2_HI);
    r = r - (k * (real)NUMBER(LN2_LO) - low);
    return (reduced){r + r * r * POLYNOMIAL(exp_q, r), k, shifted};
}

/* k in the place of the exponent, for k + TO_INTEGER; added to the bits of 1 it makes 2^k. */
INLINE ivec exponent(vec shifted) { return (ivec)shifted << MANTISSA_BITS; }

/* 2^k y, rounded only where it is subnormal; for x >= SCALE_LEAST. */
INLINE vec scale(vec y, reduced e)
{
#if FB_ISA == 2
    return OP(scalef)(y, e.k);
#else /* in two steps, since 2^k may be out of range where 2^k y is not */
    ivec one = (ivec)splat(1), k = exponent(e.shifted);
    ivec half = exponent((real)0.5 * e.k + (real)TO_INTEGER);
    return y * (vec)(half + one) * (vec)(k - half + one);
#endif
}

INLINE vec vexp(vec x)
{
    reduced e = reduce_exp(vmin(splat(EXP_MOST), vmax(splat(EXP_LEAST), x)), (vec){0});
    return scale(e.p + 1, e);
}

/* e^x - 1, accurate relative to itself, for x up to 1 or so. */
INLINE vec expm1_of(reduced e)
{
    vec s = scale(splat(1), e);
    return s * e.p + (s - 1);
}
INLINE vec vexpm1(vec x) { return expm1_of(reduce_exp(vmax(splat(EXPM1_LEAST), x), (vec){0})); }

/* With a = |x| and t = e^-2a - 1, tanh a = -t / (t + 2). Near 1 the roundings of t and t + 2 would
 * add up to 2.5 ULP; 1 - 2 (t + 1) / (t + 2), the same, scales them down. */
INLINE vec vtanh(vec x)
{
    vec a = vabs(x), limit = splat((real)0.75);
    reduced e = reduce_exp(vmax(splat(EXPM1_LEAST), -2 * a), (vec){0});
    vec s = (vec)(exponent(e.shifted) + (ivec)splat(1));
    vec t = s * e.p + (s - 1), u = s * e.p + s;
    vec minus_t = (vec){0} - t; /* -t would turn 0 into -0 */
    vec quotient = if_greater(a, limit, 2 * u, minus_t) / (t + 2);
    return with_sign_of(if_greater(a, limit, 1 - quotient, quotient), x);
}

INLINE vec vsigmoid(vec x)
{
    vec t = vexp(-vabs(x));
    return if_greater((vec){0}, x, t, splat(1)) / (1 + t);
}

/* log. */

/* log(1 + u) for -1/2 <= u <= 1 is u minus this: with s = u / (2 + u) it is 2 atanh s, which is
 * 2s + 2s³ q(s²), and 2s = u - s u. */
INLINE vec log1p_rest(vec u)
{
    vec s = u / (u + 2), square = s * s;
    return s * (u - 2 * square * POLYNOMIAL(atanh_q, square));
}

/* log(1 + u) for -1/2 <= u <= 1. */
INLINE vec vlog1p(vec u) { return u - log1p_rest(u); }

/* The natural logarithm of numbers that are not subnormal: -infinity of 0, NaN of negative ones. */
INLINE vec vlog(vec x)
{
    /* x = 2^k (1 + u), 1 + u from sqrt(1/2) to sqrt 2 */
    ivec above = (ivec)splat(1) - (ivec)splat((real)0.70710678118654752);
    ivec k = (((ivec)x + above) >> MANTISSA_BITS) - EXPONENT_BIAS;
    vec u = (vec)((ivec)x - (k << MANTISSA_BITS)) - 1;
    vec n = (vec)(k + (ivec)splat((real)TO_INTEGER)) - (real)TO_INTEGER;
    vec y = n * (real)NUMBER(LN2_HI) + (u - (log1p_rest(u) - n * (real)NUMBER(LN2_LO)));
    vec zero = {0}, infinity = splat((real)INFINITY);
    y = if_greater(infinity, x, y, x); /* NaN and infinity as they are */
    return if_greater(x, zero, y, if_equal(x, zero, -infinity, splat((real)NAN)));
}

/* sin and cos. */

INLINE int any_greater(vec a, vec b)
{
#if FB_ISA == 2
    return COMPARE(a, b, _CMP_GT_OQ) != 0;
#elif FB_ISA == 1
    return OP(movemask)(OP(cmp)(a, b, _CMP_GT_OQ)) != 0;
#else
    ivec greater = a > b;
    lane any = 0;
    UNROLL for (int i = 0; i < VL; i++) any |= greater[i];
    return any != 0;
#endif
}

/* sin(x + shift·pi), shift 0 or 1/2, for |x| <= SIN_MOST: with x = (k - shift) pi + r it is
 * (-1)^k sin r. Numbers close to a multiple of pi need r to twice the precision. */
INLINE vec shifted_sin(vec x, real shift)
{
    vec shifted = (x * (real)NUMBER(INV_PI) + shift) + (real)TO_INTEGER;
    vec k = (shifted - (real)TO_INTEGER) - shift;
    vec first = residual(x, k, splat((real)NUMBER(PI_1)));
    two_words second = product(k, splat((real)NUMBER(PI_2))), r = sum(first, -second.high);
    r.low -= second.low + k * (real)NUMBER(PI_3);
    vec square = r.high * r.high;
    vec y = r.high + (r.low + r.high * square * POLYNOMIAL(sin_q, square));
    return (vec)((ivec)y ^ ((ivec)shifted << (8 * (int)sizeof(real) - 1))); /* k's last bit */
}

/* sin or cos of large numbers, whose reduction takes more digits of pi, by the C library. */
__attribute__((noinline)) static void shifted_sin_of_large(real *x, int quarter)
{
    for (int i = 0; i < VL; i++) x[i] = (real)(quarter ? cos((double)x[i]) : sin((double)x[i]));
}

INLINE vec any_shifted_sin(vec x, int quarter)
{
    if (any_greater(vabs(x), splat(SIN_MOST))) {
        real lanes[VL];
        store(lanes, x);
        shifted_sin_of_large(lanes, quarter);
        return load(lanes);
    }
    return shifted_sin(x, quarter ? (real)0.5 : 0);
}
INLINE vec vsin(vec x) { return if_equal(x, (vec){0}, x, any_shifted_sin(x, 0)); } /* -0 stays */
INLINE vec vcos(vec x) { return any_shifted_sin(x, 1); }
