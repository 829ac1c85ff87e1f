/* Slim networks, whose layers are too narrow to fill vectors: lanes are rows. fb_is_slim() tells
 * which these are.
 *
 * A tile's X, targets, Y, Z and deltas lie transposed: all rows' values of a unit are side by side,
 * in whole vectors. Products are then sums of vectors with broadcast weights, which need neither
 * W's transpose nor a mask per row, and activations and losses run over full vectors. What an entry
 * of the gradient sums over rows stays apart by lanes until all rows are through; then the lanes of
 * VL entries at a time are added while they are transposed.
 *
 * Lanes after the last row hold harmless numbers; only products over rows have to leave them out.
 */

enum { UNITS = 4 }; /* that share the loads of a product */

/* How many numbers lay_out_slim() needs, 0 unless the network is slim. */
static idx size_of_slim(const fb_plan *plan, int slim, idx rows)
{
    idx units = plan->layers[0].n_in + plan->layers[plan->n_layers - 1].n_out;
    if (!slim) return 0;
    for (idx l = 0; l < plan->n_layers; l++) units += 2 * plan->layers[l].n_out;
    return VL * round_up(plan->n_params) + (units + 2 * plan->max_width) * round_up(rows);
}

/* Put a tile's blocks into B->extra, whose beginning is the lanes of the gradient. */
static void lay_out_slim(const fb_plan *plan, buffers *B, idx rows)
{
    idx ld = round_up(rows), last = plan->n_layers - 1;
    idx n = plan->n_params, padded = round_up(n);
    real *end = B->extra + VL * padded;
    memset(B->extra + VL * n, 0, sizeof(real) * (size_t)(VL * (padded - n)));
    B->X = end, end += plan->layers[0].n_in * ld;
    B->T = end, end += plan->layers[last].n_out * ld;
    for (idx l = 0; l <= last; l++) {
        idx size = plan->layers[l].n_out * ld;
        B->Y[l] = (block){end, ld}, end += size;
        B->Z[l] = (block){B->Z[l].p ? end : NULL, ld}, end += size;
    }
    for (int i = 0; i < 2; i++) B->delta[i] = (block){end, ld}, end += plan->max_width * ld;
}

/* out (columns, ld) = the transpose of rows of A, of those that `order` names if it is not null;
 * zeros after the last. Interleaving row i with row i + VL/2, log2(VL) times over, transposes. */
static void transpose_rows(idx rows, idx columns, const real *A, const int64_t *order, real *out,
                           idx ld)
{
    for (idx i = 0; i < rows; i += VL) {
        if (columns == 1 && !order) {
            store(out + i, load_first(A + i, first_lanes(rows - i)));
            continue;
        }
        for (idx j = 0; j < columns; j += VL) {
            vec r[VL], t[VL];
            mask m = first_lanes(columns - j);
            UNROLL for (int k = 0; k < VL; k++) {
                r[k] = (vec){0};
                if (i + k >= rows) continue;
                idx row = order ? (idx)order[i + k] : i + k;
                r[k] = load_first(A + row * columns + j, m);
            }
            UNROLL for (int stage = 0; stage < STAGES; stage++) {
                UNROLL for (int k = 0; k < VL / 2; k++) {
                    t[2 * k] = ZIP_LOW(r[k], r[k + VL / 2]);
                    t[2 * k + 1] = ZIP_HIGH(r[k], r[k + VL / 2]);
                }
                UNROLL for (int k = 0; k < VL; k++) r[k] = t[k];
            }
            UNROLL for (int k = 0; k < VL; k++)
                if (j + k < columns) store(out + (j + k) * ld + i, r[k]);
        }
    }
}

/* Products of one layer; `units` is how many outputs (of the pullback: inputs) are done at once. */

/* What a call on a layer works on: `rows` rows, blocks of leading dimension ld. */
typedef struct {
    idx rows, ld;
    const real *params;
    real *sums; /* the gradient's lanes */
    int add; /* to sums of tiles before */
} slim_tile;

/* out_u = Σ_k w[u·us + k·ks]·in_k, plus bias_u unless that is null, at least `least`. */
INLINE void combine(int units, const slim_tile *t, idx K, const real *w, idx us, idx ks,
                    const real *bias, const real *in, real least, real *out)
{
    for (idx r = 0; r < t->rows; r += VL) {
        vec s[UNITS];
        const real *wk = w, *a = in + r;
        UNROLL for (int u = 0; u < units; u++) s[u] = bias ? splat(bias[u]) : (vec){0};
        for (idx k = 0; k < K; k++, wk += ks, a += t->ld)
            UNROLL for (int u = 0; u < units; u++) s[u] += wk[u * us] * load(a);
        UNROLL for (int u = 0; u < units; u++)
            store(out + u * t->ld + r, vmax(splat(least), s[u]));
    }
}

/* The same for each number of units up to UNITS. */
#define IN_BLOCKS(n, call)                                                                         \
    for (idx u = 0; u < (n); u += UNITS) {                                                         \
        switch ((n) - u) {                                                                         \
        case 1: call(1); break;                                                                    \
        case 2: call(2); break;                                                                    \
        case 3: call(3); break;                                                                    \
        default: call(4);                                                                          \
        }                                                                                          \
    }

/* Z = XW + b, or relu of it. */
static void slim_outputs(const fb_layer *layer, const slim_tile *t, const real *in, int rectified,
                         real *out)
{
    const real *w = t->params + layer->w, *b = layer->b < 0 ? NULL : t->params + layer->b;
    idx n_in = layer->n_in, n_out = layer->n_out;
    real least = rectified ? 0 : (real)-INFINITY;
#define OUTPUTS(units)                                                                             \
    combine(units, t, n_in, w + u, 1, n_out, b ? b + u : NULL, in, least, out + u * t->ld)
    IN_BLOCKS(n_out, OUTPUTS)
}

/* dX = dZ·Wᵀ */
static void slim_pullback(const fb_layer *layer, const slim_tile *t, const real *dZ, real *dX)
{
    const real *w = t->params + layer->w;
    idx n_in = layer->n_in, n_out = layer->n_out;
#define PULLBACK(units)                                                                            \
    combine(units, t, n_out, w + u * n_out, n_out, 1, NULL, dZ, (real)-INFINITY, dX + u * t->ld)
    IN_BLOCKS(n_in, PULLBACK)
}

/* By lanes, for some units j: Σ_rows x_i·dz_j for all inputs i, Σ_rows dz_j to `biases`. */
INLINE void multiply_some(int units, const slim_tile *t, idx n_in, idx n_out, const real *X,
                          const real *dZ, real *sums, real *biases)
{
    idx ld = t->ld, tail = (t->rows - 1) / VL * VL;
    mask m = first_lanes(t->rows - tail);
    vec d[UNITS];
    UNROLL for (int u = 0; u < units; u++) d[u] = load_first(dZ + u * ld + tail, m);
    for (idx i = 0; i < n_in; i++, X += ld, sums += n_out * VL) {
        vec s[UNITS], x = load_first(X + tail, m);
        UNROLL for (int u = 0; u < units; u++)
            s[u] = t->add ? load(sums + u * VL) + x * d[u] : x * d[u];
        for (idx r = 0; r < tail; r += VL)
            UNROLL for (int u = 0; u < units; u++) s[u] += load(X + r) * load(dZ + u * ld + r);
        UNROLL for (int u = 0; u < units; u++) store(sums + u * VL, s[u]);
    }
    if (!biases) return;
    for (idx r = 0; r < tail; r += VL)
        UNROLL for (int u = 0; u < units; u++) d[u] += load(dZ + u * ld + r);
    UNROLL for (int u = 0; u < units; u++)
        store(biases + u * VL, t->add ? load(biases + u * VL) + d[u] : d[u]);
}

/* The lanes of dW (+)= Xᵀ·dZ and db (+)= Σ_rows dZ. */
static void slim_gradient(const fb_layer *layer, const slim_tile *t, const real *X, const real *dZ)
{
    real *sums = t->sums + layer->w * VL, *biases = layer->b < 0 ? NULL : t->sums + layer->b * VL;
    idx n_in = layer->n_in, n_out = layer->n_out;
#define GRADIENT(units)                                                                            \
    multiply_some(units, t, n_in, n_out, X, dZ + u * t->ld, sums + u * VL,                         \
                  biases ? biases + u * VL : NULL)
    IN_BLOCKS(n_out, GRADIENT)
}

/* All layers' Y and Z of a tile whose inputs are in B->X. */
INLINE void slim_forward(const fb_plan *plan, const buffers *B, const slim_tile *t)
{
    const real *in = B->X;
    for (idx l = 0; l < plan->n_layers; l++) {
        const fb_layer *layer = plan->layers + l;
        real *Y = B->Y[l].p, *Z = B->Z[l].p, *out = Z ? Z : Y;
        int rectified = !Z && (layer->act.kind == FB_RELU || layer->act.kind == FB_RELU_Z);
        slim_outputs(layer, t, in, rectified, out);
        if (Z || !(rectified || layer->act.kind == FB_LINEAR))
            act_apply(&layer->act, 0, layer->n_out * t->ld, out, Y);
        in = Y;
    }
}

/* From dL/dY of the last layer, in delta[0], to the gradient by lanes. */
INLINE void slim_backward(const fb_plan *plan, const buffers *B, const slim_tile *t)
{
    real *d = B->delta[0].p, *other = B->delta[1].p;
    for (idx l = plan->n_layers - 1; l >= 0; l--) {
        const fb_layer *layer = plan->layers + l;
        idx size = layer->n_out * t->ld;
        if (layer->act.kind != FB_LINEAR)
            act_backward(&layer->act, 1, size, d, 0, B->Y[l].p, 0, B->Z[l].p, 0, d, 0);
        slim_gradient(layer, t, l ? B->Y[l - 1].p : B->X, d);
        if (l == 0) break;
        slim_pullback(layer, t, d, other);
        real *swap = d;
        d = other, other = swap;
    }
}

/* sums[p] = Σ of lanes p·VL.. for p < n: interleaving row i with row i + VL/2 is the step that
 * transposes, and adding both results halves the rows. Padded sums are written as whole vectors. */
static void add_lanes(idx n, const real *lanes, real *sums, int padded)
{
    for (idx p = 0; p < n; p += VL, lanes += VL * VL) {
        vec r[VL];
        UNROLL for (int k = 0; k < VL; k++) r[k] = load(lanes + k * VL);
        UNROLL for (int half = VL / 2; half; half /= 2)
            UNROLL for (int k = 0; k < half; k++)
                r[k] = ZIP_LOW(r[k], r[k + half]) + ZIP_HIGH(r[k], r[k + half]);
        if (padded) store(sums + p, r[0]);
        else store_first(sums + p, first_lanes(n - p), r[0]);
    }
}
