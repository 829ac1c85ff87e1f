/* Losses of a tile of rows: Σ w ℓ(Y, T) in double, and dL/dY = scale · w · ℓ'(Y, T), or the product
 * scale · w · ℓ''(Y, T)·U of the Hessian with a direction U. fastbp/maths/losses.py has the formulas.
 *
 * Y and dL/dY are (rows, ld), or lane-major (n_out, ld), which a single output always is.
 */

/* A user's loss of n pairs (y, t): returns Σ w ℓ, and writes d (n) = factor·w·ℓ' (order 1) or
 * factor·w·ℓ'' (order 2). w are the weights (n); null: all are 1. */
typedef double user_loss_function(int64_t order, int64_t n, const real *y, const real *t,
                                  const real *weights, real factor, real *d);

typedef struct {
    idx rows, n_out;
    const real *Y; /* leading dimension ld */
    const real *T; /* targets; null for labels */
    const int64_t *labels;
    const real *weights; /* (rows), or null */
    const real *U; /* leading dimension ld; null unless ℓ''·U is wanted, and then nothing else is */
    real *D; /* dL/dY or ℓ''·U, leading dimension ld; null if only the value is wanted */
    real *scratch; /* room for outputs, targets and U of VL rows */
    int lane_major; /* whether Y, U and D are (n_out, ld), T (n_out, ldt) */
    idx ld, ldt; /* of Y, U and D; of T */
    double scale;
    double constant; /* the row function's parameter */
    const fb_user *user; /* for FB_USER_LOSS */
} loss_tile;

static const real ones[] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

INLINE double weight_of(const loss_tile *tile, idx i)
{
    return tile->weights ? (double)tile->weights[i] : 1;
}

/* An elementwise loss of this kind, a constant where this is inlined. */
INLINE double elementwise_loss(const loss_tile *tile, int kind)
{
    const int lane_major = tile->lane_major, weighted = tile->weights != NULL;
    idx lines = lane_major ? tile->n_out : tile->rows; /* of n numbers each */
    idx n = lane_major ? tile->rows : tile->n_out;
    const real *weights = weighted ? tile->weights : ones, *U = tile->U;
    const real factor = (real)tile->scale;
    const vec c = splat((real)tile->constant);
    double_sum sum = {{{0}}};
    for (idx i = 0; i < lines; i++, weights += weighted && !lane_major) {
        for (idx j = 0; j < n; j += VL) {
            idx at = i * tile->ld + j;
            mask m = first_lanes(n - j);
            vec y = load_first(tile->Y + at, m);
            vec t = load_first(tile->T + i * tile->ldt + j, m);
            vec w = lane_major && weighted ? load_first(weights + j, m) /* 0 at the end */
                                           : load_first(ones, m) * *weights;
            if (U) {
                vec u = load_first(U + at, m);
                store(tile->D + at, loss_curve(kind, y, t, u, c) * w * factor);
                continue;
            }
            add_to(&sum, loss_value(kind, y, t, c) * w);
            if (tile->D) store(tile->D + at, loss_slope(kind, y, t, c) * w * factor);
        }
    }
    return total_of(sum);
}

/* Cross-entropy of softmax(y), log Σ e^(y - max) + max - y_label or Σ t (log Σ + max - y), of up to
 * VL rows from row `first` on, one in each lane; y, t, u and d are lane-major. Returns w ℓ by rows.
 * Unless d is null, d = dL/dY, or with u the product of the Hessian with it, Σt · p ∘ (u - p·u) for
 * p = softmax(y); d may be y. */
INLINE vec softmax_of_lanes(const loss_tile *tile, idx first, idx rows, const real *y,
                            const real *t, idx ldt, const real *u, real *d, idx ld)
{
    idx n = tile->n_out;
    mask m = first_lanes(rows);
    real labels[VL] = {0};
    for (idx i = 0; !t && i < rows; i++) labels[i] = (real)tile->labels[first + i];
    vec zero = {0}, label = load(labels), top = load(y);
    for (idx j = 1; j < n; j++) top = vmax(top, load(y + j * ld)); /* a NaN reaches `total` */
    vec total = {0}, dot = {0}, along = {0}, target_sum = t ? zero : splat(1);
    for (idx j = 0; j < n; j++) {
        vec v = load(y + j * ld) - top, e = vexp(v);
        if (d) store(d + j * ld, e);
        if (u) along += e * load(u + j * ld);
        total += e;
        if (t) {
            vec tj = load(t + j * ldt);
            dot += tj * v, target_sum += tj;
        } else {
            dot += if_equal(label, splat((real)j), v, zero);
        }
    }
    vec w = load_first(tile->weights ? tile->weights + first : ones, m);
    vec factor = w * (real)tile->scale, share = target_sum * factor / total, mean = along / total;
    for (idx j = 0; d && j < n; j++) {
        vec target = t ? load(t + j * ldt) * factor : if_equal(label, splat((real)j), factor, zero);
        vec slope = load(d + j * ld) * share;
        store(d + j * ld, u ? slope * (load(u + j * ld) - mean) : slope - target);
    }
    return fill_after(w * (target_sum * vlog(total) - dot), m, zero);
}

static double softmax_loss(const loss_tile *tile)
{
    idx n = tile->n_out, ld = tile->ld, ldt = tile->ldt;
    double_sum sum = {{{0}}};
    for (idx i = 0; i < tile->rows; i += VL) {
        idx rows = tile->rows - i < VL ? tile->rows - i : VL;
        const real *Y = tile->Y, *T = tile->T, *U = tile->U;
        real *D = tile->D;
        if (tile->lane_major) {
            add_to(&sum, softmax_of_lanes(tile, i, rows, Y + i, T ? T + i : NULL, ldt,
                                          U ? U + i : NULL, D ? D + i : NULL, ld));
            continue;
        }
        real *y = tile->scratch, *t = T ? y + n * VL : NULL, *u = U ? y + 2 * n * VL : NULL;
        transpose(rows, n, Y + i * ld, ld, y, VL);
        if (t) transpose(rows, n, T + i * ldt, ldt, t, VL);
        if (u) transpose(rows, n, U + i * ld, ld, u, VL);
        add_to(&sum, softmax_of_lanes(tile, i, rows, y, t, VL, u, y, VL));
        if (D) transpose(n, rows, y, VL, D + i * ld, ld);
    }
    return total_of(sum);
}

/* A loss of this kind of means m, columns 0 to k - 1 of Y, and logarithms v of variances, columns k
 * to 2k - 1. */
INLINE double gaussian_loss(const loss_tile *tile, int kind)
{
    const int lane_major = tile->lane_major, weighted = tile->weights != NULL;
    idx k = tile->n_out / 2, lines = lane_major ? k : tile->rows;
    idx n = lane_major ? tile->rows : k;
    idx variances = lane_major ? k * tile->ld : k; /* their distance from the means */
    const real *weights = weighted ? tile->weights : ones, factor = (real)tile->scale;
    double_sum sum = {{{0}}};
    for (idx i = 0; i < lines; i++, weights += weighted && !lane_major) {
        for (idx j = 0; j < n; j += VL) {
            idx at = i * tile->ld + j;
            mask lanes = first_lanes(n - j);
            vec m = load_first(tile->Y + at, lanes);
            vec v = load_first(tile->Y + at + variances, lanes), t = {0};
            if (tile->T) t = load_first(tile->T + i * tile->ldt + j, lanes);
            vec w = lane_major && weighted ? load_first(weights + j, lanes) /* 0 at the end */
                                           : load_first(ones, lanes) * *weights;
            add_to(&sum, gaussian_value(kind, m, v, t) * w);
            if (!tile->D) continue;
            vec dm = gaussian_slope_m(kind, m, v, t), dv = gaussian_slope_v(kind, m, v, t);
            if (tile->U) {
                const real *u = tile->U + at;
                vec um = load_first(u, lanes), uv = load_first(u + variances, lanes);
                dm = gaussian_curve_m(kind, m, v, t, um, uv);
                dv = gaussian_curve_v(kind, m, v, t, um, uv);
            }
            store_first(tile->D + at, lanes, dm * w * factor);
            store_first(tile->D + at + variances, lanes, dv * w * factor);
        }
    }
    return total_of(sum);
}

/* Rows 2i and 2i + 1 are a pair, the better one first. */
static double margin_ranking_loss(const loss_tile *tile)
{
    double sum = 0;
    for (idx i = 0; i < tile->rows; i += 2) {
        real slack = (real)tile->constant - (tile->Y[i] - tile->Y[i + 1]);
        real loss = slack <= 0 ? 0 : slack, slope = slack > 0 ? -1 : loss; /* NaN stays */
        if (!tile->U) sum += weight_of(tile, i) * (double)loss;
        if (!tile->D) continue;
        if (tile->U) slope = 0;
        tile->D[i] = (real)(tile->scale * weight_of(tile, i)) * slope;
        tile->D[i + 1] = (real)(tile->scale * weight_of(tile, i + 1)) * -slope;
    }
    return sum;
}

/* The user's function of n pairs (y, t), at most LOSS_PIECE: Σ w ℓ, and d = factor·w·ℓ', or with a
 * direction factor·w·ℓ''; all w are 1 if `weights` is null. */
enum { LOSS_PIECE = 256 };
__attribute__((noinline)) static double user_loss_of(const loss_tile *tile, idx n, const real *y,
                                                     const real *t, const real *weights,
                                                     real factor, real *d)
{
    const fb_user *user = tile->user;
    const int order = tile->U ? 2 : 1;
    if (user->function)
        return ((user_loss_function *)user->function)(order, n, y, t, weights, factor, d);
    program_run run;
    real values[LOSS_PIECE];
    double_sum sum = {{{0}}};
    program_start(&run, user->programs[order], NULL);
    program_apply(&run, n, (const real *[]){y, t}, order == 1 ? (real *[]){values, d} : &d);
    for (idx i = 0; i < n; i += VL) {
        mask m = first_lanes(n - i);
        vec w = load_first(weights ? weights + i : ones, m);
        if (order == 1) add_to(&sum, load_first(values + i, m) * w);
        store_first(d + i, m, load_first(d + i, m) * (w * factor));
    }
    return total_of(sum);
}

/* x (lines, length), rows `from` apart, as one line: x itself, or the lines joined in `room`, where
 * up to a vector behind their end is overwritten. */
INLINE const real *join_lines(idx lines, idx length, const real *x, idx from, real *room)
{
    if (lines == 1) return x;
    for (idx i = 0; i < lines; i++) copy_row(length, x + i * from, room + i * length);
    return room;
}

/* The user's function works on vectors, so that short lines are joined, as many as have room, and
 * long ones cut. */
static double user_loss(const loss_tile *tile)
{
    _Alignas(64) real ys[LOSS_PIECE + VL], ts[LOSS_PIECE + VL], w[LOSS_PIECE], d[LOSS_PIECE + VL];
    const int lane_major = tile->lane_major;
    const real *weights = tile->weights;
    idx lines = lane_major ? tile->n_out : tile->rows;
    idx length = lane_major ? tile->rows : tile->n_out;
    idx most = length < LOSS_PIECE ? length : LOSS_PIECE, most_lines = LOSS_PIECE / most;
    double sum = 0;
    for (idx i = 0; i < lines; i += most_lines)
        for (idx j = 0; j < length; j += most) {
            idx n = lines - i < most_lines ? lines - i : most_lines, at = i * tile->ld + j;
            idx columns = length - j < most ? length - j : most;
            const real *y = join_lines(n, columns, tile->Y + at, tile->ld, ys);
            const real *t = join_lines(n, columns, tile->T + i * tile->ldt + j, tile->ldt, ts);
            for (idx k = 0; weights && k < n; k++)
                for (idx e = 0; e < columns; e++)
                    w[k * columns + e] = weights[lane_major ? j + e : i + k];
            sum += user_loss_of(tile, n * columns, y, t, weights ? w : NULL, (real)tile->scale, d);
            for (idx k = 0; tile->D && k < n; k++, at += tile->ld)
                for (idx e = 0; e < columns; e += VL) {
                    mask m = first_lanes(columns - e);
                    vec slope = load(d + k * columns + e);
                    if (tile->U) slope *= load_first(tile->U + at + e, m);
                    store_first(tile->D + at + e, m, slope);
                }
        }
    return sum;
}

#define DEFINE_ELEMENTWISE(kind)                                                                   \
    static double loss_of_##kind(const loss_tile *tile) { return elementwise_loss(tile, kind); }
EACH_ELEMENTWISE_LOSS(DEFINE_ELEMENTWISE)
#define DEFINE_GAUSSIAN(kind)                                                                      \
    static double loss_of_##kind(const loss_tile *tile) { return gaussian_loss(tile, kind); }
EACH_GAUSSIAN_LOSS(DEFINE_GAUSSIAN)

/* Σ w ℓ of the tile, with D as described above; a kind without a case traps. */
static double tile_loss(int64_t kind, const loss_tile *tile)
{
#define LOSS(kind) case kind: return loss_of_##kind(tile);
    switch (kind) {
    EACH_ELEMENTWISE_LOSS(LOSS)
    EACH_GAUSSIAN_LOSS(LOSS)
    case FB_MARGIN_RANKING: return margin_ranking_loss(tile);
    case FB_USER_LOSS: return user_loss(tile);
    case FB_SOFTMAX_CE:
    case FB_SOFTMAX_CE_LABELS: return softmax_loss(tile);
    default: __builtin_trap();
    }
}
