/* What the C files and the templated sources share: plans, workspaces, threads and the table of
 * functions.
 *
 * A workspace is one aligned block of memory. A plan keeps those that its calls have returned, so a
 * call in steady state allocates nothing, and any number of threads may use a plan at once: each
 * takes a block of its own.
 */
#ifndef FB_INTERNAL_H
#define FB_INTERNAL_H

#include <stddef.h>
#include <stdint.h>

#include "../fastbp.h"

typedef ptrdiff_t idx;

typedef struct {
    size_t size;
    _Alignas(64) char bytes[];
} fb_workspace;

/* Threads share the parts of a sum over rows, so that no more than FB_MOST_PARTS can be of use. */
enum { FB_POOL_SLOTS = FB_MOST_PARTS };

typedef struct {
    fb_workspace *_Atomic slots[FB_POOL_SLOTS];
} fb_pool;

void fb_pool_init(fb_pool *pool);
void fb_pool_free(fb_pool *pool);

/* A block of at least that size (null without memory), and its return. */
fb_workspace *fb_take(fb_pool *pool, size_t size);
void fb_give(fb_pool *pool, fb_workspace *workspace);

/* The workers of a call: the caller and threads that live no longer than the call does. A null team
 * is the caller alone. */
typedef struct fb_team fb_team;

/* compute() is called once for each part, on any worker (numbered from 0, the caller), and merge(),
 * if there is one, for the parts in their order, one at a time. No part is begun before all parts
 * but the `window` last ones before it are merged, so that so many results need a place. */
typedef struct {
    void (*compute)(void *context, idx worker, idx part);
    void (*merge)(void *context, idx part);
    void *context;
    idx parts, window;
} fb_work;

/* A team of at most that many workers, fewer if threads cannot be had; null for one. */
fb_team *fb_team_new(idx workers);
void fb_team_free(fb_team *team);
void fb_share(fb_team *team, const fb_work *work);

/* A user's activation: out is its values (order 0) or derivatives (1, 2), z and out may be the same;
 * or out times its derivatives (3). */
typedef void fb_function(int64_t order, int64_t n, const void *z, void *out);

typedef struct {
    int kind;
    double constant;
    fb_function *function; /* for FB_USER */
} fb_act;

/* A weight's row and column in W, or a bias's column. */
typedef struct {
    idx i, j;
} fb_place;

typedef struct {
    idx n_in, n_out, w, b; /* sizes; offsets in the parameters, b is -1 without bias */
    idx free_weights, free_biases; /* how many training may change */
    const fb_place *places; /* of those, weights first; null if the plan's `free` is */
    idx y_column, z_column; /* places in the tape, z is -1 where it is not kept */
    fb_act act;
    double dropout; /* share of the outputs that training drops */
} fb_layer;

/* How a residual r counts in a sum of squares: as scale²·rho((r/scale)²). */
typedef struct {
    int kind;
    double scale;
} fb_rho;

typedef struct fb_table fb_table; /* the functions of an instruction set and dtype */

struct fb_plan {
    const fb_table *table, *half; /* half: with vectors of at most 32 bytes */
    int is_double;
    fb_pool pool;
    idx n_layers, n_params, tape_width, max_width; /* max_width: the widest layer, input included */
    int drops; /* whether any layer has dropout */
    uint8_t *free; /* per parameter whether training may change it; null for all */
    idx n_free; /* how many */
    fb_place *places; /* of the free ones; unset if all are */
    fb_layer layers[];
};

/* Whether a sum over the losses of rows treats the network as slim: with rows along vectors, see
 * slim.h. Training steps of n-n-n tanh networks up to these widths, on 1 to 64 rows, then take 0.3
 * to 1 of the time, the least with many rows of few units; beyond, units fill vectors better. */
static inline int fb_is_slim(const fb_plan *plan, idx rows)
{
    idx width = rows < FB_LANE_MAJOR_FEW_ROWS ? FB_LANE_MAJOR_WIDTH_FOR_FEW
                : plan->is_double             ? FB_LANE_MAJOR_WIDTH_OF_DOUBLES
                                              : FB_LANE_MAJOR_WIDTH;
    return plan->max_width <= width;
}

/* One instruction set and dtype: the functions of fastbp.h without the choice. */
struct fb_table {
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
                            idx threads, fb_rho rho, void *normal, double *sum);
    int (*gradient_beyond)(fb_plan *plan, const fb_problem *problem, const void *params,
                           const void *moved, idx threads, fb_rho rho, void *result);
    int (*descend)(fb_plan *plan, const fb_problem *problem, fb_descent *descent); /* f64 only */
    int (*train)(fb_plan *plan, const fb_problem *problem, fb_run *run);
};

#endif
