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
    real *scratch; /* room for outputs and targets of VL rows */
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

/* row (n) = e^(y - max y), for y (n); *max = max y. Returns the sum of row. */
INLINE real exponentials(const real *y, idx n, real *row, real *max)
{
    const vec least = splat((real)-INFINITY);
    vec most = least, total = {0};
    for (idx j = 0; j < n; j += VL) { /* lanes after the last output neither win nor add */
        mask m = first_lanes(n - j);
        vec v = fill_after(load_first(y + j, m), m, least);
        store(row + j, v);
        most = vmax(most, v); /* NaN reaches the sum below in any case */
    }
    *max = hmax(most);
    for (idx j = 0; j < n; j += VL) {
        vec e = vexp(load(row + j) - *max);
        store(row + j, e);
        total += e;
    }
    return hsum(total);
}

/* Cross-entropy of softmax(y), log Σ e^(y - max) + max - y_label or Σ t (log Σ + max - y), of up to
 * VL rows from row `first` on, one in each lane; y and t are lane-major. Returns w ℓ by rows; d =
 * dL/dY unless d is null, which may be y. */
INLINE vec softmax_of_lanes(const loss_tile *tile, idx first, idx rows, const real *y, idx ldy,
                            const real *t, idx ldt, real *d, idx ldd)
{
    idx n = tile->n_out;
    mask m = first_lanes(rows);
    real labels[VL] = {0};
    for (idx i = 0; !t && i < rows; i++) labels[i] = (real)tile->labels[first + i];
    vec zero = {0}, label = load(labels), top = load(y);
    for (idx j = 1; j < n; j++) top = vmax(top, load(y + j * ldy)); /* a NaN reaches `total` */
    vec total = {0}, dot = {0}, target_sum = t ? zero : splat(1);
    for (idx j = 0; j < n; j++) {
        vec v = load(y + j * ldy) - top, e = vexp(v);
        if (d) store(d + j * ldd, e);
        total += e;
        if (t) {
            vec tj = load(t + j * ldt);
            dot += tj * v, target_sum += tj;
        } else {
            dot += if_equal(label, splat((real)j), v, zero);
        }
    }
    vec w = load_first(tile->weights ? tile->weights + first : ones, m);
    vec factor = w * (real)tile->scale, share = target_sum * factor / total;
    for (idx j = 0; d && j < n; j++) {
        vec target = t ? load(t + j * ldt) * factor : if_equal(label, splat((real)j), factor, zero);
        store(d + j * ldd, load(d + j * ldd) * share - target);
    }
    return fill_after(w * (target_sum * vlog(total) - dot), m, zero);
}

static double softmax_loss(const loss_tile *tile)
{
    idx n = tile->n_out, ld = tile->ld;
    double_sum sum = {{{0}}};
    for (idx i = 0; i < tile->rows; i += VL) {
        idx rows = tile->rows - i < VL ? tile->rows - i : VL;
        const real *Y = tile->Y, *T = tile->T;
        real *D = tile->D;
        if (tile->lane_major) {
            add_to(&sum, softmax_of_lanes(tile, i, rows, Y + i, ld, T ? T + i : NULL, tile->ldt,
                                          D ? D + i : NULL, ld));
            continue;
        }
        real *y = tile->scratch, *t = T ? y + n * VL : NULL;
        transpose(rows, n, Y + i * ld, ld, y, VL);
        if (t) transpose(rows, n, T + i * tile->ldt, tile->ldt, t, VL);
        add_to(&sum, softmax_of_lanes(tile, i, rows, y, VL, t, VL, y, VL));
        if (D) transpose(n, rows, y, VL, D + i * ld, ld);
    }
    return total_of(sum);
}

/* D = the product of the Hessian with U: with p = softmax(y) it is Σt · p ∘ (u - p·u). */
static void softmax_curve(const loss_tile *tile)
{
    idx n = tile->n_out;
    for (idx i = 0; i < tile->rows; i++) {
        const real *u = tile->U + i * tile->ld, *t = tile->T ? tile->T + i * n : NULL;
        real *d = tile->D + i * tile->ld;
        real top, sum_exp = exponentials(tile->Y + i * tile->ld, n, tile->scratch, &top);
        double target_sum = 0;
        for (idx j = 0; t && j < n; j++) target_sum += (double)t[j];
        vec dot = {0};
        for (idx j = 0; j < n; j += VL)
            dot += load(tile->scratch + j) * load_first(u + j, first_lanes(n - j));
        real mean = hsum(dot) / sum_exp;
        double factor = tile->scale * weight_of(tile, i) * (t ? target_sum : 1) / (double)sum_exp;
        for (idx j = 0; j < n; j += VL) {
            mask m = first_lanes(n - j);
            vec centred = load_first(u + j, m) - mean;
            store_first(d + j, m, load(tile->scratch + j) * centred * (real)factor);
        }
    }
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

/* The user's function on line i of `length` numbers (a row, or lane-major a unit), by pieces that
 * stay in the cache. */
static double user_loss_of_line(const loss_tile *tile, idx i, idx length)
{
    real unread[LOSS_PIECE];
    const real *along = tile->lane_major ? tile->weights : NULL, *U = tile->U;
    double sum = 0, w = tile->lane_major ? 1 : weight_of(tile, i);
    for (idx j = 0; j < length; j += LOSS_PIECE) {
        idx n = length - j < LOSS_PIECE ? length - j : LOSS_PIECE, at = i * tile->ld + j;
        real *d = tile->D ? tile->D + at : unread;
        sum += w * user_loss_of(tile, n, tile->Y + at, tile->T + i * tile->ldt + j,
                                along ? along + j : NULL, (real)(tile->scale * w), d);
        for (idx e = 0; U && e < n; e++) d[e] *= U[at + e];
    }
    return sum;
}

/* joined (lines, length) = x (lines, from); up to a vector behind its end is overwritten. */
INLINE void join_lines(idx lines, idx length, const real *x, idx from, real *joined)
{
    for (idx i = 0; i < lines; i++)
        for (idx j = 0; j < length; j += VL)
            store(joined + i * length + j, load_first(x + i * from + j, first_lanes(length - j)));
}

/* The user's function works on vectors, so that short lines are joined, as many as have room. */
static double user_loss(const loss_tile *tile)
{
    enum { LONG = 32, ROOM = LOSS_PIECE };
    _Alignas(64) real y[ROOM + VL], t[ROOM + VL], w[ROOM + VL], d[ROOM + VL];
    const int lane_major = tile->lane_major;
    const real *weights = tile->weights;
    idx lines = lane_major ? tile->n_out : tile->rows;
    idx length = lane_major ? tile->rows : tile->n_out;
    double sum = 0;
    if (length >= LONG)
        for (idx i = 0; i < lines; i++) sum += user_loss_of_line(tile, i, length);
    else
        for (idx i = 0; i < lines; i += ROOM / length) {
            idx n = lines - i < ROOM / length ? lines - i : ROOM / length, at = i * tile->ld;
            join_lines(n, length, tile->Y + at, tile->ld, y);
            join_lines(n, length, tile->T + i * tile->ldt, tile->ldt, t);
            for (idx k = 0; weights && k < n; k++)
                for (idx e = 0; e < length; e++)
                    w[k * length + e] = weights[lane_major ? e : i + k];
            sum += user_loss_of(tile, n * length, y, t, weights ? w : NULL, (real)tile->scale, d);
            for (idx k = 0; tile->D && k < n; k++)
                for (idx e = 0; e < length; e += VL) {
                    idx place = at + k * tile->ld + e;
                    mask m = first_lanes(length - e);
                    vec slope = load(d + k * length + e);
                    if (tile->U) slope *= load_first(tile->U + place, m);
                    store_first(tile->D + place, m, slope);
                }
        }
    return tile->U ? 0 : sum;
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
    case FB_SOFTMAX_CE_LABELS:
        if (!tile->U) return softmax_loss(tile);
        softmax_curve(tile);
        return 0;
    default: __builtin_trap();
    }
}
