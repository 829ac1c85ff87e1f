/* Lane-major sums: rows lie along the lanes of vectors, for networks of at most 4 to 8 units a
 * layer, whose units are too few to fill vectors. fb_is_lane_major() says for which; objective.h
 * calls lane_major_forward() and lane_major_backward() in place of tile_forward() and
 * tile_backward().
 *
 * X, targets, Y, Z and deltas of a tile are transposed, (units, ld): the rows' values of one unit
 * are side by side, in whole vectors. A product is then a sum of vectors times broadcast weights,
 * which needs neither Wᵀ nor a mask per row, and activations and losses run over full vectors. Each
 * entry of the gradient has VL partial sums, one per lane, (n_params, VL); add_lanes() adds them up
 * once all rows are done.
 *
 * Lanes after the last row hold harmless numbers; only sums over rows have to leave them out.
 */

enum { UNITS = 4 }; /* so many units of a product share the loads of its inputs */

/* How many numbers lay_out_lane_major() needs in B->extra; 0 if the sum is not lane-major. */
static idx size_of_lane_major(const fb_plan *plan, int lane_major, idx rows)
{
    idx units = plan->layers[0].n_in + plan->layers[plan->n_layers - 1].n_out;
    if (!lane_major) return 0;
    for (idx l = 0; l < plan->n_layers; l++) units += 2 * plan->layers[l].n_out;
    return VL * round_up(plan->n_params) + (units + 2 * plan->max_width) * round_up(rows);
}

/* Lay out B->extra: the partial sums of the gradient, then X, targets, Y, Z and deltas of a tile of
 * `rows` rows, to which B's pointers are set. */
static void lay_out_lane_major(const fb_plan *plan, buffers *B, idx rows)
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

/* out (columns, ld) = the transpose of A (rows, columns), or of the rows of A that `order` lists
 * unless it is null; zeros after the last row. Interleaving row i with row i + VL/2, log2(VL)
 * times, transposes. */
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

/* Products of one layer, for `units` outputs (in the pullback: inputs) at a time. */

/* A tile of `rows` rows, in blocks of leading dimension ld. */
typedef struct {
    idx rows, ld;
    const real *params;
    real *sums; /* (n_params, VL): the gradient's partial sums */
    int add; /* whether to add to the sums of the tiles before */
} lane_major_tile;

/* out_u = Σ_k w[u·us + k·ks]·in_k, plus bias_u unless bias is null, and not below `least`, for
 * `units` units u; in (K, ld), out (units, ld). */
INLINE void combine(int units, const lane_major_tile *t, idx K, const real *w, idx us, idx ks,
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

/* call(units) for n units, UNITS at a time; in it `u` is the first one. */
#define IN_BLOCKS(n, call)                                                                         \
    for (idx u = 0; u < (n); u += UNITS) {                                                         \
        switch ((n) - u) {                                                                         \
        case 1: call(1); break;                                                                    \
        case 2: call(2); break;                                                                    \
        case 3: call(3); break;                                                                    \
        default: call(4);                                                                          \
        }                                                                                          \
    }

/* out (n_out, ld) = XW + b, or relu of it, for X in `in` (n_in, ld). */
static void lane_major_outputs(const fb_layer *layer, const lane_major_tile *t, const real *in,
                               int rectified, real *out)
{
    const real *w = t->params + layer->w, *b = layer->b < 0 ? NULL : t->params + layer->b;
    idx n_in = layer->n_in, n_out = layer->n_out;
    real least = rectified ? 0 : (real)-INFINITY;
#define OUTPUTS(units)                                                                             \
    combine(units, t, n_in, w + u, 1, n_out, b ? b + u : NULL, in, least, out + u * t->ld)
    IN_BLOCKS(n_out, OUTPUTS)
}

/* dX (n_in, ld) = dZ·Wᵀ for dZ (n_out, ld). */
static void lane_major_pullback(const fb_layer *layer, const lane_major_tile *t, const real *dZ,
                                real *dX)
{
    const real *w = t->params + layer->w;
    idx n_in = layer->n_in, n_out = layer->n_out;
#define PULLBACK(units)                                                                            \
    combine(units, t, n_out, w + u * n_out, n_out, 1, NULL, dZ, (real)-INFINITY, dX + u * t->ld)
    IN_BLOCKS(n_in, PULLBACK)
}

/* For `units` units j the partial sums of Σ_rows x_i·dz_j, for all inputs i, to `sums`, and those
 * of Σ_rows dz_j to `biases`, unless it is null. */
INLINE void multiply_some(int units, const lane_major_tile *t, idx n_in, idx n_out, const real *X,
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

/* The partial sums of dW (+)= Xᵀ·dZ and db (+)= Σ_rows dZ. */
static void lane_major_gradient(const fb_layer *layer, const lane_major_tile *t, const real *X,
                                const real *dZ)
{
    real *sums = t->sums + layer->w * VL, *biases = layer->b < 0 ? NULL : t->sums + layer->b * VL;
    idx n_in = layer->n_in, n_out = layer->n_out;
#define GRADIENT(units)                                                                            \
    multiply_some(units, t, n_in, n_out, X, dZ + u * t->ld, sums + u * VL,                         \
                  biases ? biases + u * VL : NULL)
    IN_BLOCKS(n_out, GRADIENT)
}

/* Y and Z of all layers for a tile whose inputs are in B->X. */
INLINE void lane_major_forward(const fb_plan *plan, const buffers *B, const lane_major_tile *t)
{
    const real *in = B->X;
    for (idx l = 0; l < plan->n_layers; l++) {
        const fb_layer *layer = plan->layers + l;
        real *Y = B->Y[l].p, *Z = B->Z[l].p, *out = Z ? Z : Y;
        int rectified = !Z && (layer->act.kind == FB_RELU || layer->act.kind == FB_RELU_Z);
        lane_major_outputs(layer, t, in, rectified, out);
        if (has_slopes(B, &layer->act))
            user_values_and_slopes(layer->act.user, layer->n_out * t->ld, Z, Y);
        else if (Z || !(rectified || layer->act.kind == FB_LINEAR))
            act_apply(&layer->act, 0, layer->n_out * t->ld, out, Y);
        in = Y;
    }
}

/* The partial sums of the gradient, from dL/dY of the last layer in delta[0]. */
INLINE void lane_major_backward(const fb_plan *plan, const buffers *B, const lane_major_tile *t)
{
    real *d = B->delta[0].p, *other = B->delta[1].p;
    for (idx l = plan->n_layers - 1; l >= 0; l--) {
        const fb_layer *layer = plan->layers + l;
        idx size = layer->n_out * t->ld;
        if (layer->act.kind != FB_LINEAR)
            act_backward(backward_act(B, layer), 1, size, d, 0, B->Y[l].p, 0, B->Z[l].p, 0, d, 0);
        lane_major_gradient(layer, t, l ? B->Y[l - 1].p : B->X, d);
        if (l == 0) break;
        lane_major_pullback(layer, t, d, other);
        real *swap = d;
        d = other, other = swap;
    }
}

/* sums (n,) = the row sums of lanes (n, VL), VL rows at a time. Interleaving row i with row i +
 * VL/2 is a step of a transpose; adding its two results halves the number of rows. With `padded`,
 * sums has room for whole vectors. */
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
