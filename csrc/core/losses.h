/* Losses of a tile of rows: Σ w ℓ(Y, T) in double, and dL/dY = scale · w · ℓ'(Y, T).
 *
 * Y is read and dL/dY written row by row with the leading dimensions of the tile's buffers. A tile
 * with one output has its rows side by side in memory and is treated as one long row.
 */

typedef struct {
    idx rows, n_out;
    const real *Y; /* leading dimension ldy */
    const real *T; /* targets, without gaps; null for labels */
    const int64_t *labels;
    const real *weights; /* or null */
    real *D; /* dL/dY, leading dimension ldy; null if only the value is wanted */
    idx ldy;
    double scale;
} loss_tile;

static const real ones[] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

/* The elementwise losses: `term` is ℓ and `slope` ℓ' in terms of the vectors y and t. */
#define ELEMENTWISE(term, slope)                                                                   \
    int across = tile.n_out == 1; /* rows lie along the vector, and so do their weights */         \
    idx rows = across ? 1 : tile.rows, columns = across ? tile.rows : tile.n_out;                  \
    double_sum sum = {{{0}}};                                                                      \
    for (idx i = 0; i < rows; i++) {                                                               \
        const real *weights = tile.weights ? tile.weights + i : ones;                              \
        for (idx j = 0; j < columns; j += VL) {                                                    \
            mask m = first_lanes(columns - j);                                                     \
            vec y = load_first(tile.Y + i * tile.ldy + j, m);                                      \
            vec t = load_first(tile.T + i * columns + j, m);                                       \
            vec w = across && tile.weights ? load_first(weights + j, m)                            \
                                           : load_first(ones, m) * *weights; /* 0 past the end */  \
            add_to(&sum, (term) * w);                                                              \
            if (tile.D) store_first(tile.D + i * tile.ldy + j, m, (slope) * w * (real)tile.scale); \
        }                                                                                          \
    }                                                                                              \
    return total_of(sum);

static double squared_loss(loss_tile tile) { ELEMENTWISE((y - t) * (y - t), 2 * (y - t)) }

static double bce_logits_loss(loss_tile tile)
{
    ELEMENTWISE(vmax((vec){0}, y) - y * t + vlog1p(vexp(-vabs(y))), vsigmoid(y) - t)
}

/* Cross-entropy of softmax(Y): log Σ e^(y - max) + max - y_label, or Σ t (log Σ + max - y). */
static double softmax_loss(loss_tile tile, real *row)
{
    idx n = tile.n_out;
    const vec least = splat((real)-INFINITY);
    double sum = 0;
    /* Σ log s is the log of Π s, with s from 1 to n: one logarithm for many rows. */
    double product = 1;
    int together = !tile.weights && tile.labels;
    for (idx i = 0; i < tile.rows; i++) {
        const real *y = tile.Y + i * tile.ldy;
        vec most = least, total = {0};
        for (idx j = 0; j < n; j += VL) { /* lanes after the last output neither win nor add */
            mask m = first_lanes(n - j);
            vec v = fill_after(load_first(y + j, m), m, least);
            store(row + j, v);
            most = vmax(most, v); /* NaN reaches the sum below in any case */
        }
        real top = hmax(most);
        for (idx j = 0; j < n; j += VL) {
            vec e = vexp(load(row + j) - top);
            store(row + j, e);
            total += e;
        }
        real sum_exp = hsum(total);
        double w = tile.weights ? (double)tile.weights[i] : 1, target_sum = 1, dot = 0;
        const real *t = tile.T ? tile.T + i * n : NULL;
        if (t) {
            target_sum = 0;
            for (idx j = 0; j < n; j++) {
                target_sum += (double)t[j];
                dot += (double)t[j] * ((double)y[j] - (double)top);
            }
        } else {
            dot = (double)y[tile.labels[i]] - (double)top;
        }
        if (together) {
            product *= (double)sum_exp;
            sum -= dot;
            if (!(product < 1e290)) { /* NaN too */
                sum += log(product);
                product = 1;
            }
        } else {
            sum += w * (target_sum * log((double)sum_exp) - dot);
        }
        if (!tile.D) continue;
        real *d = tile.D + i * tile.ldy;
        real factor = (real)(tile.scale * w), share = (real)target_sum * factor / sum_exp;
        for (idx j = 0; j < n; j += VL) {
            mask m = first_lanes(n - j);
            vec s = load(row + j) * share;
            store_first(d + j, m, t ? s - load_first(t + j, m) * factor : s);
        }
        if (!t) d[tile.labels[i]] -= factor;
    }
    return sum + log(product);
}

/* `row` has room for a padded row of outputs. */
static double tile_loss(int64_t kind, loss_tile tile, real *row)
{
    switch (kind) {
    case FB_SQUARED: return squared_loss(tile);
    case FB_BCE_LOGITS: return bce_logits_loss(tile);
    default: return softmax_loss(tile, row);
    }
}
