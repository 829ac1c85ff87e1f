/* What the formulas of formulas.h are made of beside the operations of vec.h, and what takes other
 * instructions on each instruction set: fastbp/maths/formulas/elementary.py says what the functions
 * compute. NUMBER(name) is a number that tools/polynomials.py derives, for the dtype.
 */
#include "polynomials.h"

#if FB_DOUBLE
#define NUMBER(name) FB_##name##_F64
#define HIGH_HALF INT64_C(-0x8000000) /* selects the sign, the exponent and half of the mantissa */
#else
#define NUMBER(name) FB_##name##_F32
#define HIGH_HALF (-0x1000)
#endif

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

/* A sum of two numbers; |low| is about the rounding of high. */
typedef struct {
    vec high, low;
} two_words;

/* e^x = 2^k (1 + p); the low bits of shifted are k. */
typedef struct {
    vec p, k, shifted;
} reduced;

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

/* 2^k y, rounded only where it is subnormal; for x >= SCALE_LEAST. */
INLINE vec scale(vec y, reduced e)
{
#if FB_ISA == 2
    return OP(scalef)(y, e.k);
#else /* in two steps, since 2^k may be out of range where 2^k y is not */
    vec middle = (real)0.5 * e.k + NUMBER(TO_INTEGER);
    ivec one = (ivec)splat(1), k = (ivec)e.shifted << NUMBER(MANTISSA_BITS);
    ivec half = (ivec)middle << NUMBER(MANTISSA_BITS);
    return y * (vec)(half + one) * (vec)(k - half + one);
#endif
}

/* a / d for d >= 0, to about 1.5 ULP. The divider is busy with the square root, so at AVX-512 the
 * reciprocal is computed from an estimate of 14 bits by Newton's steps. Adam's steps of 100-100-10
 * on 2 rows, which are mostly the rule, take 0.85 (f64) and 0.9 (f32) of the time. */
INLINE vec divide(vec a, vec d)
{
#if FB_ISA == 2
    d = vmin(splat(NUMBER(LARGEST)), d); /* Newton's step would make NaN of infinity */
    vec r = OP(rcp14)(d);
    UNROLL for (int i = 0; i <= FB_DOUBLE; i++) r += r * residual(splat(1), d, r);
    return a * r;
#else
    return a / d;
#endif
}

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

__attribute__((noinline)) static void lanes_by_c(double function(double), real *x)
{
    for (int i = 0; i < VL; i++) x[i] = (real)function((double)x[i]);
}

/* The C library's function of x where a > b, which is seldom; `otherwise` elsewhere. */
INLINE vec in_c_where_greater(vec a, vec b, double function(double), vec x, vec otherwise)
{
    if (!any_greater(a, b)) return otherwise;
    real lanes[VL];
    store(lanes, x);
    lanes_by_c(function, lanes);
    return if_greater(a, b, load(lanes), otherwise);
}
