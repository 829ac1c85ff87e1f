/* Vectors of one instruction set and dtype, as GNU vector extensions with few intrinsics.
 *
 * `real` is the dtype, `vec` a vector of VL numbers. A `mask` selects the first lanes; masked loads
 * give 0 in the others. AVX-512 masks everything for free and has 32 registers. AVX2 masks loads
 * and stores by a vector and has 16 registers. The baseline (SSE2, NEON, or what the compiler makes
 * of 16-byte vectors) has no masks: its partial accesses go lane by lane, so that callers rather
 * pack.
 */
#include <math.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if FB_ISA == 2
#define VBYTES 64
#elif FB_ISA == 1
#define VBYTES 32
#else
#define VBYTES 16
#endif

#if FB_DOUBLE
typedef double real;
typedef int64_t lane;
#define VL (VBYTES / 8)
#else
typedef float real;
typedef int32_t lane;
#define VL (VBYTES / 4)
#endif

typedef real vec __attribute__((vector_size(VBYTES)));
typedef lane ivec __attribute__((vector_size(VBYTES)));
typedef real vec_in_memory __attribute__((vector_size(VBYTES), aligned(sizeof(real)), may_alias));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif

INLINE idx round_up(idx n) { return (n + VL - 1) / VL * VL; }

INLINE vec splat(real x) { return x - (vec){0}; } /* {0} + x would turn -0 into 0 */
INLINE vec load(const real *p) { return *(const vec_in_memory *)p; }
INLINE void store(real *p, vec v) { *(vec_in_memory *)p = v; }

/* Masks, choice, maximum and minimum. vmax(a, b) and vmin(a, b) are b where either is NaN;
 * fill_after(v, m, rest) has the lanes of v that m selects, and those of rest after them;
 * if_greater(a, b, yes, no) is yes where a > b, else no; hsum adds up the lanes. */
#if FB_ISA == 2

#define HAVE_MASKS 1
#if FB_DOUBLE
#define OP(name) _mm512_##name##_pd
#define COMPARE(a, b, how) _mm512_cmp_pd_mask(a, b, how)
typedef __mmask8 mask;
#else
#define OP(name) _mm512_##name##_ps
#define COMPARE(a, b, how) _mm512_cmp_ps_mask(a, b, how)
typedef __mmask16 mask;
#endif
INLINE mask first_lanes(idx n) { return n >= VL ? (mask)-1 : (mask)((1u << n) - 1u); }
INLINE vec load_first(const real *p, mask m) { return OP(maskz_loadu)(m, p); }
INLINE void store_first(real *p, mask m, vec v) { OP(mask_storeu)(p, m, v); }
INLINE vec fill_after(vec v, mask m, vec rest) { return OP(mask_blend)(m, rest, v); }
#define CHOOSE(a, how, b, yes, no) OP(mask_blend)(COMPARE(a, b, how), no, yes)
INLINE real hsum(vec v) { return OP(reduce_add)(v); }

#elif FB_ISA == 1

#define HAVE_MASKS 1
typedef __m256i mask;
#if FB_DOUBLE
#define OP(name) _mm256_##name##_pd
INLINE mask first_lanes(idx n)
{
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
#else
#define OP(name) _mm256_##name##_ps
INLINE mask first_lanes(idx n)
{
    int count = n > VL ? VL : (int)n;
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
#endif
INLINE vec load_first(const real *p, mask m) { return OP(maskload)(p, m); }
INLINE void store_first(real *p, mask m, vec v) { OP(maskstore)(p, m, v); }
INLINE vec fill_after(vec v, mask m, vec rest) { return OP(blendv)(rest, v, (vec)m); }
#define CHOOSE(a, how, b, yes, no) OP(blendv)(no, yes, OP(cmp)(a, b, how))

#else

#define HAVE_MASKS 0
typedef idx mask;
INLINE mask first_lanes(idx n) { return n > VL ? VL : n; }
/* Unrolled, as compilers make calls of memcpy of such loops. */
INLINE vec load_first(const real *p, mask m)
{
    if (m == VL) return load(p);
    vec v = {0};
    UNROLL for (int i = 0; i < VL - 1; i++) if (i < m) v[i] = p[i];
    return v;
}
INLINE void store_first(real *p, mask m, vec v)
{
    if (m == VL) {
        store(p, v);
        return;
    }
    UNROLL for (int i = 0; i < VL - 1; i++) if (i < m) p[i] = v[i];
}
INLINE vec fill_after(vec v, mask m, vec rest)
{
    UNROLL for (int i = 0; i < VL; i++) if (i >= m) v[i] = rest[i];
    return v;
}
INLINE vec choose(ivec condition, vec yes, vec no)
{
    return (vec)(((ivec)yes & condition) | ((ivec)no & ~condition));
}
INLINE vec if_greater(vec a, vec b, vec yes, vec no) { return choose(a > b, yes, no); }
INLINE vec if_equal(vec a, vec b, vec yes, vec no) { return choose(a == b, yes, no); }
INLINE vec vmax(vec a, vec b) { return choose(a > b, a, b); }
INLINE vec vmin(vec a, vec b) { return choose(a < b, a, b); }
INLINE vec vsqrt(vec a)
{
    vec r;
    UNROLL for (int i = 0; i < VL; i++) r[i] = FB_DOUBLE ? (real)sqrt(a[i]) : (real)sqrtf((float)a[i]);
    return r;
}

#endif

#if FB_ISA
INLINE vec if_greater(vec a, vec b, vec yes, vec no) { return CHOOSE(a, _CMP_GT_OQ, b, yes, no); }
INLINE vec if_equal(vec a, vec b, vec yes, vec no) { return CHOOSE(a, _CMP_EQ_OQ, b, yes, no); }
INLINE vec vmax(vec a, vec b) { return OP(max)(a, b); }
INLINE vec vmin(vec a, vec b) { return OP(min)(a, b); }
INLINE vec vsqrt(vec a) { return OP(sqrt)(a); }
#endif

#if FB_ISA != 2
INLINE real hsum(vec v)
{
    real s[VL];
    store(s, v);
    UNROLL for (int width = VL / 2; width; width /= 2)
        UNROLL for (int i = 0; i < width; i++) s[i] += s[i + width];
    return s[0];
}
#endif

INLINE vec vabs(vec v) { return (vec)((ivec)v & ~(ivec)splat((real)-0.0)); }
INLINE vec with_sign_of(vec magnitude, vec v)
{
    return (vec)((ivec)magnitude | ((ivec)v & (ivec)splat((real)-0.0)));
}

/* Sums over rows accumulate in double whatever the dtype. */
typedef double double_vec __attribute__((vector_size(VBYTES)));
#if FB_DOUBLE
typedef struct {
    double_vec part[1];
} double_sum;
INLINE void add_to(double_sum *sum, vec v) { sum->part[0] += v; }
#else
typedef struct {
    double_vec part[2];
} double_sum;
INLINE void add_to(double_sum *sum, vec v)
{
    typedef float half __attribute__((vector_size(VBYTES / 2)));
    union {
        vec whole;
        half halves[2];
    } u = {v};
    sum->part[0] += __builtin_convertvector(u.halves[0], double_vec);
    sum->part[1] += __builtin_convertvector(u.halves[1], double_vec);
}
#endif
INLINE double total_of(double_sum sum)
{
    double total = 0;
    for (size_t p = 0; p < sizeof(sum.part) / sizeof(*sum.part); p++)
        for (size_t i = 0; i < VBYTES / sizeof(double); i++) total += sum.part[p][i];
    return total;
}

/* Halves of vectors: processors that compute 512 bits in two passes compute a half in one. */
#if FB_ISA == 2
#define HAVE_HALVES 1
typedef real half __attribute__((vector_size(VBYTES / 2)));
#if FB_DOUBLE
#define HALF_OP(name) _mm256_##name##_pd
INLINE vec half_widened(half v) { return _mm512_zextpd256_pd512(v); }
INLINE half half_of(vec v) { return (half)_mm512_castpd512_pd256(v); }
#else
#define HALF_OP(name) _mm256_##name##_ps
INLINE vec half_widened(half v) { return _mm512_zextps256_ps512(v); }
INLINE half half_of(vec v) { return (half)_mm512_castps512_ps256(v); }
#endif
INLINE half half_load_first(const real *p, mask m) { return HALF_OP(maskz_loadu)((__mmask8)m, p); }
INLINE half half_splat(real x) { return x - (half){0}; }
INLINE half half_max(half a, half b) { return HALF_OP(max)(a, b); }
#else
#define HAVE_HALVES 0
#endif

/* Interleaving of the low and of the high halves of two vectors. */
#if VL == 16
#define ZIP_LOW(a, b) SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define ZIP_HIGH(a, b) SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#define STAGES 4
#elif VL == 8
#define ZIP_LOW(a, b) SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define ZIP_HIGH(a, b) SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#define STAGES 3
#elif VL == 4
#define ZIP_LOW(a, b) SHUFFLE(a, b, 0, 4, 1, 5)
#define ZIP_HIGH(a, b) SHUFFLE(a, b, 2, 6, 3, 7)
#define STAGES 2
#else
#define ZIP_LOW(a, b) SHUFFLE(a, b, 0, 2)
#define ZIP_HIGH(a, b) SHUFFLE(a, b, 1, 3)
#define STAGES 1
#endif

/* Lanes of 128 bits: a vector has LANES of them, a lane LANE numbers. join() makes a vector of
 * LANES pieces of memory, which is the load unit's work; LANE_LOW and LANE_HIGH interleave the low
 * and the high halves of every lane, which stays within lanes and so takes a single cycle. */
#define LANES (VBYTES / 16)
#define LANE (VL / LANES)

#if FB_ISA
#define LANE_LOW(a, b) OP(unpacklo)(a, b)
#define LANE_HIGH(a, b) OP(unpackhi)(a, b)
#else
#define LANE_LOW ZIP_LOW
#define LANE_HIGH ZIP_HIGH
#endif

#if FB_ISA == 2
INLINE vec join(const real *const *p) /* bits, whatever the dtype */
{
#define PIECE(i) _mm_loadu_ps((const float *)(const void *)p[i])
    __m512 v = _mm512_insertf32x4(_mm512_castps128_ps512(PIECE(0)), PIECE(1), 1);
    return (vec)_mm512_insertf32x4(_mm512_insertf32x4(v, PIECE(2), 2), PIECE(3), 3);
#undef PIECE
}
#elif FB_ISA == 1 && !FB_DOUBLE
INLINE vec join(const real *const *p) { return _mm256_loadu2_m128(p[1], p[0]); }
#elif FB_ISA == 1
INLINE vec join(const real *const *p) { return _mm256_loadu2_m128d(p[1], p[0]); }
#else
INLINE vec join(const real *const *p) { return load(p[0]); }
#endif

/* T (columns, ldt) = the transpose of up to VL rows of A. It takes LANE columns of A at a time,
 * whose pieces join() stacks so that interleaving within lanes, log2(LANE) times, transposes. Rows
 * that A lacks are zeros. The last piece of a row may reach into the next row, which is harmless;
 * `ends` says that these rows include A's last one, of which nothing may be read past the end. */
INLINE void transpose_some(idx rows, idx columns, const real *A, idx lda, int ends, real *T, idx ldt)
{
    static const real zeros[LANE];
    real tail[LANE] = {0};
    if (ends)
        for (idx j = columns / LANE * LANE; j < columns; j++)
            tail[j % LANE] = A[(rows - 1) * lda + j];
    for (idx j = 0; j < columns; j += LANE) {
        vec r[LANE], t[LANE];
        int cut = ends && j + LANE > columns;
        UNROLL for (int k = 0; k < LANE; k++) {
            const real *pieces[LANES];
            UNROLL for (int lane = 0; lane < LANES; lane++) {
                idx i = lane * LANE + k;
                pieces[lane] = i >= rows ? zeros : cut && i == rows - 1 ? tail : A + i * lda + j;
            }
            r[k] = join(pieces);
        }
        UNROLL for (int width = LANE; width > 1; width /= 2) {
            UNROLL for (int k = 0; k < LANE / 2; k++) {
                t[2 * k] = LANE_LOW(r[k], r[k + LANE / 2]);
                t[2 * k + 1] = LANE_HIGH(r[k], r[k + LANE / 2]);
            }
            UNROLL for (int k = 0; k < LANE; k++) r[k] = t[k];
        }
        UNROLL for (int k = 0; k < LANE; k++) {
            if (j + k < columns) store(T + (j + k) * ldt, r[k]);
        }
    }
}

/* T (columns, ldt) = the transpose of A (rows, lda). Rows of T have room for whole vectors; zeros
 * fill them. */
static void transpose(idx rows, idx columns, const real *A, idx lda, real *T, idx ldt)
{
    idx whole = rows / VL * VL, left = rows - whole;
    if (lda == 1) { /* a single column; pieces of other rows than the last would pass its end */
        memcpy(T, A, (size_t)rows * sizeof(real));
        if (left) store(T + whole, load_first(A + whole, first_lanes(left)));
        return;
    }
    for (idx i = 0; i < whole; i += VL)
        transpose_some(VL, columns, A + i * lda, lda, i + VL == rows, T + i, ldt);
    if (left) transpose_some(left, columns, A + whole * lda, lda, 1, T + whole, ldt);
}

/* sums[i] = the sum of the lanes of s[i], i < 4, by interleaving within lanes and adding. */
INLINE void hsum4(const vec *s, real *sums)
{
    enum { PER_LANE = LANE < 4 ? LANE : 4 };
    for (int i = 0; i < 4; i += PER_LANE) {
        vec r[PER_LANE];
        UNROLL for (int k = 0; k < PER_LANE; k++) r[k] = s[i + k];
        UNROLL for (int width = PER_LANE / 2; width; width /= 2)
            UNROLL for (int k = 0; k < width; k++)
                r[k] = LANE_LOW(r[k], r[k + width]) + LANE_HIGH(r[k], r[k + width]);
        real lanes[VL];
        store(lanes, r[0]);
        UNROLL for (int k = 0; k < PER_LANE; k++) {
            sums[i + k] = lanes[k];
            UNROLL for (int lane = 1; lane < LANES; lane++) sums[i + k] += lanes[lane * LANE + k];
        }
    }
}

/* Arrays of n numbers. */

/* to = from; it has room for whole vectors. */
INLINE void copy_row(idx n, const real *from, real *to)
{
    for (idx i = 0; i < n; i += VL) store(to + i, load_first(from + i, first_lanes(n - i)));
}

/* out = a ∘ b */
INLINE void multiply(idx n, const real *a, const real *b, real *out)
{
    for (idx i = 0; i < n; i += VL) {
        mask m = first_lanes(n - i);
        store_first(out + i, m, load_first(a + i, m) * load_first(b + i, m));
    }
}

/* y += factor · x */
INLINE void add_multiple(idx n, real factor, const real *x, real *y)
{
    vec f = splat(factor);
    for (idx i = 0; i < n; i += VL) {
        mask m = first_lanes(n - i);
        store_first(y + i, m, load_first(y + i, m) + f * load_first(x + i, m));
    }
}

INLINE real dot(idx n, const real *x, const real *y)
{
    vec sum = {0};
    for (idx i = 0; i < n; i += VL) {
        mask m = first_lanes(n - i);
        sum += load_first(x + i, m) * load_first(y + i, m);
    }
    return hsum(sum);
}

/* Whether all x are finite: x·0 is 0 for finite x, else NaN. */
static int is_finite(idx n, const real *x)
{
    vec sum = {0};
    idx i = 0;
    for (; i + VL <= n; i += VL) sum += load(x + i) * 0;
    if (i < n) sum += load_first(x + i, first_lanes(n - i)) * 0;
    return hsum(sum) == 0;
}

/* Flushing of subnormal numbers to zero. The state of a converging optimizer becomes subnormal, and
 * each operation on such a number costs about a hundred cycles. A training call switches flushing
 * on and restores the mode before it returns. */
#if defined(__x86_64__)
typedef unsigned int fp_mode;
INLINE fp_mode flush_subnormals(void)
{
    fp_mode before = _mm_getcsr();
    _mm_setcsr(before | 0x8040u); /* flush results to zero, take subnormal operands as zero */
    return before;
}
INLINE void restore_mode(fp_mode before) { _mm_setcsr(before); }
#elif defined(__aarch64__)
typedef uint64_t fp_mode;
INLINE fp_mode flush_subnormals(void)
{
    fp_mode before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"(before | (UINT64_C(1) << 24)));
    return before;
}
INLINE void restore_mode(fp_mode before) { __asm__ volatile("msr fpcr, %0" : : "r"(before)); }
#else
typedef int fp_mode;
INLINE fp_mode flush_subnormals(void) { return 0; }
INLINE void restore_mode(fp_mode before) { (void)before; }
#endif
