/* Which instruction set runs, plans, and the public functions.
 *
 * The levels: baseline is what every processor of the platform has (SSE2 on x86-64, NEON on ARM64),
 * avx2 (with FMA) came to x86 with Haswell in 2013 and Zen, avx512 (F, BW, DQ, VL) with Skylake-X
 * in 2017 and Zen 4. Wider vectors stand only in functions compiled for them, chosen here at run
 * time.
 */
#include "core/internal.h"

#include <stdlib.h>
#include <string.h>

extern const fb_table fb_baseline_f32, fb_baseline_f64;
#if defined(__x86_64__)
extern const fb_table fb_avx2_f32, fb_avx2_f64, fb_avx512_f32, fb_avx512_f64;
#endif

static const char *const level_names[] = {"baseline", "avx2", "avx512"};

static const fb_table *const tables[][2] = {
    {&fb_baseline_f32, &fb_baseline_f64},
#if defined(__x86_64__)
    {&fb_avx2_f32, &fb_avx2_f64},
    {&fb_avx512_f32, &fb_avx512_f64},
#endif
};

static int supported_level(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init(); /* asks the operating system too whether it saves the wide registers */
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return 2;
    return 1;
#else
    return 0;
#endif
}

static int level = 0;

int fb_set_isa(const char *cap)
{
    int most = supported_level();
    if (cap) {
        int i = 0;
        while (i < 3 && strcmp(cap, level_names[i]) != 0) i++;
        if (i == 3) return 0;
        if (i < most) most = i;
    }
    level = most;
    return 1;
}

const char *fb_isa(void) { return level_names[level]; }

const char *fb_compiler(void)
{
#if defined(__clang__)
    return "clang " __clang_version__;
#else
    return "gcc " __VERSION__;
#endif
}

static fb_pool kernel_pool; /* for calls without a plan */

static fb_act act_of(int64_t kind, double constant, const fb_user *user)
{
    return (fb_act){(int)kind, constant, user};
}

/* Plans. */

/* Append the places of those of `count` parameters that are free, a row of W or fewer to a row;
 * returns how many there are. */
static idx list_free(fb_plan *plan, idx first, idx count, idx n_out)
{
    idx before = plan->n_free;
    if (!plan->free) plan->n_free += count;
    for (idx k = 0; plan->free && k < count; k++)
        if (plan->free[first + k])
            plan->places[plan->n_free++] = (fb_place){k / n_out, k % n_out};
    return plan->n_free - before;
}

fb_plan *fb_plan_new(int is_double, int64_t n_layers, const int64_t *layers,
                     const double *constants, const fb_user *const *users, const double *dropout,
                     const uint8_t *free, int64_t n_params, int64_t tape_width)
{
    size_t size = sizeof(fb_plan) + (size_t)n_layers * sizeof(fb_layer);
    size_t per_parameter = free ? sizeof(fb_place) + 1 : 0;
    fb_plan *plan = malloc(size + (size_t)n_params * per_parameter);
    if (!plan) return NULL;
    plan->places = (fb_place *)(void *)((char *)plan + size);
    plan->free = free ? memcpy(plan->places + n_params, free, (size_t)n_params) : NULL;
    plan->n_free = 0;
    plan->drops = 0;
    plan->table = tables[level][is_double != 0];
    plan->half = tables[level < 1 ? level : 1][is_double != 0];
    plan->is_double = is_double;
    fb_pool_init(&plan->pool);
    plan->n_layers = (idx)n_layers;
    plan->n_params = (idx)n_params;
    plan->tape_width = (idx)tape_width;
    plan->max_width = (idx)layers[FB_N_IN];
    for (idx l = 0; l < plan->n_layers; l++) {
        const int64_t *row = layers + FB_LAYER_COLUMNS * l;
        plan->layers[l] = (fb_layer){.n_in = (idx)row[FB_N_IN],
                                     .n_out = (idx)row[FB_N_OUT],
                                     .w = (idx)row[FB_W_OFFSET],
                                     .b = (idx)row[FB_B_OFFSET],
                                     .y_column = (idx)row[FB_Y_COLUMN],
                                     .z_column = (idx)row[FB_Z_COLUMN],
                                     .act = act_of(row[FB_ACTIVATION], constants[l], users[l]),
                                     .dropout = dropout ? dropout[l] : 0};
        fb_layer *layer = plan->layers + l;
        layer->places = plan->free ? plan->places + plan->n_free : NULL;
        idx n_out = layer->n_out, n_biases = layer->b < 0 ? 0 : n_out;
        layer->free_weights = list_free(plan, layer->w, layer->n_in * n_out, n_out);
        layer->free_biases = list_free(plan, layer->b, n_biases, n_out);
        if (plan->layers[l].dropout > 0) plan->drops = 1;
        if (plan->layers[l].n_out > plan->max_width) plan->max_width = plan->layers[l].n_out;
    }
    return plan;
}

void fb_plan_free(fb_plan *plan)
{
    if (!plan) return;
    fb_pool_free(&plan->pool);
    free(plan);
}

/* The public functions. */

static const fb_table *kernels(int is_double) { return tables[level][is_double != 0]; }

void fb_evaluate(int is_double, const fb_program *program, const double *parameters, int64_t n,
                 const void *const *inputs, void *const *outputs)
{
    kernels(is_double)->evaluate(program, parameters, (idx)n, inputs, outputs);
}

void fb_activation(int is_double, int64_t kind, double constant, const fb_user *user, int order,
                   int64_t size, const void *Z, void *result)
{
    fb_act act = act_of(kind, constant, user);
    kernels(is_double)->activation(&act, order, (idx)size, Z, result);
}

int fb_dense_forward(int is_double, int64_t n, int64_t n_in, int64_t n_out, int64_t kind,
                     double constant, const fb_user *user, const void *X, const void *W,
                     const void *b, void *Y, void *Z)
{
    fb_act act = act_of(kind, constant, user);
    return kernels(is_double)->dense_forward(&kernel_pool, (idx)n, (idx)n_in, (idx)n_out, &act, X,
                                             W, b, Y, Z);
}

int fb_dense_backward(int is_double, int64_t n, int64_t n_in, int64_t n_out, int64_t kind,
                      double constant, const fb_user *user, const void *dY, const void *X,
                      const void *W, const void *Y, const void *Z, void *dX, void *dW, void *db)
{
    fb_act act = act_of(kind, constant, user);
    return kernels(is_double)->dense_backward(&kernel_pool, (idx)n, (idx)n_in, (idx)n_out, &act,
                                              dY, X, W, Y, Z, dX, dW, db);
}

int fb_forward(fb_plan *plan, const void *params, int64_t n, const void *X, void *Y)
{
    return plan->table->forward(plan, params, (idx)n, X, Y);
}

int fb_forward_tape(fb_plan *plan, const void *params, int64_t n, const void *X, void *tape)
{
    return plan->table->forward_tape(plan, params, (idx)n, X, tape);
}

int fb_backward(fb_plan *plan, const void *params, int64_t n, const void *X, const void *tape,
                const void *dY, void *dparams, void *dX)
{
    return plan->table->backward(plan, params, (idx)n, X, tape, dY, dparams, dX);
}

int fb_jvp(fb_plan *plan, const void *params, int64_t n, const void *X, const void *tangent,
           void *Y, void *dY)
{
    return plan->table->jvp(plan, params, (idx)n, X, tangent, Y, dY);
}

int fb_jacobian(fb_plan *plan, const void *params, int64_t n, const void *X, int64_t threads,
                int free_only, void *J)
{
    return plan->table->jacobian(plan, params, (idx)n, X, (idx)threads, free_only, J);
}

int fb_input_jacobian(fb_plan *plan, const void *params, int64_t n, const void *X, void *J)
{
    return plan->table->input_jacobian(plan, params, (idx)n, X, J);
}

/* Lane-major sums whose rows fit half a vector of AVX-512 take 0.7 to 0.85 of the time with
 * AVX2. */
static const fb_table *table_for_sum(const fb_plan *plan, int64_t rows)
{
    int64_t bytes = rows * (int64_t)(plan->is_double ? sizeof(double) : sizeof(float));
    int is_short = fb_is_lane_major(plan, (idx)rows) && bytes <= FB_LANE_MAJOR_SHORT_BYTES;
    return is_short ? plan->half : plan->table;
}

int fb_value_and_grad(fb_plan *plan, const fb_problem *problem, const void *params,
                      int64_t threads, double *value, void *grad)
{
    return table_for_sum(plan, problem->n)
        ->value_and_grad(plan, problem, params, (idx)threads, value, grad);
}

int fb_row_gradients(fb_plan *plan, const fb_problem *problem, const void *params, void *rows)
{
    return plan->table->row_gradients(plan, problem, params, rows);
}

int fb_hvp(fb_plan *plan, const fb_problem *problem, const void *params, const void *v,
           int gauss_newton, void *product)
{
    return plan->table->hvp(plan, problem, params, v, gauss_newton, product);
}

int fb_normal_equations(fb_plan *plan, const fb_problem *problem, const void *params,
                        int64_t threads, int64_t rho, double rho_scale, void *normal, double *sum)
{
    fb_rho robust = {(int)rho, rho_scale};
    return plan->table->normal_equations(plan, problem, params, (idx)threads, robust, NULL, normal,
                                         sum);
}

int fb_jtr_at(fb_plan *plan, const fb_problem *problem, const void *params,
                       const void *moved, int64_t threads, int64_t rho, double rho_scale,
                       void *result)
{
    fb_rho robust = {(int)rho, rho_scale};
    return plan->table->jtr_at(plan, problem, params, moved, (idx)threads, robust, NULL, result);
}

int fb_descend(fb_plan *plan, const fb_problem *problem, fb_descent *descent)
{
    return plan->table->descend(plan, problem, descent);
}

int fb_fit_curve(const fb_curve *curve, fb_descent *descent)
{
    fb_pool pool; /* of one call: a curve has no plan that would keep its workspace */
    fb_pool_init(&pool);
    int code = kernels(1)->fit_curve(&pool, curve, descent);
    fb_pool_free(&pool);
    return code;
}

void fb_curve_residuals(const fb_curve *curve, const double *params, double *r, double *J)
{
    kernels(1)->curve_residuals(curve, params, r, J);
}

int fb_train(fb_plan *plan, const fb_problem *problem, fb_run *run)
{
    return table_for_sum(plan, run->batch_size)->train(plan, problem, run);
}
