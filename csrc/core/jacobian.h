/* Derivatives row by row: of every output to the parameters (alone or as normal equations) or to
 * the inputs, and of every row's loss.
 *
 * Each row of data has one or more rows of deltas: one for each output in a Jacobian, one for the
 * loss. They pass through the transposed layers together, so that narrow networks still fill the
 * matrix product.
 */

enum {
    DELTA_ROWS = 64, /* rows of deltas in a tile */
    BLOCK_ROWS = 128, /* rows of J that stay in the cache for JᵀJ */
    COLUMN_BLOCK = PANEL_NV * VL /* columns of JᵀJ that are computed at once, down to the diagonal */
};

/* Row v of J: for this layer a_i·d_j, then d_j for the biases. */
static void fill_row(const fb_layer *layer, const real *a, const real *d, real *J)
{
    idx n_in = layer->n_in, n_out = layer->n_out;
    real *W = J + layer->w;
    if (n_out == 1) {
        for (idx i = 0; i < n_in; i += VL) {
            mask m = first_lanes(n_in - i);
            store_first(W + i, m, load_first(a + i, m) * *d);
        }
    } else {
        for (idx i = 0; i < n_in; i++, W += n_out) {
            for (idx j = 0; j < n_out; j += VL) {
                mask m = first_lanes(n_out - j);
                store_first(W + j, m, load_first(d + j, m) * a[i]);
            }
        }
    }
    if (layer->b >= 0) memcpy(J + layer->b, d, (size_t)n_out * sizeof(real));
}

/* d ∘= act' of the layer, where `each` rows of d share the row of Y (or Z) of their sample. */
static void scale_deltas(const fb_layer *layer, idx rows, idx each, block Y, block Z, block d)
{
    if (each == 1) {
        act_backward(&layer->act, rows, layer->n_out, d.p, d.ld, Y.p, Y.ld, Z.p, Z.ld, d.p, d.ld);
        return;
    }
    for (idx r = 0; r < rows; r++) {
        real *p = d.p + r * each * d.ld, *z = Z.p ? Z.p + r * Z.ld : NULL;
        act_backward(&layer->act, each, layer->n_out, p, d.ld, Y.p + r * Y.ld, 0, z, 0, p, d.ld);
    }
}

/* From `each` rows of dL/dY per sample, in delta[0], to rows of derivatives to the parameters, in J
 * if it is not null, and to the inputs, in dX if that is not null. */
static void pull_rows(const fb_plan *plan, const buffers *B, idx rows, idx each, const real *X,
                      block J, real *dX)
{
    idx deltas = rows * each;
    block d = B->delta[0], other = B->delta[1];
    d.ld = leading(plan->layers[plan->n_layers - 1].n_out);
    for (idx l = plan->n_layers - 1; l >= 0; l--) {
        const fb_layer *layer = plan->layers + l;
        scale_deltas(layer, rows, each, B->Y[l], B->Z[l], d);
        const real *a = l ? B->Y[l - 1].p : X;
        idx lda = l ? B->Y[l - 1].ld : layer->n_in;
        for (idx v = 0; J.p && v < deltas; v++)
            fill_row(layer, a + v / each * lda, d.p + v * d.ld, J.p + v * J.ld);
        if (l == 0 && !dX) break;
        other.ld = leading(layer->n_in);
        if (l == 0) other = (block){dX, layer->n_in};
        layer_pullback(deltas, layer->n_in, layer->n_out, d, B->Wt[l], other, 0, B->pack);
        block swap = d;
        d = other, other = swap;
    }
}

/* The same for every output of a tile, times sqrt(w) if there are weights. */
static void tile_jacobian(const fb_plan *plan, const buffers *B, const real *params, idx rows,
                          const real *X, const real *weights, block J, real *dX)
{
    idx n_out = plan->layers[plan->n_layers - 1].n_out, ld = leading(n_out);
    real *d = B->delta[0].p;
    tile_forward(plan, B, params, rows, X);
    memset(d, 0, (size_t)(rows * n_out * ld) * sizeof(real));
    for (idx i = 0; i < rows; i++) {
        real root = weights ? (real)sqrt((double)weights[i]) : 1;
        for (idx k = 0; k < n_out; k++, d += ld) d[k] = root;
    }
    pull_rows(plan, B, rows, n_out, X, J, dX);
}

INLINE idx delta_tile(idx n_out) { return n_out < DELTA_ROWS ? DELTA_ROWS / n_out : 1; }

typedef struct {
    const fb_plan *plan;
    const real *params, *X;
    idx n, n_out, tile;
    real *J, *dX; /* one of them is null */
    const buffers *crew;
} jacobian_call;

static void jacobian_part(void *context, idx worker, idx part)
{
    const jacobian_call *c = context;
    idx n_params = c->plan->n_params, n_in = c->plan->layers[0].n_in;
    range rows = part_of(c->n, part);
    buffers B = worker_buffers(c->crew, worker);
    for (idx i = rows.start; i < rows.stop; i += c->tile) {
        idx count = rows.stop - i < c->tile ? rows.stop - i : c->tile;
        block J = {c->J ? c->J + i * c->n_out * n_params : NULL, n_params};
        real *dX = c->dX ? c->dX + i * c->n_out * n_in : NULL;
        tile_jacobian(c->plan, &B, c->params, count, c->X + i * n_in, NULL, J, dX);
    }
}

static int jacobians(fb_plan *plan, const void *params, idx n, const void *X, idx threads, void *J,
                     void *dX)
{
    idx n_out = plan->layers[plan->n_layers - 1].n_out, tile = delta_tile(n_out);
    needs others = {FOR_FORWARD | FOR_BACKWARD, tile, tile * n_out, 0}, first = others;
    first.what |= FOR_WEIGHTS;
    buffers crew[FB_MOST_PARTS];
    idx workers = take_crew(crew, plan, useful_workers(n, threads), first, others);
    if (!workers) return FB_NO_MEMORY;
    transpose_weights(plan, params, dX != NULL, crew->Wt);
    jacobian_call call = {plan, params, X, n, n_out, tile, J, dX, crew};
    idx count = partition(n).count;
    fb_team *team = fb_team_new(workers);
    fb_share(team, &(fb_work){jacobian_part, NULL, &call, count, count});
    fb_team_free(team);
    give_crew(crew, plan, workers);
    return FB_DONE;
}

static int jacobian(fb_plan *plan, const void *params, idx n, const void *X, idx threads, void *J)
{
    return jacobians(plan, params, n, X, threads, J, NULL);
}

static int input_jacobian(fb_plan *plan, const void *params, idx n, const void *X, void *J)
{
    return jacobians(plan, params, n, X, 1, NULL, J);
}

static int row_gradients(fb_plan *plan, const fb_problem *problem, const void *params, void *rows_)
{
    real *rows = rows_;
    idx n = (idx)problem->n, n_params = plan->n_params;
    buffers B;
    needs need = {FOR_FORWARD | FOR_BACKWARD | FOR_WEIGHTS, DELTA_ROWS, DELTA_ROWS, 0};
    if (!take_buffers(&B, plan, need)) return FB_NO_MEMORY;
    transpose_weights(plan, params, 0, B.Wt);
    for (idx i = 0; i < n; i += DELTA_ROWS) {
        idx count = n - i < DELTA_ROWS ? n - i : DELTA_ROWS;
        rows_of_data data = stored_rows(plan, problem, i);
        tile_forward(plan, &B, params, count, data.X);
        tile_objective(plan, &B, problem, data, count, problem->scale, NULL, B.delta[0].p);
        pull_rows(plan, &B, count, 1, data.X, (block){rows + i * n_params, n_params}, NULL);
    }
    give_buffers(&B, plan);
    return FB_DONE;
}

/* The normal equations: blocks of rows of J, in a worker's `extra`, are added to JᵀJ, above and on
 * the diagonal, while they are in the cache. */

typedef struct {
    const fb_plan *plan;
    const fb_problem *problem;
    const real *params;
    idx tile, block_rows; /* samples of a tile; rows of a block of J */
    real *JTJ, *JTr;
    real *slots; /* JᵀJ and Jᵀr of parts but the first */
    idx n_slots;
    double sse[FB_MOST_PARTS];
    const buffers *crew;
} normal_call;

/* r = sqrt(w)·(Y - T) of a tile; returns their squares' sum. */
static double residuals(block Y, idx rows, idx n_out, rows_of_data data, real *r)
{
    double sum = 0;
    for (idx i = 0; i < rows; i++) {
        real root = data.weights ? (real)sqrt((double)data.weights[i]) : 1;
        for (idx k = 0; k < n_out; k++, r++) {
            *r = root * (Y.p[i * Y.ld + k] - data.T[i * n_out + k]);
            sum += (double)*r * (double)*r;
        }
    }
    return sum;
}

/* JTJ (+)= JᵀJ, JTr (+)= Jᵀr for a block of rows. */
static void add_normal(idx n, idx rows, block J, const real *r, real *JTJ, real *JTr, int add,
                       real *pack)
{
    epilogue e = {NULL, (real)-INFINITY, add, 0};
    for (idx j = 0; j < n; j += COLUMN_BLOCK) {
        idx columns = n - j < COLUMN_BLOCK ? n - j : COLUMN_BLOCK;
        gemm(j + columns, columns, rows, J.p, 1, J.ld, (factor){J.p + j, J.ld, 0}, JTJ + j, n, e,
             pack);
    }
    gemm(1, n, rows, r, 0, 1, (factor){J.p, J.ld, 0}, JTr, n, e, pack);
}

static real *normal_slot(const normal_call *c, idx part)
{
    idx n = c->plan->n_params;
    return c->slots + part % c->n_slots * n * (n + 1);
}

static void normal_part(void *context, idx worker, idx part)
{
    normal_call *c = context;
    const fb_plan *plan = c->plan;
    idx n = plan->n_params, n_out = plan->layers[plan->n_layers - 1].n_out;
    real *JTJ = part ? normal_slot(c, part) : c->JTJ, *JTr = part ? JTJ + n * n : c->JTr;
    range all = part_of((idx)c->problem->n, part);
    buffers B = worker_buffers(c->crew, worker);
    block J = {B.extra, round_up(n)};
    real *r = J.p + c->block_rows * J.ld;
    double sse = 0;
    idx filled = 0; /* rows of the block */
    for (idx i = all.start, blocks = 0; i < all.stop; i += c->tile) {
        idx rows = all.stop - i < c->tile ? all.stop - i : c->tile;
        rows_of_data data = stored_rows(plan, c->problem, i);
        block here = {J.p + filled * J.ld, J.ld};
        tile_jacobian(plan, &B, c->params, rows, data.X, data.weights, here, NULL);
        sse += residuals(B.Y[plan->n_layers - 1], rows, n_out, data, r + filled);
        filled += rows * n_out;
        if (filled + c->tile * n_out <= c->block_rows && i + rows < all.stop) continue;
        add_normal(n, filled, J, r, JTJ, JTr, blocks++ > 0, B.pack);
        filled = 0;
    }
    c->sse[part] = sse;
}

static void merge_normal(void *context, idx part)
{
    const normal_call *c = context;
    idx n = c->plan->n_params;
    if (!part) return;
    const real *slot = normal_slot(c, part);
    for (idx i = 0; i < n; i++) {
        idx from = i / COLUMN_BLOCK * COLUMN_BLOCK;
        add_slot(n - from, slot + i * n + from, c->JTJ + i * n + from);
    }
    add_slot(n, slot + n * n, c->JTr);
}

/* Copy what is above the diagonal below it, by squares that fit the cache. */
static void mirror(idx n, real *A)
{
    enum { SIDE = 32 };
    for (idx i = 0; i < n; i += SIDE)
        for (idx j = i; j < n; j += SIDE)
            for (idx q = j; q < j + SIDE && q < n; q++)
                for (idx p = i; p < i + SIDE && p < q; p++) A[q * n + p] = A[p * n + q];
}

static int normal_equations(fb_plan *plan, const fb_problem *problem, const void *params,
                            idx threads, void *JTJ, void *JTr, double *sse)
{
    idx n = (idx)problem->n, n_params = plan->n_params, size = n_params * (n_params + 1);
    idx n_out = plan->layers[plan->n_layers - 1].n_out, tile = delta_tile(n_out);
    idx workers = useful_workers(n, threads), n_slots = slots_for(n, workers, size);
    idx block_rows = n_out < BLOCK_ROWS ? BLOCK_ROWS : n_out;
    needs others = {FOR_FORWARD | FOR_BACKWARD, tile, tile * n_out,
                    block_rows * (round_up(n_params) + 1) + VL};
    needs first = others;
    first.what |= FOR_WEIGHTS;
    first.extra += n_slots * size;
    buffers crew[FB_MOST_PARTS];
    workers = take_crew(crew, plan, workers, first, others);
    if (!workers) return FB_NO_MEMORY;
    transpose_weights(plan, params, 0, crew->Wt);
    normal_call call = {.plan = plan,
                        .problem = problem,
                        .params = params,
                        .tile = tile,
                        .block_rows = block_rows,
                        .JTJ = JTJ,
                        .JTr = JTr,
                        .slots = crew->extra + others.extra,
                        .n_slots = n_slots,
                        .crew = crew};
    idx count = partition(n).count;
    fb_team *team = fb_team_new(workers);
    fb_share(team, &(fb_work){normal_part, merge_normal, &call, count, n_slots ? n_slots : 1});
    fb_team_free(team);
    mirror(n_params, JTJ);
    *sse = 0;
    for (idx part = 0; part < count; part++) *sse += call.sse[part];
    give_crew(crew, plan, workers);
    return FB_DONE;
}
