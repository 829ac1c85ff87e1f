/* Jacobians, gradients of single rows, and normal equations.
 *
 * Each row of data has `each` rows of deltas: in a Jacobian one for each output, for gradients of
 * rows one, that of its loss. The deltas of a tile pass through the transposed layers together, so
 * that the matrix product has many rows also where networks are narrow. They stay in B->D, layer by
 * layer, from which the rows of J are then written.
 */

/* So many columns of JᵀJ are computed by one product, down to the diagonal. */
enum { COLUMN_BLOCK = PANEL_NV * VL };

/* d (rows·each, n_out) ∘= act' of layer l; the `each` deltas of a row share its row of Y and Z. */
static void scale_deltas(const fb_layer *layer, const buffers *B, idx l, idx rows, idx each)
{
    const fb_act *act = backward_act(B, layer);
    block Y = B->Y[l], Z = B->Z[l], d = B->D[l];
    if (each == 1) {
        act_backward(act, rows, layer->n_out, d.p, d.ld, Y.p, Y.ld, Z.p, Z.ld, d.p, d.ld);
        return;
    }
    for (idx r = 0; r < rows; r++) {
        real *p = d.p + r * each * d.ld, *z = Z.p ? Z.p + r * Z.ld : NULL;
        act_backward(act, each, layer->n_out, p, d.ld, Y.p + r * Y.ld, 0, z, 0, p, d.ld);
    }
}

/* B->D of the layers down to `lowest` = the derivatives to Z, from those to Y in D of the last
 * layer, `each` rows for a row of data. dX (rows·each, n_in) = the derivatives to the inputs,
 * unless it is null; then `lowest` is 0. */
static void pull_deltas(const fb_plan *plan, const buffers *B, idx rows, idx each, idx lowest,
                        real *dX)
{
    for (idx l = plan->n_layers - 1; l >= lowest; l--) {
        const fb_layer *layer = plan->layers + l;
        scale_deltas(layer, B, l, rows, each);
        if (l == lowest && !dX) break;
        block below = l ? B->D[l - 1] : (block){dX, layer->n_in};
        layer_pullback(rows * each, layer->n_in, layer->n_out, B->D[l], B->Wt[l], below, 0,
                       B->pack);
    }
}

/* Rows of J, from deltas. */

/* J (n_in, n_out) = the outer product of a and d, d being `vectors` vectors that stay in registers.
 * Returns the end of J. */
INLINE real *multiples(int vectors, idx n_in, idx n_out, const real *a, const real *d, real *J)
{
    vec all[3];
    UNROLL for (int v = 0; v < vectors; v++) all[v] = load(d + v * VL);
    for (idx i = 0; i < n_in; i++, J += n_out)
        UNROLL for (int v = 0; v < vectors; v++) store(J + v * VL, all[v] * a[i]);
    return J;
}

/* The entries of a layer in a row of J: a_i·d_j for the weights, then d_j for the biases, where a
 * is the layer's input. Returns their end. It stores whole vectors, so that up to VL - 1 numbers
 * behind the end are overwritten. */
INLINE real *fill_all(const fb_layer *layer, const real *a, const real *d, real *J)
{
    idx n_in = layer->n_in, n_out = layer->n_out;
    if (n_out == 1) {
        for (idx i = 0; i < n_in; i += VL)
            store(J + i, load_first(a + i, first_lanes(n_in - i)) * *d);
        J += n_in;
    } else {
        switch ((n_out + VL - 1) / VL) {
        case 1: J = multiples(1, n_in, n_out, a, d, J); break;
        case 2: J = multiples(2, n_in, n_out, a, d, J); break;
        case 3: J = multiples(3, n_in, n_out, a, d, J); break;
        default:
            for (idx i = 0; i < n_in; i++, J += n_out)
                for (idx j = 0; j < n_out; j += VL) store(J + j, load(d + j) * a[i]);
        }
    }
    if (layer->b < 0) return J;
    for (idx j = 0; j < n_out; j += VL) store(J + j, load(d + j));
    return J + n_out;
}

/* The same for the free parameters alone. */
INLINE real *fill_free(const fb_layer *layer, const real *a, const real *d, real *J)
{
    const fb_place *place = layer->places;
    for (idx k = 0; k < layer->free_weights; k++, place++) *J++ = a[place->i] * d[place->j];
    for (idx k = 0; k < layer->free_biases; k++, place++) *J++ = d[place->j];
    return J;
}

/* One row of J: of row `sample` of the tile, whose input is x, from row `row` of the deltas. */
static void fill_row(const fb_plan *plan, const buffers *B, const real *x, idx sample, idx row,
                     int free_only, real *J)
{
    const real *a = x;
    for (idx l = 0; l < plan->n_layers; l++) {
        const fb_layer *layer = plan->layers + l;
        const real *d = B->D[l].p + row * B->D[l].ld;
        if (free_only && layer->places) J = fill_free(layer, a, d, J);
        else J = fill_all(layer, a, d, J);
        a = B->Y[l].p + sample * B->Y[l].ld;
    }
}

/* The rows of J (rows·each, columns) of a tile, in ascending order, since each overwrites the
 * beginning of the next one. The last rows go through `spare`, as nothing may be written behind
 * J. */
static void fill_rows(const fb_plan *plan, const buffers *B, idx rows, idx each, const real *X,
                      int free_only, block J, real *spare)
{
    idx columns = free_only ? plan->n_free : plan->n_params, n_in = plan->layers[0].n_in;
    for (idx i = 0, row = 0; i < rows; i++, X += n_in) {
        for (idx k = 0; k < each; k++, row++, J.p += J.ld) {
            int has_room = (rows * each - row - 1) * J.ld >= VL;
            fill_row(plan, B, X, i, row, free_only, has_room ? J.p : spare);
            if (!has_room) memcpy(J.p, spare, (size_t)columns * sizeof(real));
        }
    }
}

/* How many numbers a row of J with the room behind it has. */
INLINE idx size_of_spare(const fb_plan *plan) { return round_up(plan->n_params) + VL; }

/* d (rows·n_out, ld) = n_out rows of a unit matrix for each row of data, times one of `factors`
 * (rows, n_out) for each row of d unless that is null. */
static void pick_outputs(idx rows, idx n_out, const real *factors, block d)
{
    memset(d.p, 0, (size_t)(rows * n_out * d.ld) * sizeof(real));
    for (idx i = 0; i < rows; i++)
        for (idx k = 0; k < n_out; k++, d.p += d.ld) d.p[k] = factors ? *factors++ : 1;
}

/* The rows of data of a tile, so that it has about FB_DELTA_ROWS rows of deltas. */
INLINE idx delta_tile(idx n_out) { return n_out < FB_DELTA_ROWS ? FB_DELTA_ROWS / n_out : 1; }

typedef struct {
    row_sum sum; /* of nothing */
    idx each; /* rows of J for a row of data */
    int of_losses, free_only; /* whether rows of J are gradients of losses or of outputs */
    real *J, *dX; /* the derivatives to the parameters and to the inputs, or null */
} jacobian_call;

static double jacobian_tile(const row_sum *s, const buffers *B, idx i, idx rows, real *none,
                            int add)
{
    const jacobian_call *c = (const jacobian_call *)(const void *)s;
    const fb_plan *plan = s->plan;
    idx columns = c->free_only ? plan->n_free : plan->n_params, each = c->each, row = i * each;
    rows_of_data data = stored_rows(plan, s->problem, i);
    block D = B->D[plan->n_layers - 1], J = {c->J + row * columns, columns};
    (void)none, (void)add;
    tile_forward(plan, B, s->params, rows, data.X);
    if (c->of_losses) tile_objective(s, B, data, rows, NULL, D.p);
    else pick_outputs(rows, each, NULL, D);
    pull_deltas(plan, B, rows, each, 0, c->dX ? c->dX + row * plan->layers[0].n_in : NULL);
    if (c->J) fill_rows(plan, B, rows, each, data.X, c->free_only, J, B->extra);
    return 0;
}

static int run_jacobian(fb_plan *plan, const fb_problem *problem, const real *params, idx threads,
                        int of_losses, int free_only, real *J, real *dX)
{
    idx each = of_losses ? 1 : plan->layers[plan->n_layers - 1].n_out, tile = delta_tile(each);
    row_sum sum = sum_over(plan, problem, params, jacobian_tile, NULL);
    jacobian_call call = {sum, each, of_losses, free_only, J, dX};
    needs need = {FOR_FORWARD | FOR_BACKWARD | FOR_WEIGHTS | FOR_ROWS, tile, tile * each,
                  size_of_spare(plan)};
    buffers crew[FB_MOST_PARTS];
    call.sum.tile = tile;
    if (!begin_sum(&call.sum, crew, useful_workers(sum.n, threads), need)) return FB_NO_MEMORY;
    transpose_weights(plan, params, dX != NULL, crew->Wt);
    sum_parts(&call.sum);
    end_sum(&call.sum);
    return FB_DONE;
}

/* The public functions. */

static int jacobian(fb_plan *plan, const void *params, idx n, const void *X, idx threads,
                    int free_only, void *J)
{
    fb_problem data = {.X = X, .n = n};
    return run_jacobian(plan, &data, params, threads, 0, free_only, J, NULL);
}

static int input_jacobian(fb_plan *plan, const void *params, idx n, const void *X, void *dX)
{
    fb_problem data = {.X = X, .n = n};
    return run_jacobian(plan, &data, params, 1, 0, 0, NULL, dX);
}

static int row_gradients(fb_plan *plan, const fb_problem *problem, const void *params, void *rows)
{
    return run_jacobian(plan, problem, params, 1, 1, 0, rows, NULL);
}

/* The normal equations. A worker writes a block of rows of J to its B->extra and adds their JᵀJ to
 * the sum while they are in the cache.
 *
 * The residuals are the last column of the block, number n, so that one product gives JᵀJ and as
 * its row n (Jᵀr)ᵀ. Of the columns that fill whole vectors it computes what is on and above the
 * diagonal. Of the fewer than VL columns that are left it computes the transpose, rows
 * whole_columns(n) to n, whose vectors are full. mirror() fills in the rest at the end. */

INLINE idx whole_columns(idx n) { return n / VL * VL; }

typedef struct {
    row_sum sum; /* of squares; its vector is JᵀJ, or Jᵀr in jtr_at.h */
    fb_rho rho;
    idx tile; /* rows of data that pass through the layers together; those of a tile of the sum fill
                 a block of J */
    idx lowest; /* the first layer with free parameters */
    const real *moved; /* for jtr_at.h */
    const fb_outputs *at_params; /* the layers' outputs at params, or null */
} squares_call;

/* scale²·rho(z) with z = (r/scale)², and *slope = rho'(z). */
INLINE double robust_square(fb_rho rho, double r, double *slope)
{
    *slope = 1;
    if (rho.kind == FB_LINEAR_RHO) return r * r;
    double C = rho.scale, size = fabs(r) / C, z = size * size, root = sqrt(1 + z);
    switch (rho.kind) {
    case FB_HUBER_RHO:
        if (!(size > 1)) return r * r;
        *slope = 1 / size;
        return C * C * (2 * size - 1);
    case FB_SOFT_L1_RHO: *slope = 1 / root; return C * C * 2 * z / (1 + root);
    case FB_CAUCHY_RHO: *slope = 1 / (1 + z); return C * C * log1p(z);
    default: __builtin_trap();
    }
}

/* Σ w·scale²·rho of a tile whose outputs are Y. Unless it is null, roots (rows, n_out) =
 * sqrt(w·rho'), and r (rows, n_out) = the residuals times them. */
static double sum_squares(const squares_call *c, block Y, idx rows, rows_of_data data, real *roots,
                          real *r)
{
    idx n_out = c->sum.plan->layers[c->sum.plan->n_layers - 1].n_out;
    double sum = 0;
    for (idx i = 0; i < rows; i++) {
        double w = data.weights ? (double)data.weights[i] : 1, slope;
        for (idx k = 0; k < n_out; k++) {
            real difference = Y.p[i * Y.ld + k] - *data.T++;
            sum += w * robust_square(c->rho, (double)difference, &slope);
            if (!roots) continue;
            *roots = (real)sqrt(w * slope);
            *r++ = *roots++ * difference;
        }
    }
    return sum;
}

/* The same sum, and J (rows·n_out, n_free + 1) = sqrt(D) times the rows of the Jacobian, with
 * sqrt(D)·r as the last column. */
static double fill_block(const squares_call *c, const buffers *B, idx rows, rows_of_data data,
                         block J, real *spare)
{
    const fb_plan *plan = c->sum.plan;
    idx last = plan->n_layers - 1, n_out = plan->layers[last].n_out, n = plan->n_free;
    real *r = spare + size_of_spare(plan), *roots = r + rows * n_out;
    double sum = sum_squares(c, B->Y[last], rows, data, roots, r);
    pick_outputs(rows, n_out, roots, B->D[last]);
    pull_deltas(plan, B, rows, n_out, c->lowest, NULL);
    fill_rows(plan, B, rows, n_out, data.X, 1, J, spare);
    for (idx v = 0; v < rows * n_out; v++) J.p[v * J.ld + n] = r[v];
    return sum;
}

/* C (+)= M rows from i on and N columns from j on of JᵀJ, for `rows` rows of J; C (n + 1, n). */
static void add_product(idx i, idx M, idx j, idx N, idx rows, block J, real *C, idx n, int add,
                        real *pack)
{
    epilogue e = {NULL, (real)-INFINITY, add, 0};
    gemm(M, N, rows, J.p + i, 1, J.ld, (factor){J.p + j, J.ld, 0}, C + i * n + j, n, e, pack);
}

/* normal (+)= JᵀJ of a block of rows, as far as it is computed. */
static void add_normal(idx n, idx rows, block J, real *normal, int add, real *pack)
{
    idx whole = whole_columns(n);
    for (idx j = 0; j < whole; j += COLUMN_BLOCK) {
        idx end = j + COLUMN_BLOCK < whole ? j + COLUMN_BLOCK : whole;
        add_product(0, j, j, end - j, rows, J, normal, n, add, pack);
        for (idx i = j; i < end; i += VL)
            add_product(i, VL, i, end - i, rows, J, normal, n, add, pack);
    }
    add_product(whole, n + 1 - whole, 0, n, rows, J, normal, n, add, pack);
}

/* The leading dimension of a block of J: an odd number of vectors, since rows whose distance is a
 * power of two share few sets of a cache. */
INLINE idx leading_of_normal(idx n) { return (n / VL + 1) / 2 * 2 * VL + VL; }

/* The sum of squares of a tile, and JᵀJ as far as add_normal() computes it. */
static double normal_tile(const row_sum *s, const buffers *B, idx i, idx rows, real *normal,
                          int add)
{
    const squares_call *c = (const squares_call *)(const void *)s;
    const fb_plan *plan = s->plan;
    idx last = plan->n_layers - 1, n_out = plan->layers[last].n_out, n = plan->n_free;
    block J = {B->extra, leading_of_normal(n)}, here = J;
    real *spare = J.p + s->tile * n_out * J.ld;
    double sum = 0;
    for (idx k = 0; k < rows; k += c->tile, here.p += c->tile * n_out * J.ld) {
        idx count = rows - k < c->tile ? rows - k : c->tile;
        rows_of_data data = stored_rows(plan, s->problem, i + k);
        buffers K = recorded_forward(plan, B, c->at_params, s->n, i + k, s->params, count, data.X);
        sum += normal ? fill_block(c, &K, count, data, here, spare)
                      : sum_squares(c, K.Y[last], count, data, NULL, NULL);
    }
    if (normal) add_normal(n, rows * n_out, J, normal, add, B->pack);
    return sum;
}

/* Add the JᵀJ of a part, as far as it is computed, to that of the parts before. */
static void merge_normal(void *sum, idx part)
{
    const row_sum *s = sum;
    idx n = s->plan->n_free, whole = whole_columns(n);
    if (!part || !s->result) return;
    const real *slot = slot_of(s, part);
    for (idx i = 0; i < whole; i++) {
        idx from = i * n + i / VL * VL;
        add_multiple(i * n + whole - from, 1, slot + from, s->result + from);
    }
    add_multiple((n + 1 - whole) * n, 1, slot + whole * n, s->result + whole * n);
}

/* Make A (n, n) whole: copy the entries above the diagonal to those below, by squares that fit the
 * cache, and the last rows to the last columns. */
static void mirror(idx n, real *A)
{
    enum { SIDE = 32 };
    idx whole = whole_columns(n);
    for (idx i = 0; i < whole; i += SIDE)
        for (idx j = i; j < whole; j += SIDE)
            for (idx q = j; q < j + SIDE && q < whole; q++)
                for (idx p = i; p < i + SIDE && p < q; p++) A[q * n + p] = A[p * n + q];
    for (idx q = whole; q < n; q++)
        for (idx p = 0; p < whole; p++) A[p * n + q] = A[q * n + p];
}

static idx first_free_layer(const fb_plan *plan)
{
    idx l = 0;
    while (l < plan->n_layers - 1 && !plan->layers[l].free_weights && !plan->layers[l].free_biases)
        l++;
    return l;
}

/* The public function. The layers' outputs at params are read from `at_params` if they are recorded
 * there, else recorded. Null: they are computed. */
static int normal_equations(fb_plan *plan, const fb_problem *problem, const void *params,
                            idx threads, fb_rho rho, fb_outputs *at_params, void *normal,
                            double *sum)
{
    idx n_out = plan->layers[plan->n_layers - 1].n_out, deltas = delta_tile(n_out) * n_out;
    squares_call call = {.sum = sum_over(plan, problem, params, normal_tile, normal),
                         .rho = rho,
                         .lowest = first_free_layer(plan),
                         .at_params = at_params};
    row_sum *s = &call.sum;
    needs need = {FOR_FORWARD, s->tile, 0, 0};
    call.tile = s->tile;
    if (normal) {
        idx tiles = FB_JACOBIAN_ROWS > deltas ? FB_JACOBIAN_ROWS / deltas : 1;
        call.tile = delta_tile(n_out);
        s->tile = tiles * call.tile, s->size = plan->n_free * (plan->n_free + 1);
        s->merge = merge_normal;
        need = (needs){FOR_FORWARD | FOR_BACKWARD | FOR_WEIGHTS | FOR_ROWS, call.tile, deltas,
                       tiles * deltas * leading_of_normal(plan->n_free) + size_of_spare(plan) +
                           2 * deltas};
    }
    buffers crew[FB_MOST_PARTS];
    if (!begin_sum(s, crew, useful_workers(s->n, threads), need)) return FB_NO_MEMORY;
    if (normal) transpose_weights(plan, params, 0, crew->Wt);
    *sum = sum_parts(s);
    if (normal) mirror(plan->n_free, normal);
    end_sum(s);
    if (at_params) at_params->recorded = 1;
    return FB_DONE;
}
