/* The root of a target: all functions of one instruction set and dtype, and the table of them.
 *
 * A file of targets/ defines FB_ISA (0 baseline, 1 AVX2 with FMA, 2 AVX-512) and FB_DOUBLE and
 * includes this one, which names the table after them, such as fb_avx2_f32. A pragma sets the
 * instruction set for the functions here; a compiler flag would set it for the system's headers
 * too, whose inline functions the linker may then use in other files.
 *
 * The headers, each of which uses those above it:
 *     vec.h          vectors and masks of the instruction set; transposes
 *     gemm.h         the matrix product
 *     programs.h     expressions block by block, on formulas.h and elementary.h: exp, log, sin
 *     activations.h  activations and derivatives
 *     losses.h       losses of a tile of rows
 *     network.h      a tile through all layers, forward and backward; the buffers of a call
 *     kernels.h      one layer
 *     dropout.h      the factors of dropout
 *     lane_major.h   a tile through a network of few units a layer
 *     objective.h    sums over rows in parts; the objective and its gradient
 *     jacobian.h     Jacobians, gradients of rows, normal equations
 *     curvature.h    Jacobian-vector and Hessian-vector products
 *     jtr_at.h       Jᵀr at params + step
 *     cholesky.h     the factor of the normal equations
 *     marquardt.h    Levenberg and Marquardt's method
 *     optimizers.h   the update rules
 *     training.h     the training loop
 *
 * In these files a row is a sample, a tile is some rows that pass through all layers together, and
 * a part is a fixed share of the rows whose sum one worker computes. A worker is a thread of the
 * call with its buffers; the buffers of all workers are the call's crew. A block is a matrix in
 * memory whose rows are `ld` (leading dimension) apart.
 */
#include "internal.h"

#if FB_ISA == 0 || defined(__x86_64__)

#include <math.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h> /* before the pragma: its functions bring their own targets */
#endif

#if FB_ISA == 2 && defined(__clang__)
#pragma clang attribute push(                                                                      \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#elif FB_ISA == 2
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#elif FB_ISA == 1 && defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#elif FB_ISA == 1
#pragma GCC target("avx2,fma")
#endif

#include "vec.h"
#include "gemm.h"
#include "activations.h"
#include "losses.h"
#include "network.h"
#include "kernels.h"
#include "dropout.h"
#include "lane_major.h"
#include "objective.h"
#include "jacobian.h"
#include "curvature.h"
#include "jtr_at.h"
#if FB_DOUBLE
#include "cholesky.h"
#include "marquardt.h"
#endif
#include "optimizers.h"
#include "training.h"

#if FB_ISA == 2 && FB_DOUBLE
#define TABLE fb_avx512_f64
#elif FB_ISA == 2
#define TABLE fb_avx512_f32
#elif FB_ISA == 1 && FB_DOUBLE
#define TABLE fb_avx2_f64
#elif FB_ISA == 1
#define TABLE fb_avx2_f32
#elif FB_DOUBLE
#define TABLE fb_baseline_f64
#else
#define TABLE fb_baseline_f32
#endif

extern const fb_table TABLE;
const fb_table TABLE = {
    .evaluate = evaluate,
    .activation = activation,
    .dense_forward = dense_forward,
    .dense_backward = dense_backward,
    .forward = forward,
    .forward_tape = forward_tape,
    .backward = backward,
    .jvp = jvp,
    .jacobian = jacobian,
    .input_jacobian = input_jacobian,
    .value_and_grad = value_and_grad,
    .row_gradients = row_gradients,
    .hvp = hvp,
    .normal_equations = normal_equations,
    .jtr_at = jtr_at,
#if FB_DOUBLE
    .descend = descend,
#endif
    .train = train,
};

#if FB_ISA && defined(__clang__)
#pragma clang attribute pop
#endif

#else
typedef int fb_nothing_here; /* a source file may not be empty */
#endif
