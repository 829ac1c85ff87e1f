/* The C interface of fastbp: the functions that fastbp/backends/native.py calls. cffi reads this
 * header and no other. fastbp/backends/contract.py says what the functions compute.
 *
 * Arrays are void *, of float or double as the `is_double` of the call or plan says, row-major and
 * without gaps; the caller has checked them. Shapes: X (n, n_in), W (n_in, n_out), b (n_out), Y and
 * Z (n, n_out), params (n_params), dA as A; `threads` is at least 1. Functions that return int give
 * FB_DONE, or FB_NO_MEMORY if memory runs out; the others cannot fail. Every function may be called
 * from several threads at once, also on the same plan.
 */
#ifndef FASTBP_H
#define FASTBP_H

#include <stdint.h>

#include "constants.h"

#define FB_NO_MEMORY -1 /* in place of FB_DONE, a stop code or a count */

/* Expressions as code; the fields are those of fastbp/maths/programs.py, which explains them. */
typedef struct {
    const int16_t *code;
    const double *constants;
    int64_t n_instructions, n_once, n_constants, n_parameters;
    int64_t n_uniforms, n_inputs, n_registers, n_outputs;
} fb_program;

/* A user's activation or loss: the address of a compiled function or, where that is 0, programs. For
 * an activation they give f, f', f'', and f with f'; for a loss ℓ, ℓ with ℓ', and ℓ''. */
typedef struct {
    uintptr_t function;
    const fb_program *programs[4];
} fb_user;

/* A network, and the workspaces of calls on it. */
typedef struct fb_plan fb_plan;

/* An objective over fixed data: X (n, n_in), weights (n) or null, and as the loss demands either y
 * (n, n_targets) or labels (n). `user` is the loss of FB_USER_LOSS, else null. */
typedef struct {
    const void *X, *y, *weights;
    const int64_t *labels;
    int64_t n, n_targets;
    int64_t loss;
    const fb_user *user;
    double constant, scale, l2, l1, group;
} fb_problem;

/* Some steps of a training run. The fields are those of the contract's TrainState and TrainConfig,
 * which explain them, and then the other arguments of its train(). `validation` may be null. */
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

/* A search by Levenberg and Marquardt's method. The fields are those of the contract's LMState and
 * LMOptions, which explain them; mu_dec and mu_inc are 0 for None, lower and upper, the bounds of
 * the free parameters, null for none. All numbers are float64. */
typedef struct {
    double *params, *normal, *scales, *state;
    const double *prior, *lower, *upper;
    double mu_dec, mu_inc, mu_max, ftol, xtol, gtol, min_grad, goal, rho_scale;
    int64_t uniform, bend, rho, threads, steps;
    double *records;
} fb_descent;

/* A curve f(x; p) and its data. `value` computes f and `slopes` its derivatives by the n_params
 * parameters, from columns of n numbers each. weights (n) is null for 1. All numbers are
 * float64. */
typedef struct {
    const fb_program *value, *slopes;
    const double *const *columns;
    const double *y, *weights;
    int64_t n, n_params;
} fb_curve;

/* fb_isa() names the instruction set in use: "avx512", "avx2" or "baseline". fb_set_isa() chooses
 * the highest one that the processor has, up to `cap` unless that is null; it returns 0 for an
 * unknown name. Call it before any plan is made. fb_compiler() names the compiler and its
 * version. */
const char *fb_isa(void);
int fb_set_isa(const char *cap);
const char *fb_compiler(void);

/* layers (n_layers, FB_LAYER_COLUMNS): the contract's layer table. Per layer also the activation's
 * constant, a user's activation (else null) and the share of outputs that training drops (null:
 * none). Per parameter whether it is free, so that training may change it (null: all
 * are). Copies all arrays; returns null without memory. */
fb_plan *fb_plan_new(int is_double, int64_t n_layers, const int64_t *layers,
                     const double *constants, const fb_user *const *users, const double *dropout,
                     const uint8_t *free, int64_t n_params, int64_t tape_width);
void fb_plan_free(fb_plan *plan);

/* outputs[k] (n) = the k-th expression of a program of the inputs (n each) and parameters. The last
 * output may be inputs[0]; the others lie apart. */
void fb_evaluate(int is_double, const fb_program *program, const double *parameters, int64_t n,
                 const void *const *inputs, void *const *outputs);

/* result (size) = act(Z) for order 0, its first or second derivative for order 1 or 2. */
void fb_activation(int is_double, int64_t kind, double constant, const fb_user *user, int order,
                   int64_t size, const void *Z, void *result);
/* One dense layer. b, Z, dX and db may be null; backward reads Z only if the activation needs
 * it. */
int fb_dense_forward(int is_double, int64_t n, int64_t n_in, int64_t n_out, int64_t kind,
                     double constant, const fb_user *user, const void *X, const void *W,
                     const void *b, void *Y, void *Z);
int fb_dense_backward(int is_double, int64_t n, int64_t n_in, int64_t n_out, int64_t kind,
                      double constant, const fb_user *user, const void *dY, const void *X,
                      const void *W, const void *Y, const void *Z, void *dX, void *dW, void *db);

/* The network. The tape has n·tape_width numbers: a layer's Y (n, n_out), and Z if it has a column,
 * begins at n times its column in the layer table. */
int fb_forward(fb_plan *plan, const void *params, int64_t n, const void *X, void *Y);
int fb_forward_tape(fb_plan *plan, const void *params, int64_t n, const void *X, void *tape);
int fb_backward(fb_plan *plan, const void *params, int64_t n, const void *X, const void *tape,
                const void *dY, void *dparams, void *dX);
/* dY = the derivative of Y along `tangent` (n_params). */
int fb_jvp(fb_plan *plan, const void *params, int64_t n, const void *X, const void *tangent,
           void *Y, void *dY);
/* J (n·n_out, n_params), or (n·n_out, n_free) if free_only; input Jacobian J (n, n_out, n_in). */
int fb_jacobian(fb_plan *plan, const void *params, int64_t n, const void *X, int64_t threads,
                int free_only, void *J);
int fb_input_jacobian(fb_plan *plan, const void *params, int64_t n, const void *X, void *J);
/* The objective; grad (n_params) may be null. */
int fb_value_and_grad(fb_plan *plan, const fb_problem *problem, const void *params,
                      int64_t threads, double *value, void *grad);
/* rows (n, n_params): the gradient of each row's term of the objective, without penalties. */
int fb_row_gradients(fb_plan *plan, const fb_problem *problem, const void *params, void *rows);
/* product (n_params) = the Hessian, or the Gauss-Newton matrix, times v; without penalties. */
int fb_hvp(fb_plan *plan, const fb_problem *problem, const void *params, const void *v,
           int gauss_newton, void *product);
/* normal (n_free + 1, n_free): JᵀDJ and, as its last row, (JᵀDr)ᵀ; null if only the sum of squares
 * is wanted. D is the diagonal of w·rho' at the residuals r = Y - y. */
int fb_normal_equations(fb_plan *plan, const fb_problem *problem, const void *params,
                        int64_t threads, int64_t rho, double rho_scale, void *normal, double *sum);
/* result (n_free) = JᵀDr with J and D at params, r at moved (n_params). */
int fb_jtr_at(fb_plan *plan, const fb_problem *problem, const void *params,
                       const void *moved, int64_t threads, int64_t rho, double rho_scale,
                       void *result);
/* Returns the number of steps. */
int fb_descend(fb_plan *plan, const fb_problem *problem, fb_descent *descent);
/* The same for a curve; row 0 of the records is that of the point where the call begins. */
int fb_fit_curve(const fb_curve *curve, fb_descent *descent);
/* r (n) = weights·(f - y) and J (n_params, n), its derivatives, at params. */
void fb_curve_residuals(const fb_curve *curve, const double *params, double *r, double *J);
/* Returns why it stopped: a stop code of the contract, FB_DONE after the last step. */
int fb_train(fb_plan *plan, const fb_problem *problem, fb_run *run);

#endif
