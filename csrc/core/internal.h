/* What the C files and the templated sources share: workspaces, threads, plans and the table of
 * functions of one instruction set and dtype.
 */
#ifndef FB_INTERNAL_H
#define FB_INTERNAL_H

#include <stddef.h>
#include <stdint.h>

#include "../fastbp.h"

typedef ptrdiff_t idx;

/* Workspaces (workspace.c). */

/* A workspace is one aligned block of memory, of `size` bytes. */
typedef struct {
    size_t size;
    _Alignas(64) char bytes[];
} fb_workspace;

/* A pool holds the workspaces that no call uses at the moment, so that a call in steady state
 * allocates nothing. Threads may use one pool at once: each takes another workspace. A call on
 * several threads takes at most FB_MOST_PARTS of them; what finds no slot is freed. */
enum { FB_POOL_SLOTS = FB_MOST_PARTS };

typedef struct {
    fb_workspace *_Atomic slots[FB_POOL_SLOTS];
} fb_pool;

void fb_pool_init(fb_pool *pool);
void fb_pool_free(fb_pool *pool);

/* Take a workspace of at least `size` bytes (null without memory), and give it back. */
fb_workspace *fb_pool_take(fb_pool *pool, size_t size);
void fb_pool_give(fb_pool *pool, fb_workspace *workspace);

/* Threads (threads.c). */

/* The workers of a call: worker 0 is the calling thread, the others are threads that end with the
 * call. A null team is the calling thread alone. */
typedef struct fb_team fb_team;

/* A work of `parts` parts, at most FB_MOST_PARTS. compute() is called once for each part, by any
 * worker; merge(), unless it is null, for the parts in their order, one at a time. Part p begins
 * when the parts up to p - window are merged, so that `window` results need memory at a time. */
typedef struct {
    void (*compute)(void *context, idx worker, idx part);
    void (*merge)(void *context, idx part);
    void *context;
    idx parts, window;
} fb_work;

/* A team of at most `workers` workers, fewer if the system starts fewer threads; null for one. The
 * result of a work does not depend on how many they are. */
fb_team *fb_team_new(idx workers);
void fb_team_free(fb_team *team);
void fb_team_run(fb_team *team, const fb_work *work);

/* Plans. */

/* A user's activation on the n numbers z. It writes to `out`, which may be z, the values (order 0)
 * or derivatives (1, 2), or multiplies `out` by the first derivatives (3). */
typedef void fb_function(int64_t order, int64_t n, const void *z, void *out);

typedef struct {
    int kind;
    double constant;
    const fb_user *user; /* for FB_USER */
} fb_act;

/* A weight's row and column in W, or a bias's column. */
typedef struct {
    idx i, j;
} fb_place;

typedef struct {
    idx n_in, n_out, w, b; /* sizes; offsets in the parameters, b is -1 without bias */
    idx free_weights, free_biases; /* how many of them training may change */
    const fb_place *places; /* of free weights, then of free biases; null if plan->free is */
    idx y_column, z_column; /* columns of Y and Z in the tape, -1 for a Z that is not on it */
    fb_act act;
    double dropout; /* share of the outputs that training drops */
} fb_layer;

/* How a residual r counts in a sum of squares: as scale²·rho((r/scale)²). */
typedef struct {
    int kind;
    double scale;
} fb_rho;

typedef struct fb_outputs fb_outputs; /* of all layers, in network.h; null for none */
typedef struct fb_table fb_table; /* the functions of an instruction set and dtype */

struct fb_plan {
    const fb_table *table, *half; /* half: the one with vectors of at most 32 bytes */
    int is_double;
    fb_pool pool;
    idx n_layers, n_params, tape_width, max_width; /* max_width: the widest layer, input included */
    int drops; /* whether any layer has dropout */
    uint8_t *free; /* per parameter whether training may change it; null for all */
    idx n_free; /* how many parameters are free */
    fb_place *places; /* of the free parameters, layer by layer; unset if `free` is null */
    fb_layer layers[];
};

/* Whether a sum over the losses of `rows` rows runs lane-major (core/lane_major.h). Training steps
 * of n-n-n tanh networks up to these widths, on 1 to 64 rows, then take 0.3 to 1 of the time, least
 * with many rows of few units; units of wider networks fill vectors better. */
static inline int fb_is_lane_major(const fb_plan *plan, idx rows)
{
    idx width = rows < FB_LANE_MAJOR_FEW_ROWS ? FB_LANE_MAJOR_WIDTH_FOR_FEW
                : plan->is_double             ? FB_LANE_MAJOR_WIDTH_OF_DOUBLES
                                              : FB_LANE_MAJOR_WIDTH;
    return plan->max_width <= width;
}

/* The functions of fastbp.h for one instruction set and dtype. */
struct fb_table {
    void (*evaluate)(const fb_program *program, const double *parameters, idx n,
                     const void *const *inputs, void *const *outputs);
    void (*activation)(const fb_act *act, int order, idx n, const void *Z, void *out);
    int (*dense_forward)(fb_pool *pool, idx n, idx n_in, idx n_out, const fb_act *act,
                         const void *X, const void *W, const void *b, void *Y, void *Z);
    int (*dense_backward)(fb_pool *pool, idx n, idx n_in, idx n_out, const fb_act *act,
                          const void *dY, const void *X, const void *W, const void *Y,
                          const void *Z, void *dX, void *dW, void *db);
    int (*forward)(fb_plan *plan, const void *params, idx n, const void *X, void *Y);
    int (*forward_tape)(fb_plan *plan, const void *params, idx n, const void *X, void *tape);
    int (*backward)(fb_plan *plan, const void *params, idx n, const void *X, const void *tape,
                    const void *dY, void *dparams, void *dX);
    int (*jvp)(fb_plan *plan, const void *params, idx n, const void *X, const void *tangent,
               void *Y, void *dY);
    int (*jacobian)(fb_plan *plan, const void *params, idx n, const void *X, idx threads,
                    int free_only, void *J);
    int (*input_jacobian)(fb_plan *plan, const void *params, idx n, const void *X, void *J);
    int (*value_and_grad)(fb_plan *plan, const fb_problem *problem, const void *params,
                          idx threads, double *value, void *grad);
    int (*row_gradients)(fb_plan *plan, const fb_problem *problem, const void *params, void *rows);
    int (*hvp)(fb_plan *plan, const fb_problem *problem, const void *params, const void *v,
               int gauss_newton, void *product);
    int (*normal_equations)(fb_plan *plan, const fb_problem *problem, const void *params,
                            idx threads, fb_rho rho, fb_outputs *at_params, void *normal,
                            double *sum);
    int (*jtr_at)(fb_plan *plan, const fb_problem *problem, const void *params, const void *moved,
                  idx threads, fb_rho rho, fb_outputs *at_params, void *result);
    int (*descend)(fb_plan *plan, const fb_problem *problem, fb_descent *descent); /* f64 only */
    int (*fit_curve)(fb_pool *pool, const fb_curve *curve, fb_descent *descent); /* f64 only */
    void (*curve_residuals)(const fb_curve *curve, const void *params, void *r, void *J);
    int (*train)(fb_plan *plan, const fb_problem *problem, fb_run *run);
};

#endif
