/* Whole networks: forward, backward and the objective, over tiles of rows.
 *
 * A tile of rows goes through all layers while it is hot in the cache. Layer outputs and deltas lie
 * in the workspace with rows padded to whole vectors (a single column is not padded, so that its
 * rows fill vectors), and each W is transposed once per parameter vector for dX = dZ·Wᵀ.
 */

enum {
    NARROW = 128, /* networks with no wider layer run in tiles of TILE_ROWS */
    TILE_ROWS = 64, /* 64 x 128 f64 activations are 64 KB: a few layers fit the second-level cache */
    WIDE_TILE_ROWS = 256 /* others; a product of fewer rows would not repay reading W */
};

typedef struct {
    real *p;
    idx ld;
} block; /* rows of a matrix in memory */

typedef struct {
    real *pack, *row; /* scratch of gemm; one padded row */
    block *Y, *Z; /* per layer */
    block *Wt; /* per layer but the first: the transpose of W */
    block delta[2];
    real *X; /* gathered rows of a shuffled batch, with their targets and weights */
    real *T, *weights;
    int64_t *labels;
    real *params, *grad, *moments; /* padded copies that training works on */
} buffers;

INLINE idx leading(idx columns) { return columns == 1 ? 1 : round_up(columns); }

INLINE idx tile_rows(const fb_plan *plan, idx n)
{
    idx most = plan->max_width <= NARROW ? TILE_ROWS : WIDE_TILE_ROWS;
    return n < most ? n : most;
}

static void *carve(char *base, size_t *used, size_t bytes)
{
    char *here = base + *used;
    *used += (bytes + 127) / 64 * 64; /* one line more than needed: whole-vector reads stay inside */
    return here;
}

#define CARVE(count) carve(base, &used, sizeof(real) * (size_t)(count))

enum { FOR_FORWARD = 1, FOR_BACKWARD = 2, FOR_BATCHES = 4, FOR_TRAINING = 8 };

/* The workspace's layout for tiles of `rows` rows and `deltas` rows of deltas; returns its size.
 * Called with a base of null it only measures. */
static size_t lay_out(buffers *B, char *base, const fb_plan *plan, idx rows, idx deltas, int what)
{
    size_t used = 0;
    idx L = plan->n_layers;
    B->Y = carve(base, &used, (size_t)L * sizeof(block));
    B->Z = carve(base, &used, (size_t)L * sizeof(block));
    B->Wt = carve(base, &used, (size_t)L * sizeof(block));
    B->pack = CARVE(PACK_SIZE);
    B->row = CARVE(round_up(plan->max_width));
    for (idx l = 0; l < L; l++) {
        const fb_layer *layer = plan->layers + l;
        idx ld = leading(layer->n_out), ldt = round_up(layer->n_in);
        block Y = {what & FOR_FORWARD ? CARVE(rows * ld) : NULL, ld};
        block Z = {what & FOR_FORWARD && layer->z_column >= 0 ? CARVE(rows * ld) : NULL, ld};
        block Wt = {what & FOR_BACKWARD ? CARVE(layer->n_out * ldt) : NULL, ldt};
        if (base) B->Y[l] = Y, B->Z[l] = Z, B->Wt[l] = Wt;
    }
    idx widest = deltas * round_up(plan->max_width);
    for (int i = 0; i < 2; i++)
        B->delta[i].p = what & FOR_BACKWARD ? CARVE(widest) : NULL;
    if (what & FOR_BATCHES) {
        B->X = CARVE(rows * plan->layers[0].n_in);
        B->T = CARVE(rows * plan->layers[L - 1].n_out);
        B->weights = CARVE(rows);
        B->labels = carve(base, &used, (size_t)rows * sizeof(int64_t));
    }
    if (what & FOR_TRAINING) {
        B->params = CARVE(plan->n_params);
        B->grad = CARVE(plan->n_params);
        B->moments = CARVE(2 * round_up(plan->n_params));
    }
    return used;
}

/* Take a workspace laid out for the call; null without memory. */
static fb_workspace *take_buffers(buffers *B, fb_plan *plan, idx rows, idx deltas, int what)
{
    memset(B, 0, sizeof *B);
    fb_workspace *workspace = fb_take(&plan->pool, lay_out(B, NULL, plan, rows, deltas, what));
    if (workspace) lay_out(B, workspace->bytes, plan, rows, deltas, what);
    return workspace;
}

/* One layer: Y = act(XW + b), and Z if it has room. */
static void layer_forward(idx rows, idx n_in, idx n_out, const fb_act *act, const real *X, idx ldx,
                          const real *W, const real *b, block Y, block Z, real *pack)
{
    int rectified = !Z.p && (act->kind == FB_RELU || act->kind == FB_RELU_Z);
    block out = Z.p ? Z : Y;
    real least = rectified ? 0 : (real)-INFINITY;
    if (n_out == 1) {
        row_dots(rows, n_in, X, ldx, W, b ? *b : 0, least, out.p);
    } else {
        int padded = out.ld % VL == 0 && out.ld >= round_up(n_out);
        epilogue e = {b, least, 0, padded};
        gemm(rows, n_out, n_in, X, ldx, 1, W, n_out, out.p, out.ld, e, pack);
    }
    if (rectified || (act->kind == FB_LINEAR && !Z.p)) return;
    /* Rows with gaps shorter than a vector are one long row; gaps hold harmless numbers. */
    act_apply(act, 0, (rows - 1) * out.ld + n_out, out.p, Y.p);
}

/* dW (+)= Xᵀ·dZ and db (+)= Σ_rows dZ. */
static void layer_gradient(idx rows, idx n_in, idx n_out, const real *X, idx ldx, block dZ, real *dW,
                           real *db, int add, real *pack)
{
    epilogue e = {NULL, (real)-INFINITY, add, 0};
    if (n_out == 1) /* dWᵀ = dZᵀ·X, so that vectors run along the inputs */
        gemm(1, n_in, rows, dZ.p, 0, dZ.ld, X, ldx, dW, n_in, e, pack);
    else
        gemm(n_in, n_out, rows, X, 1, ldx, dZ.p, dZ.ld, dW, n_out, e, pack);
    if (!db) return;
    if (dZ.ld == 1) {
        vec s = {0};
        idx i = 0;
        for (; i + VL <= rows; i += VL) s += load(dZ.p + i);
        if (i < rows) s += load_first(dZ.p + i, first_lanes(rows - i));
        *db = (add ? *db : 0) + hsum(s);
        return;
    }
    for (idx j = 0; j < n_out; j += VL) {
        mask m = first_lanes(n_out - j);
        vec s = add ? load_first(db + j, m) : (vec){0};
        for (idx i = 0; i < rows; i++) s += load_first(dZ.p + i * dZ.ld + j, m);
        store_first(db + j, m, s);
    }
}

/* dX = dZ·Wᵀ; Wt is the transpose of W. */
static void layer_pullback(idx rows, idx n_in, idx n_out, block dZ, block Wt, block dX, real *pack)
{
    int padded = dX.ld % VL == 0 && dX.ld >= round_up(n_in);
    epilogue e = {NULL, (real)-INFINITY, 0, padded};
    gemm(rows, n_in, n_out, dZ.p, dZ.ld, 1, Wt.p, Wt.ld, dX.p, dX.ld, e, pack);
}

static void transpose_weights(const fb_plan *plan, const buffers *B, const real *params, int first_too)
{
    for (idx l = !first_too; l < plan->n_layers; l++) {
        const fb_layer *layer = plan->layers + l;
        const real *W = params + layer->w;
        if (layer->n_out == 1) /* a column is its own transpose */
            memcpy(B->Wt[l].p, W, (size_t)layer->n_in * sizeof(real));
        else
            transpose(layer->n_in, layer->n_out, W, layer->n_out, B->Wt[l].p, B->Wt[l].ld);
    }
}

/* All layers' Y (and Z) of a tile of rows. */
static void tile_forward(const fb_plan *plan, const buffers *B, const real *params, idx rows,
                         const real *X)
{
    idx ldx = plan->layers[0].n_in;
    for (idx l = 0; l < plan->n_layers; l++) {
        const fb_layer *layer = plan->layers + l;
        const real *b = layer->b < 0 ? NULL : params + layer->b;
        layer_forward(rows, layer->n_in, layer->n_out, &layer->act, X, ldx, params + layer->w, b,
                      B->Y[l], B->Z[l], B->pack);
        X = B->Y[l].p, ldx = B->Y[l].ld;
    }
}

/* From dL/dY of the last layer, in delta[0], to the gradient, and to dL/dX if dX is not null. */
static void tile_backward(const fb_plan *plan, const buffers *B, idx rows, const real *X, real *grad,
                          int add, real *dX)
{
    block d = B->delta[0], other = B->delta[1];
    d.ld = leading(plan->layers[plan->n_layers - 1].n_out);
    for (idx l = plan->n_layers - 1; l >= 0; l--) {
        const fb_layer *layer = plan->layers + l;
        idx n_in = layer->n_in, n_out = layer->n_out;
        block Y = B->Y[l], Z = B->Z[l];
        act_backward(&layer->act, rows, n_out, d.p, d.ld, Y.p, Y.ld, Z.p, Z.ld, d.p, d.ld);
        const real *input = l ? B->Y[l - 1].p : X;
        idx ld_input = l ? B->Y[l - 1].ld : n_in;
        real *db = layer->b < 0 ? NULL : grad + layer->b;
        layer_gradient(rows, n_in, n_out, input, ld_input, d, grad + layer->w, db, add, B->pack);
        if (l == 0 && !dX) break;
        other.ld = leading(n_in);
        if (l == 0) other = (block){dX, n_in};
        layer_pullback(rows, n_in, n_out, d, B->Wt[l], other, B->pack);
        block swap = d;
        d = other, other = swap;
    }
}

static int forward(fb_plan *plan, const void *params, idx n, const void *X_, void *Y_)
{
    const real *X = X_;
    real *Y = Y_;
    idx most = tile_rows(plan, n), n_in = plan->layers[0].n_in;
    idx last = plan->n_layers - 1, n_out = plan->layers[last].n_out;
    buffers B;
    fb_workspace *workspace = take_buffers(&B, plan, most, 0, FOR_FORWARD);
    if (!workspace) return FB_NO_MEMORY;
    for (idx i = 0; i < n; i += most) {
        B.Y[last] = (block){Y + i * n_out, n_out}; /* the result itself, without gaps */
        B.Z[last].p = NULL;
        tile_forward(plan, &B, params, n - i < most ? n - i : most, X + i * n_in);
    }
    fb_give(&plan->pool, workspace);
    return FB_DONE;
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

static int forward_tape(fb_plan *plan, const void *params, idx n, const void *X_, void *tape)
{
    const real *X = X_;
    idx most = tile_rows(plan, n), n_in = plan->layers[0].n_in;
    buffers B;
    fb_workspace *workspace = take_buffers(&B, plan, most, 0, 0);
    if (!workspace) return FB_NO_MEMORY;
    for (idx i = 0; i < n; i += most) {
        use_tape(plan, &B, tape, n, i);
        tile_forward(plan, &B, params, n - i < most ? n - i : most, X + i * n_in);
    }
    fb_give(&plan->pool, workspace);
    return FB_DONE;
}

static int backward(fb_plan *plan, const void *params, idx n, const void *X_, const void *tape,
                    const void *dY_, void *dparams, void *dX_)
{
    const real *X = X_, *dY = dY_;
    real *dX = dX_;
    idx most = tile_rows(plan, n), n_in = plan->layers[0].n_in;
    idx n_out = plan->layers[plan->n_layers - 1].n_out, ld = leading(n_out);
    buffers B;
    fb_workspace *workspace = take_buffers(&B, plan, most, most, FOR_BACKWARD);
    if (!workspace) return FB_NO_MEMORY;
    transpose_weights(plan, &B, params, dX != NULL);
    if (n == 0) memset(dparams, 0, (size_t)plan->n_params * sizeof(real));
    for (idx i = 0; i < n; i += most) {
        idx rows = n - i < most ? n - i : most;
        use_tape(plan, &B, (real *)(uintptr_t)tape, n, i);
        for (idx r = 0; r < rows; r++)
            memcpy(B.delta[0].p + r * ld, dY + (i + r) * n_out, (size_t)n_out * sizeof(real));
        tile_backward(plan, &B, rows, X + i * n_in, dparams, i > 0, dX ? dX + i * n_in : NULL);
    }
    fb_give(&plan->pool, workspace);
    return FB_DONE;
}

/* The objective. */

typedef struct {
    const real *X, *T, *weights;
    const int64_t *labels;
} rows_of_data;

/* Σ w ℓ of `n` rows, and their part of the gradient if `grad` is not null. */
static double rows_loss(const fb_plan *plan, const buffers *B, const fb_problem *problem,
                        const real *params, rows_of_data data, idx n, double scale, real *grad,
                        int add)
{
    idx last = plan->n_layers - 1;
    tile_forward(plan, B, params, n, data.X);
    loss_tile tile = {.rows = n,
                      .n_out = plan->layers[last].n_out,
                      .Y = B->Y[last].p,
                      .T = data.T,
                      .labels = data.labels,
                      .weights = data.weights,
                      .D = grad ? B->delta[0].p : NULL,
                      .ldy = B->Y[last].ld,
                      .scale = scale};
    double sum = tile_loss(problem->loss, tile, B->row);
    if (grad) tile_backward(plan, B, n, data.X, grad, add, NULL);
    return sum;
}

INLINE rows_of_data stored_rows(const fb_plan *plan, const fb_problem *problem, idx i)
{
    idx n_out = plan->layers[plan->n_layers - 1].n_out;
    const real *X = problem->X, *T = problem->y, *weights = problem->weights;
    return (rows_of_data){X + i * plan->layers[0].n_in, T ? T + i * n_out : NULL,
                          weights ? weights + i : NULL,
                          problem->labels ? problem->labels + i : NULL};
}

/* l2/2·‖W‖², and l2·W added to the gradient if it is not null. */
static double penalty(const fb_plan *plan, double l2, const real *params, real *grad)
{
    double_sum squares = {{{0}}};
    vec factor = splat((real)l2);
    for (idx l = 0; l < plan->n_layers; l++) {
        const fb_layer *layer = plan->layers + l;
        idx size = layer->n_in * layer->n_out;
        const real *W = params + layer->w;
        for (idx i = 0; i < size; i += VL) {
            mask m = first_lanes(size - i);
            vec w = load_first(W + i, m);
            add_to(&squares, w * w);
            if (!grad) continue;
            real *g = grad + layer->w + i;
            store_first(g, m, load_first(g, m) + factor * w);
        }
    }
    return 0.5 * l2 * total_of(squares);
}

static int value_and_grad(fb_plan *plan, const fb_problem *problem, const void *params,
                          double *value, void *grad)
{
    idx n = (idx)problem->n, most = tile_rows(plan, n);
    buffers B;
    int what = FOR_FORWARD | (grad ? FOR_BACKWARD : 0);
    fb_workspace *workspace = take_buffers(&B, plan, most, most, what);
    if (!workspace) return FB_NO_MEMORY;
    if (grad) transpose_weights(plan, &B, params, 0);
    double sum = 0;
    for (idx i = 0; i < n; i += most)
        sum += rows_loss(plan, &B, problem, params, stored_rows(plan, problem, i),
                         n - i < most ? n - i : most, problem->scale, grad, i > 0);
    *value = problem->scale * sum;
    if (problem->l2 > 0) *value += penalty(plan, problem->l2, params, grad);
    fb_give(&plan->pool, workspace);
    return FB_DONE;
}
