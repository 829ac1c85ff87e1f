/* Whole networks: forward and backward, by tiles of rows.
 *
 * A tile goes through all layers while it is in the cache. The outputs and deltas of layers lie in
 * the workspace, each row padded to whole vectors; a single column is not padded, so that its rows
 * fill vectors. For dX = dZ·Wᵀ, a W that is not large is transposed once per parameter vector; a
 * large one is transposed as each product packs it.
 */

typedef struct {
    real *p;
    idx ld;
} block; /* a matrix whose rows are ld apart */

/* The buffers of a worker: all point into one workspace. A null pointer: the call needs none. */

typedef struct {
    real *pack; /* PACK_SIZE numbers, for gemm() */
    real *scratch; /* outputs, targets and, in a direction, U of VL rows, for losses */
    block *Y, *Z; /* per layer (rows, ld); Z only where the backward pass reads it */
    int slopes; /* whether act'(Z) takes the place of Z where one program gives it with Y */
    block *A; /* per layer: the input of the next layer, which is Y, or Y times dropout's factors */
    block *factors; /* of dropout, per layer; null if no layer has dropout */
    factor *Wt; /* per layer, but the first unless dX is wanted: the transpose of W */
    block *RZ, *RY; /* per layer: derivatives of Z and Y in a direction of the parameters */
    factor *Vt; /* as Wt, of the direction's W */
    block delta[4]; /* dL/dZ of two layers, and their derivatives in the direction */
    block *D; /* per layer: rows of dL/dZ, where each row of data has its own */
    real *X, *T, *weights; /* rows gathered from a shuffled batch */
    int64_t *labels;
    real *params, *grad, *moments; /* padded copies, for training */
    real *extra; /* need.extra numbers, which the call lays out itself */
    fb_workspace *workspace;
} buffers;

/* The leading dimension of a block with so many columns. */
INLINE idx leading(idx columns) { return columns == 1 ? 1 : round_up(columns); }

/* How many numbers the rows of a block are as one long row: gaps between them are shorter than a
 * vector and hold harmless numbers. */
INLINE idx size_of(idx rows, idx columns, block A) { return (rows - 1) * A.ld + columns; }

/* The rows of a tile, for n rows in all. */
INLINE idx tile_rows(const fb_plan *plan, idx n)
{
    idx most = plan->max_width <= FB_NARROW ? FB_TILE_ROWS : FB_WIDE_TILE_ROWS;
    return n < most ? n : most;
}

/* Which buffers a call needs. */
enum {
    FOR_FORWARD = 1, /* Y */
    FOR_BACKWARD = 2, /* deltas, and Z where the derivative needs it */
    FOR_WEIGHTS = 4, /* Wt */
    FOR_BATCHES = 8, /* X, T, weights, labels */
    FOR_DROPOUT = 16, /* A and factors */
    FOR_TRAINING = 32, /* params, grad, moments */
    FOR_DIRECTION = 64, /* RZ, RY, Vt, and Z of all layers */
    FOR_ROWS = 128, /* D in place of delta */
};

typedef struct {
    int what; /* FOR_... */
    idx rows, deltas; /* of a tile; rows of deltas */
    idx extra; /* how many numbers */
} needs;

/* Take the next `bytes` bytes of a workspace. A line more lies behind them, so that loads of whole
 * vectors stay inside the workspace. */
static void *carve(char **end, size_t bytes)
{
    char *here = *end;
    *end += (bytes + 127) / 64 * 64;
    return here;
}

/* The next `count` numbers. */
#define CARVE(count) carve(&end, sizeof(real) * (size_t)(count))

static char *lay_out_dropout(buffers *B, char *end, const fb_plan *plan, idx rows)
{
    for (idx l = 0; l < plan->n_layers; l++) {
        idx ld = leading(plan->layers[l].n_out);
        int drops = plan->layers[l].dropout > 0;
        B->A[l] = drops ? (block){CARVE(rows * ld), ld} : B->Y[l];
        B->factors[l] = (block){drops ? CARVE(rows * ld) : NULL, ld};
    }
    return end;
}

/* Whether the product of `rows` rows with the transpose of W reads a copy. The transpose of a
 * single column is the column itself. */
INLINE int copies_transpose(idx rows, idx n_in, idx n_out)
{
    return n_out > 1 && wants_copy(rows, n_in, n_out);
}

static char *lay_out_transpose(factor *Wt, char *end, const fb_layer *layer, idx rows)
{
    idx n_in = layer->n_in, n_out = layer->n_out, ld = round_up(n_in);
    *Wt = (factor){copies_transpose(rows, n_in, n_out) ? CARVE(n_out * ld) : NULL, ld, 0};
    return end;
}

static char *lay_out_direction(buffers *B, char *end, const fb_plan *plan, idx rows)
{
    for (idx l = 0; l < plan->n_layers; l++) {
        idx ld = leading(plan->layers[l].n_out);
        B->RZ[l] = (block){CARVE(rows * ld), ld};
        B->RY[l] = (block){CARVE(rows * ld), ld};
        end = lay_out_transpose(B->Vt + l, end, plan->layers + l, rows);
    }
    return end;
}

enum {
    TABLES = 7, /* arrays of a block per layer; there are two arrays of factors besides */
    MOST_MOMENTS = 3 /* vectors of moments that an optimizer has at most */
};

INLINE size_t size_of_tables(const fb_plan *plan)
{
    return (size_t)plan->n_layers * (TABLES * sizeof(block) + 2 * sizeof(factor)) + 256;
}

/* Lay out a workspace from `end` on: set the pointers of B, first those to the tables. Returns the
 * end of the layout. */
static char *lay_out(buffers *B, char *end, const fb_plan *plan, needs need)
{
    idx L = plan->n_layers, rows = need.rows;
    int forward = need.what & FOR_FORWARD, backward = need.what & FOR_BACKWARD;
    int weights = need.what & FOR_WEIGHTS, direction = need.what & FOR_DIRECTION;
    int drops = need.what & FOR_DROPOUT;
    block *tables = carve(&end, (size_t)(TABLES * L) * sizeof(block));
    B->Y = tables, B->Z = tables + L, B->RZ = tables + 2 * L, B->RY = tables + 3 * L;
    B->A = drops ? tables + 4 * L : B->Y, B->factors = drops ? tables + 5 * L : NULL;
    B->D = tables + 6 * L;
    B->slopes = forward && backward && !direction;
    B->Wt = carve(&end, (size_t)(2 * L) * sizeof(factor)), B->Vt = B->Wt + L;
    B->pack = CARVE(PACK_SIZE);
    B->scratch = CARVE((direction ? 3 : 2) * VL * plan->layers[L - 1].n_out);
    for (idx l = 0; l < L; l++) {
        const fb_layer *layer = plan->layers + l;
        idx ld = leading(layer->n_out);
        int keeps_z = direction || (forward && backward && layer->z_column >= 0);
        B->Y[l] = (block){forward ? CARVE(rows * ld) : NULL, ld};
        B->Z[l] = (block){keeps_z ? CARVE(rows * ld) : NULL, ld};
        if (need.what & FOR_ROWS) B->D[l] = (block){CARVE(need.deltas * ld), ld};
        if (weights) end = lay_out_transpose(B->Wt + l, end, layer, need.deltas);
    }
    if (drops) end = lay_out_dropout(B, end, plan, rows);
    if (direction) end = lay_out_direction(B, end, plan, rows);
    int deltas = need.what & FOR_ROWS ? 0 : direction ? 4 : 2;
    for (int i = 0; backward && i < deltas; i++)
        B->delta[i].p = CARVE(need.deltas * round_up(plan->max_width));
    if (need.what & FOR_BATCHES) {
        B->X = CARVE(rows * plan->layers[0].n_in);
        B->T = CARVE(rows * plan->layers[L - 1].n_out);
        B->weights = CARVE(rows);
        B->labels = carve(&end, (size_t)rows * sizeof(int64_t));
    }
    if (need.what & FOR_TRAINING) {
        B->params = CARVE(plan->n_params);
        B->grad = CARVE(plan->n_params);
        B->moments = CARVE(MOST_MOMENTS * round_up(plan->n_params));
    }
    if (need.extra) B->extra = CARVE(need.extra);
    return end;
}

/* Take a workspace and lay it out for the call; if it is too small, take one of the size that the
 * layout came to. Returns 0 without memory. */
static int take_buffers(buffers *B, fb_plan *plan, needs need)
{
    size_t size = size_of_tables(plan);
    memset(B, 0, sizeof *B);
    for (;;) {
        B->workspace = fb_pool_take(&plan->pool, size);
        if (!B->workspace) return 0;
        char *start = B->workspace->bytes;
        size = (size_t)(lay_out(B, start, plan, need) - start);
        if (size <= B->workspace->size) return 1;
        fb_pool_give(&plan->pool, B->workspace);
    }
}

static void give_buffers(buffers *B, fb_plan *plan) { fb_pool_give(&plan->pool, B->workspace); }

/* Whether a layer's B->Z is to hold, or holds, act'(Z). */
INLINE int has_slopes(const buffers *B, const fb_act *act)
{
    return B->slopes && act->kind == FB_USER && !act->user->function;
}

/* The activation of a layer as the backward pass takes it. */
INLINE const fb_act *backward_act(const buffers *B, const fb_layer *layer)
{
    return has_slopes(B, &layer->act) ? &by_slopes : &layer->act;
}

/* One layer: Y = act(XW + b), and Z = XW + b unless Z.p is null, or with `slopes` act'(XW + b). X
 * (rows, ldx), W (n_in, n_out), b (n_out) or null. */
INLINE void layer_forward(idx rows, idx n_in, idx n_out, const fb_act *act, const real *X, idx ldx,
                          const real *W, const real *b, block Y, block Z, int slopes, real *pack)
{
    int rectified = !Z.p && (act->kind == FB_RELU || act->kind == FB_RELU_Z);
    block out = Z.p ? Z : Y;
    real least = rectified ? 0 : (real)-INFINITY;
    if (n_out == 1) {
        row_dots(rows, n_in, X, ldx, W, out.p, (epilogue){b, least, 0, 0});
    } else {
        int padded = out.ld % VL == 0 && out.ld >= round_up(n_out);
        epilogue e = {b, least, 0, padded};
        gemm(rows, n_out, n_in, X, ldx, 1, (factor){W, n_out, 0}, out.p, out.ld, e, pack);
    }
    if (rectified || (act->kind == FB_LINEAR && !Z.p)) return;
    idx size = size_of(rows, n_out, out);
    if (slopes) user_values_and_slopes(act->user, size, Z.p, Y.p);
    else act_apply(act, 0, size, out.p, Y.p);
}

/* sums (+)= the column sums of A (rows, columns), `vectors` vectors wide, at most 4. Several
 * vectors side by side hide the latency of an addition. */
INLINE void column_sums(int vectors, idx rows, idx columns, block A, real *sums, int add)
{
    vec s[4];
    mask last = first_lanes(columns - (vectors - 1) * VL);
    UNROLL for (int v = 0; v < vectors; v++)
        s[v] = !add              ? (vec){0}
               : v < vectors - 1 ? load(sums + v * VL)
                                 : load_first(sums + v * VL, last);
    for (idx i = 0; i < rows; i++)
        UNROLL for (int v = 0; v < vectors; v++) s[v] += load(A.p + i * A.ld + v * VL);
    UNROLL for (int v = 0; v < vectors - 1; v++) store(sums + v * VL, s[v]);
    store_first(sums + (vectors - 1) * VL, last, s[vectors - 1]);
}

/* db (+)= Σ_rows dZ */
static void sum_of_rows(idx rows, idx n_out, block dZ, real *db, int add)
{
    if (dZ.ld == 1) {
        vec s = {0};
        idx i = 0;
        for (; i + VL <= rows; i += VL) s += load(dZ.p + i);
        if (i < rows) s += load_first(dZ.p + i, first_lanes(rows - i));
        *db = (add ? *db : 0) + hsum(s);
        return;
    }
    for (; n_out > 0; n_out -= 4 * VL, dZ.p += 4 * VL, db += 4 * VL) {
        if (n_out > 3 * VL) column_sums(4, rows, n_out < 4 * VL ? n_out : 4 * VL, dZ, db, add);
        else if (n_out > 2 * VL) column_sums(3, rows, n_out, dZ, db, add);
        else if (n_out > VL) column_sums(2, rows, n_out, dZ, db, add);
        else column_sums(1, rows, n_out, dZ, db, add);
    }
}

/* dW (+)= Xᵀ·dZ and db (+)= Σ_rows dZ, unless db is null. Rows of dZ are padded. */
static void layer_gradient(idx rows, idx n_in, idx n_out, const real *X, idx ldx, block dZ, real *dW,
                           real *db, int add, real *pack)
{
    epilogue e = {NULL, (real)-INFINITY, add, 0};
    if (n_out == 1) /* dWᵀ = dZᵀ·X, so that vectors run along the inputs */
        gemm(1, n_in, rows, dZ.p, 0, dZ.ld, (factor){X, ldx, 0}, dW, n_in, e, pack);
    else
        gemm(n_in, n_out, rows, X, 1, ldx, (factor){dZ.p, dZ.ld, 0}, dW, n_out, e, pack);
    if (db) sum_of_rows(rows, n_out, dZ, db, add);
}

/* The transpose of W as a factor of products: written to `copy` if that has memory, else W
 * itself. */
INLINE factor transpose_of(idx n_in, idx n_out, const real *W, factor copy)
{
    if (n_out == 1) return (factor){W, n_in, 0};
    if (!copy.p || copy.transposed) return (factor){W, n_out, 1};
    transpose(n_in, n_out, W, n_out, (real *)(uintptr_t)copy.p, copy.ld);
    return copy;
}

/* dX (+)= dZ·Wᵀ */
static void layer_pullback(idx rows, idx n_in, idx n_out, block dZ, factor Wt, block dX, int add,
                           real *pack)
{
    int padded = dX.ld % VL == 0 && dX.ld >= round_up(n_in);
    epilogue e = {NULL, (real)-INFINITY, add, padded};
    gemm(rows, n_in, n_out, dZ.p, dZ.ld, 1, Wt, dX.p, dX.ld, e, pack);
}

/* Wt of all layers; of the first one only with `first_too`, as only dL/dX needs it. */
static void transpose_weights(const fb_plan *plan, const real *params, int first_too, factor *Wt)
{
    for (idx l = !first_too; l < plan->n_layers; l++) {
        const fb_layer *layer = plan->layers + l;
        Wt[l] = transpose_of(layer->n_in, layer->n_out, params + layer->w, Wt[l]);
    }
}

/* Y, A and where it has memory Z of all layers, for a tile X (rows, n_in). */
static void tile_forward(const fb_plan *plan, const buffers *B, const real *params, idx rows,
                         const real *X)
{
    idx ldx = plan->layers[0].n_in;
    const block *factors = B->factors;
    for (idx l = 0; l < plan->n_layers; l++) {
        const fb_layer *layer = plan->layers + l;
        const real *b = layer->b < 0 ? NULL : params + layer->b;
        layer_forward(rows, layer->n_in, layer->n_out, &layer->act, X, ldx, params + layer->w, b,
                      B->Y[l], B->Z[l], has_slopes(B, &layer->act), B->pack);
        if (factors && factors[l].p)
            multiply(size_of(rows, layer->n_out, B->Y[l]), B->Y[l].p, factors[l].p, B->A[l].p);
        X = B->A[l].p, ldx = B->A[l].ld;
    }
}

/* The outputs of all layers for all rows of a problem, from one sum over the rows to the next. For
 * one worker only: a tile writes past its last row, and the next tile overwrites that. */
struct fb_outputs {
    block *table; /* per layer: Y of the present tile */
    real *Y; /* per layer (n, leading(n_out)) and a vector; null if they are not to be recorded */
    int recorded; /* whether Y holds the outputs */
};

INLINE idx size_of_outputs(const fb_plan *plan, idx n)
{
    idx size = 0;
    for (idx l = 0; l < plan->n_layers; l++)
        size += round_up(n * leading(plan->layers[l].n_out)) + VL;
    return size;
}

/* The outputs of rows i.. of n, computed unless they are recorded. Returns B with Y, of which the
 * caller reads them. */
static buffers recorded_forward(const fb_plan *plan, const buffers *B, const fb_outputs *record,
                                idx n, idx i, const real *params, idx rows, const real *X)
{
    buffers K = *B;
    if (record && record->Y) {
        real *Y = record->Y;
        K.Y = K.A = record->table;
        for (idx l = 0; l < plan->n_layers; l++) {
            idx ld = leading(plan->layers[l].n_out);
            K.Y[l] = (block){Y + i * ld, ld};
            Y += round_up(n * ld) + VL;
        }
        if (record->recorded) return K;
    }
    tile_forward(plan, &K, params, rows, X);
    return K;
}

/* grad (n_params) (+)= the gradient, from dL/dY of the last layer in delta[0], which it overwrites;
 * dX (rows, n_in) = dL/dX unless dX is null. */
static void tile_backward(const fb_plan *plan, const buffers *B, idx rows, const real *X, real *grad,
                          int add, real *dX)
{
    block d = B->delta[0], other = B->delta[1];
    const block *factors = B->factors;
    d.ld = leading(plan->layers[plan->n_layers - 1].n_out);
    for (idx l = plan->n_layers - 1; l >= 0; l--) {
        const fb_layer *layer = plan->layers + l;
        idx n_in = layer->n_in, n_out = layer->n_out;
        block Y = B->Y[l], Z = B->Z[l];
        if (factors && factors[l].p) multiply(size_of(rows, n_out, d), d.p, factors[l].p, d.p);
        act_backward(backward_act(B, layer), rows, n_out, d.p, d.ld, Y.p, Y.ld, Z.p, Z.ld, d.p,
                     d.ld);
        const real *input = l ? B->A[l - 1].p : X;
        idx ld_input = l ? B->A[l - 1].ld : n_in;
        real *db = layer->b < 0 ? NULL : grad + layer->b;
        layer_gradient(rows, n_in, n_out, input, ld_input, d, grad + layer->w, db, add, B->pack);
        if (l == 0 && !dX) break;
        other.ld = leading(n_in);
        if (l == 0) other = (block){dX, n_in};
        layer_pullback(rows, n_in, n_out, d, B->Wt[l], other, 0, B->pack);
        block swap = d;
        d = other, other = swap;
    }
}

/* Point the layers' Y and Z to rows i.. of the tape. */
static void use_tape(const fb_plan *plan, buffers *B, real *tape, idx n, idx i)
{
    for (idx l = 0; l < plan->n_layers; l++) {
        const fb_layer *layer = plan->layers + l;
        B->Y[l] = (block){tape + n * layer->y_column + i * layer->n_out, layer->n_out};
        if (layer->z_column >= 0)
            B->Z[l] = (block){tape + n * layer->z_column + i * layer->n_out, layer->n_out};
    }
}

/* Y (n, n_out) = the outputs or, if it is null, those of all layers to the tape. */
static int forward_to(fb_plan *plan, const real *params, idx n, const real *X, real *Y, real *tape)
{
    idx most = tile_rows(plan, n), n_in = plan->layers[0].n_in;
    idx last = plan->n_layers - 1, n_out = plan->layers[last].n_out;
    buffers B;
    if (!take_buffers(&B, plan, (needs){Y ? FOR_FORWARD : 0, most, 0, 0})) return FB_NO_MEMORY;
    for (idx i = 0; i < n; i += most) {
        if (Y) B.Y[last] = (block){Y + i * n_out, n_out}; /* the result itself, without gaps */
        else use_tape(plan, &B, tape, n, i);
        tile_forward(plan, &B, params, n - i < most ? n - i : most, X + i * n_in);
    }
    give_buffers(&B, plan);
    return FB_DONE;
}

static int forward(fb_plan *plan, const void *params, idx n, const void *X, void *Y)
{
    return forward_to(plan, params, n, X, Y, NULL);
}

static int forward_tape(fb_plan *plan, const void *params, idx n, const void *X, void *tape)
{
    return forward_to(plan, params, n, X, NULL, tape);
}

static int backward(fb_plan *plan, const void *params, idx n, const void *X_, const void *tape,
                    const void *dY_, void *dparams, void *dX_)
{
    const real *X = X_, *dY = dY_;
    real *dX = dX_;
    idx most = tile_rows(plan, n), n_in = plan->layers[0].n_in;
    idx n_out = plan->layers[plan->n_layers - 1].n_out, ld = leading(n_out);
    buffers B;
    if (!take_buffers(&B, plan, (needs){FOR_BACKWARD | FOR_WEIGHTS, most, most, 0}))
        return FB_NO_MEMORY;
    transpose_weights(plan, params, dX != NULL, B.Wt);
    if (n == 0) memset(dparams, 0, (size_t)plan->n_params * sizeof(real));
    for (idx i = 0; i < n; i += most) {
        idx rows = n - i < most ? n - i : most;
        use_tape(plan, &B, (real *)(uintptr_t)tape, n, i);
        for (idx r = 0; r < rows; r++)
            memcpy(B.delta[0].p + r * ld, dY + (i + r) * n_out, (size_t)n_out * sizeof(real));
        tile_backward(plan, &B, rows, X + i * n_in, dparams, i > 0, dX ? dX + i * n_in : NULL);
    }
    give_buffers(&B, plan);
    return FB_DONE;
}
