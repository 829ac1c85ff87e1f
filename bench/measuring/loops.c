/* What loops.py lets run without Python's cost for each call. Compiled for the instruction set in use:
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
typedef __typeof__(fb_activation) activation;
/* BLAS as Fortran has it, of either type. */
typedef void gemv(const char *, int *, int *, void *, const void *, int *, const void *, int *,
                  void *, void *, int *);
typedef void gemm(const char *, const char *, int *, int *, int *, void *, const void *, int *,
                  const void *, int *, void *, void *, int *);

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

void repeat_activation(int64_t times, activation *function, int is_double, int64_t kind,
                       const fb_user *user, int order, int64_t size, const void *Z, void *Y) {
    while (times--) function(is_double, kind, 0.0, user, order, size, Z, Y);
}

/* The same of the Numba backend, whose functions return a status; the first arguments are for
 * results and exceptions. */
typedef int numba_activation(void *, void **, int64_t, int64_t, const void *, void *, double,
                             int64_t);

void repeat_numba_activation(int64_t times, numba_activation *function, int64_t order,
                             int64_t size, const void *Z, void *Y) {
    void *nothing = 0, *error = 0;
    while (times--) function(&nothing, &error, order, size, Z, Y, 0.0, 0);
}

/* Y = XW; the transposes of all, as Fortran stores columns. */
void repeat_blas_forward(int64_t times, gemv *vector, gemm *matrix, int64_t n, int64_t n_in,
                         int64_t n_out, void *one, void *zero, const void *X, const void *W,
                         void *Y) {
    int rows = (int)n, in = (int)n_in, out = (int)n_out, step = 1;
    while (times--)
        if (n == 1)
            vector("N", &out, &in, one, W, &out, X, &step, zero, Y, &step);
        else
            matrix("N", "N", &out, &rows, &in, one, W, &out, X, &in, zero, Y, &out);
}

/* dX = dY Wᵀ and dW = Xᵀ dY. */
void repeat_blas_backward(int64_t times, gemv *vector, gemm *matrix, int64_t n, int64_t n_in,
                          int64_t n_out, void *one, void *zero, const void *dY, const void *X,
                          const void *W, void *dX, void *dW) {
    int rows = (int)n, in = (int)n_in, out = (int)n_out, step = 1;
    while (times--) {
        if (n == 1)
            vector("T", &out, &in, one, W, &out, dY, &step, zero, dX, &step);
        else
            matrix("T", "N", &in, &rows, &out, one, W, &out, dY, &out, zero, dX, &in);
        matrix("N", "T", &out, &in, &rows, one, dY, &out, X, &in, zero, dW, &out);
    }
}
