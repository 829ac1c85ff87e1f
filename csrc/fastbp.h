/* The C interface of fastbp: what the Python side calls, and the only header that cffi reads.
 *
 * Arrays are void *: float or double as the `is_double` of the call or plan says; row-major, without
 * gaps, checked by the caller. Functions that can run out of memory return FB_NO_MEMORY; all others
 * cannot fail. Every function may be called from several threads at once, also on the same plan.
 */
#ifndef FASTBP_H
#define FASTBP_H

#include <stdint.h>

#include "constants.h"

#define FB_NO_MEMORY -1 /* instead of FB_DONE, a stop code or a count */

/* A network, and the workspaces that calls on it take turns to use. */
typedef struct fb_plan fb_plan;

/* An objective over fixed data; `y` or `labels` is set as the loss demands, `weights` may be null;
 * `function` is the address of the row function for FB_USER_LOSS. */
typedef struct {
    const void *X, *y, *weights;
    const int64_t *labels;
    int64_t n, n_targets;
    int64_t loss;
    uintptr_t function;
    double constant, scale, l2, l1, group;
} fb_problem;

/* A stretch of a training run: the contract's Run, its Recipe, and what else its train() is given,
 * where the fields' meaning is told. `validation` may be null. */
typedef struct {
    void *params, *moments, *good, *best;
    double *average, *monitor;
    uint64_t seed;
    int64_t step;

    int64_t optimizer, n_moments;
    double constants[4];
    int64_t batch_size, averaged;
    double clip_norm;
    int64_t average_from;
    const fb_problem *validation;
    double goal;
    int64_t patience;
    double tol;
    int64_t threads;

    int64_t n_steps, n_rates;
    const int64_t *order;
    const double *rates;
    double *losses, *validated;
} fb_run;

/* A search by Levenberg and Marquardt's method: the contract's Descent and Rules, where the fields'
 * meaning is told; `mu_dec` and `mu_inc` are 0 for None. All are float64. */
typedef struct {
    double *params, *normal, *scales, *state;
    const double *prior;
    double mu_dec, mu_inc, mu_max, ftol, xtol, gtol, min_grad, goal, rho_scale;
    int64_t uniform, bend, rho, threads, steps;
    double *records;
} fb_descent;

/* The instruction set in use: "avx512", "avx2" or "baseline"; `fb_set_isa` caps it by name (null:
 * as the processor allows) and returns 0 for an unknown name. Call it before any plan is made. */
const char *fb_isa(void);
int fb_set_isa(const char *cap);
const char *fb_compiler(void);

/* Per layer: a row of the layer table with FB_LAYER_COLUMNS columns, the activation's constant, the
 * address of a user's activation (else 0) and the share of outputs that training drops (or null);
 * per parameter whether training may change it (or null). All is copied. */
fb_plan *fb_plan_new(int is_double, int64_t n_layers, const int64_t *layers,
                     const double *constants, const uintptr_t *functions, const double *dropout,
                     const uint8_t *free, int64_t n_params, int64_t tape_width);
void fb_plan_free(fb_plan *plan);

void fb_activation(int is_double, int64_t kind, double constant, uintptr_t function, int order,
                   int64_t size, const void *Z, void *result);
int fb_dense_forward(int is_double, int64_t n, int64_t n_in, int64_t n_out, int64_t kind,
                     double constant, uintptr_t function, const void *X, const void *W,
                     const void *b, void *Y, void *Z);
int fb_dense_backward(int is_double, int64_t n, int64_t n_in, int64_t n_out, int64_t kind,
                      double constant, uintptr_t function, const void *dY, const void *X,
                      const void *W, const void *Y, const void *Z, void *dX, void *dW, void *db);

int fb_forward(fb_plan *plan, const void *params, int64_t n, const void *X, void *Y);
int fb_forward_tape(fb_plan *plan, const void *params, int64_t n, const void *X, void *tape);
int fb_backward(fb_plan *plan, const void *params, int64_t n, const void *X, const void *tape,
                const void *dY, void *dparams, void *dX);
int fb_jvp(fb_plan *plan, const void *params, int64_t n, const void *X, const void *tangent,
           void *Y, void *dY);
int fb_jacobian(fb_plan *plan, const void *params, int64_t n, const void *X, int64_t threads,
                int free_only, void *J);
int fb_input_jacobian(fb_plan *plan, const void *params, int64_t n, const void *X, void *J);
int fb_value_and_grad(fb_plan *plan, const fb_problem *problem, const void *params,
                      int64_t threads, double *value, void *grad);
int fb_row_gradients(fb_plan *plan, const fb_problem *problem, const void *params, void *rows);
int fb_hvp(fb_plan *plan, const fb_problem *problem, const void *params, const void *v,
           int gauss_newton, void *product);
/* JᵀDJ and below it, as one more row, (JᵀDr)ᵀ: (n_free + 1, n_free), or null if only the sum is
 * wanted. */
int fb_normal_equations(fb_plan *plan, const fb_problem *problem, const void *params,
                        int64_t threads, int64_t rho, double rho_scale, void *normal, double *sum);
int fb_jtr_at(fb_plan *plan, const fb_problem *problem, const void *params,
                       const void *moved, int64_t threads, int64_t rho, double rho_scale,
                       void *result);
int fb_descend(fb_plan *plan, const fb_problem *problem, fb_descent *descent); /* steps taken */
int fb_train(fb_plan *plan, const fb_problem *problem, fb_run *run);

#endif
