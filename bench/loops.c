/* What peak.py runs without Python's cost for each call. Compiled for the instruction set in use:
 * BYTES is the width of its vectors. */
#include "fastbp.h"

#define ACCUMULATORS 12 /* enough to hide the latency of two FMA units; fits 16 registers */

/* rounds * ACCUMULATORS multiply-adds of vectors. The sums tend to 1, so none is special. */
#define FMA_LOOP(name, T)                                                                          \
    T name(int64_t rounds) {                                                                       \
        typedef T V __attribute__((vector_size(BYTES)));                                           \
        V sums[ACCUMULATORS], half = (V){0} + (T)0.5;                                              \
        for (int i = 0; i < ACCUMULATORS; i++) sums[i] = half + (T)i;                              \
        __asm__ volatile("" : "+m"(half)); /* not known at compile time */                         \
        for (int64_t r = 0; r < rounds; r++)                                                       \
            _Pragma("GCC unroll 12") for (int i = 0; i < ACCUMULATORS; i++) sums[i] =              \
                sums[i] * half + half;                                                             \
        T total = 0;                                                                               \
        for (int i = 0; i < ACCUMULATORS; i++) total += sums[i][0];                                \
        return total;                                                                              \
    }

FMA_LOOP(fma_float32, float)
FMA_LOOP(fma_float64, double)

typedef __typeof__(fb_dense_forward) dense_forward;
typedef __typeof__(fb_dense_backward) dense_backward;

void repeat_forward(int64_t times, dense_forward *function, int is_double, int64_t n, int64_t n_in,
                    int64_t n_out, int64_t kind, const void *X, const void *W, const void *b,
                    void *Y) {
    while (times--) function(is_double, n, n_in, n_out, kind, 0.0, 0, X, W, b, Y, 0);
}

void repeat_backward(int64_t times, dense_backward *function, int is_double, int64_t n,
                     int64_t n_in, int64_t n_out, int64_t kind, const void *dY, const void *X,
                     const void *W, const void *Y, void *dX, void *dW, void *db) {
    while (times--)
        function(is_double, n, n_in, n_out, kind, 0.0, 0, dY, X, W, Y, 0, dX, dW, db);
}
