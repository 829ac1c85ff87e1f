/* The objective and its gradient: the sum of the rows' losses, and penalties on the weights.
 *
 * The rows are cut into parts, whatever the number of threads; up to FB_PART_ROWS rows are one
 * part. Within a part the tiles add to one gradient. The sums of the parts are then added in order,
 * so that the result does not depend on how many workers there are.
 */

/* The data of some rows: X (rows, n_in), T (rows, n_targets) or labels, weights or null. Lane-major
 * X and T are transposed, see lane_major.h. */
typedef struct {
    const real *X, *T, *weights;
    const int64_t *labels;
} rows_of_data;

/* Rows i.. of the problem, where they are. */
INLINE rows_of_data stored_rows(const fb_plan *plan, const fb_problem *problem, idx i)
{
    const real *X = problem->X, *T = problem->y, *weights = problem->weights;
    return (rows_of_data){X + i * plan->layers[0].n_in,
                          T ? T + i * (idx)problem->n_targets : NULL, weights ? weights + i : NULL,
                          problem->labels ? problem->labels + i : NULL};
}

/* Prefetch the beginning and the end of a row of n numbers; the processor itself goes on with the
 * rest of a long one. */
INLINE void prefetch(const real *row, idx n)
{
    enum { LINE = 64 / sizeof(real), MOST = 4 * LINE };
    if (n > MOST) n = MOST;
    for (idx i = 0; i < n; i += LINE) __builtin_prefetch(row + i);
    __builtin_prefetch(row + n - 1);
}

/* Prefetch the data of the row AHEAD places later in `order`, which has `left` rows from here on.
 * At 10^6 rows of 20 numbers it makes gathering 1.4 to 1.7 times as fast. */
INLINE void prefetch_ahead(const fb_plan *plan, const fb_problem *problem, const int64_t *order,
                           idx left)
{
    enum { AHEAD = 32 };
    const real *X = problem->X, *T = problem->y, *weights = problem->weights;
    if (left <= AHEAD) return;
    idx row = (idx)order[AHEAD], n_in = plan->layers[0].n_in, n_targets = (idx)problem->n_targets;
    prefetch(X + row * n_in, n_in);
    if (T) prefetch(T + row * n_targets, n_targets);
    if (weights) __builtin_prefetch(weights + row);
    if (problem->labels) __builtin_prefetch(problem->labels + row);
}

/* Parts. */

typedef struct {
    idx size, count; /* rows of a part, the last one may have fewer; number of parts */
} parts;

INLINE parts partition(idx n)
{
    idx most = (n + FB_PART_ROWS - 1) / FB_PART_ROWS;
    most = most < 1 ? 1 : most > FB_MOST_PARTS ? FB_MOST_PARTS : most;
    idx size = 2 * ((n + 2 * most - 1) / (2 * most)); /* even, for losses of pairs */
    return (parts){size, size ? (n + size - 1) / size : 0};
}

/* How many workers a sum over n rows can use, at most `threads`. */
INLINE idx useful_workers(idx n, idx threads)
{
    if (n <= FB_PART_ROWS || threads <= 1) return 1;
    idx count = partition(n).count;
    return threads < count ? threads : count;
}

/* How many slots there are for sums of parts, of `size` numbers each: one for each part, so that no
 * worker waits, unless they are large. A single worker needs one slot, since it adds each sum as
 * soon as it is computed. */
static idx slots_for(idx n, idx workers, idx size)
{
    enum { ROOM = 1 << 26 }; /* bytes */
    if (n <= FB_PART_ROWS) return 0;
    idx count = partition(n).count, fitting = ROOM / ((idx)sizeof(real) * size + 1);
    if (workers == 1) return 1;
    return fitting < workers ? workers : fitting < count ? fitting : count;
}

/* A sum over rows of the stored data or of a batch: of numbers, as losses are, and of vectors, as
 * gradients are. A call that needs more has it in a struct that begins with a row_sum. */
typedef struct row_sum row_sum;

/* The number of a tile: rows i.. of the sum. Its vector is set or (`add`) added to `result`, or to
 * the partial sums of a lane-major sum; null if only the number is wanted. */
typedef double tile_sum(const row_sum *s, const buffers *B, idx i, idx rows, real *result, int add);

struct row_sum {
    fb_plan *plan;
    const fb_problem *problem;
    const real *params;
    tile_sum *sum_tile;
    void (*merge)(void *sum, idx part); /* adds a part's vector to `result` */
    buffers *crew; /* of the workers; those of worker 0 have the transposed weights */
    idx workers;
    fb_team *team;
    const int64_t *order; /* the rows to take, from place `first` on; null: rows first.. */
    idx first, n, tile; /* n: rows of the sum; tile: rows of a tile */
    int resident; /* whether the first tile's rows are in B->X and B->T; lane-major only */
    double scale;
    int lane_major, penalised; /* whether rows lie along lanes; whether there are penalties */
    const uint64_t *dropout; /* key of the step, or null */
    int flush; /* whether to flush subnormal numbers, a mode that belongs to each thread */
    real *result; /* null if only the number is wanted */
    idx size, n_slots;
    real *slots; /* (n_slots, size): vectors of parts, but of the first one */
    double sums[FB_MOST_PARTS]; /* numbers of the parts */
};

/* The sum of the rows from start to stop; its vector to `result` unless it is null. */
static double sum_rows(const row_sum *s, const buffers *B, idx start, idx stop, real *result)
{
    double sum = 0;
    for (idx i = start; i < stop; i += s->tile)
        sum += s->sum_tile(s, B, i, stop - i < s->tile ? stop - i : s->tile, result, i > start);
    if (s->lane_major && result && start < stop)
        add_lanes(s->plan->n_params, B->extra, result, s->flush);
    return sum;
}

/* The slot of a part's vector, which part p - n_slots used before. */
static real *slot_of(const row_sum *s, idx part) { return s->slots + part % s->n_slots * s->size; }

/* The work of one part: its number to s->sums, its vector to its slot (of part 0 to s->result). */
static void sum_part(void *sum, idx worker, idx part)
{
    row_sum *s = sum;
    idx size = partition(s->n).size, start = part * size;
    fp_mode mode = s->flush ? flush_subnormals() : 0;
    buffers B = s->crew[worker];
    B.Wt = s->crew->Wt, B.Vt = s->crew->Vt; /* which all workers read */
    s->sums[part] = sum_rows(s, &B, start, s->n - start < size ? s->n : start + size,
                             s->result && part ? slot_of(s, part) : s->result);
    if (s->flush) restore_mode(mode);
}

/* Add the gradient of a part to that of the parts before. */
static void merge_part(void *sum, idx part)
{
    row_sum *s = sum;
    fp_mode mode = s->flush ? flush_subnormals() : 0;
    if (s->result && part) add_multiple(s->plan->n_params, 1, slot_of(s, part), s->result);
    if (s->flush) restore_mode(mode);
}

/* The sum over all rows; its vector to s->result unless it is null. */
INLINE double sum_parts(row_sum *s)
{
    if (s->n <= FB_PART_ROWS) return sum_rows(s, s->crew, 0, s->n, s->result);
    idx count = partition(s->n).count;
    fb_team_run(s->team, &(fb_work){sum_part, s->merge, s, count, s->n_slots ? s->n_slots : count});
    double sum = 0;
    for (idx part = 0; part < count; part++) sum += s->sums[part];
    return sum;
}

/* A sum over all rows of a problem at params, whose vector is as long as they are. */
INLINE row_sum sum_over(fb_plan *plan, const fb_problem *problem, const real *params,
                        tile_sum *sum_tile, real *result)
{
    idx n = (idx)problem->n;
    return (row_sum){.plan = plan,
                     .problem = problem,
                     .params = params,
                     .sum_tile = sum_tile,
                     .merge = merge_part,
                     .n = n,
                     .tile = tile_rows(plan, n),
                     .scale = problem->scale,
                     .result = result,
                     .size = round_up(plan->n_params)};
}

/* Take buffers for a sum's workers, as many as there is memory for; those of worker 0 have the
 * slots too, and alone the weights. Returns 0 without memory. */
static int begin_sum(row_sum *s, buffers *crew, idx workers, needs need)
{
    s->n_slots = need.what & FOR_WEIGHTS ? slots_for(s->n, workers, s->size) : 0;
    need.extra += size_of_lane_major(s->plan, s->lane_major, need.rows);
    needs now = need;
    now.extra += s->n_slots * s->size;
    for (; s->workers < workers && take_buffers(crew + s->workers, s->plan, now); s->workers++) {
        if (s->lane_major) lay_out_lane_major(s->plan, crew + s->workers, need.rows);
        now = need;
        now.what &= ~(FOR_WEIGHTS | FOR_TRAINING);
    }
    if (!s->workers) return 0;
    s->crew = crew, s->slots = crew->extra + need.extra, s->team = fb_team_new(s->workers);
    return 1;
}

static void end_sum(row_sum *s)
{
    fb_team_free(s->team);
    for (idx i = 0; i < s->workers; i++) give_buffers(s->crew + i, s->plan);
}

/* The objective. */

/* Rows first.. of the sum's data, or those that its order lists, which are copied to B->X, B->T,
 * B->weights and B->labels. Lane-major X and T are transposed to B->X and B->T. */
static rows_of_data take_rows(const row_sum *s, const buffers *B, idx first, idx n)
{
    const fb_problem *problem = s->problem;
    const int64_t *order = s->order ? s->order + first : NULL;
    idx n_in = s->plan->layers[0].n_in, n_targets = (idx)problem->n_targets, ld = B->Y[0].ld;
    rows_of_data data = stored_rows(s->plan, problem, order ? 0 : first);
    for (idx i = 0; order && i < n; i++) {
        idx row = (idx)order[i];
        prefetch_ahead(s->plan, problem, order + i, (idx)problem->n - first - i);
        if (!s->lane_major) copy_row(n_in, data.X + row * n_in, B->X + i * n_in);
        if (!s->lane_major && data.T)
            copy_row(n_targets, data.T + row * n_targets, B->T + i * n_targets);
        if (data.weights) B->weights[i] = data.weights[row];
        if (data.labels) B->labels[i] = data.labels[row];
    }
    if (s->lane_major && !s->resident) {
        transpose_rows(n, n_in, data.X, order, B->X, ld);
        if (data.T) transpose_rows(n, n_targets, data.T, order, B->T, ld);
    }
    if (order || s->lane_major) data.X = B->X, data.T = data.T ? B->T : NULL;
    if (order && data.weights) data.weights = B->weights;
    if (order && data.labels) data.labels = B->labels;
    return data;
}

/* Σ w ℓ of a tile whose outputs are in B->Y. Unless D is null, it also writes D (rows, ld) = dL/dY,
 * or with a direction U (rows, ld) the product scale·w·ℓ''·U. */
INLINE double tile_objective(const row_sum *s, const buffers *B, rows_of_data data, idx rows,
                             const real *U, real *D)
{
    idx last = s->plan->n_layers - 1, n_out = s->plan->layers[last].n_out, ld = B->Y[last].ld;
    loss_tile tile = {.rows = rows,
                      .n_out = n_out,
                      .Y = B->Y[last].p,
                      .T = data.T,
                      .labels = data.labels,
                      .weights = data.weights,
                      .U = U,
                      .D = D,
                      .scratch = B->scratch,
                      .lane_major = s->lane_major || n_out == 1,
                      .ld = ld,
                      .ldt = s->lane_major ? ld : (idx)s->problem->n_targets,
                      .scale = s->scale,
                      .constant = s->problem->constant,
                      .user = s->problem->user};
    return tile_loss(s->problem->loss, &tile);
}

/* Σ w ℓ of a tile, and the gradient of scale · Σ w ℓ. */
static double sum_losses(const row_sum *s, const buffers *B, idx i, idx rows, real *grad, int add)
{
    const fb_plan *plan = s->plan;
    lane_major_tile tile = {rows, B->Y[0].ld, s->params, B->extra, add};
    rows_of_data data = take_rows(s, B, s->first + i, rows);
    if (s->dropout) draw_factors(plan, B, *s->dropout, i, rows);
    if (s->lane_major) lane_major_forward(plan, B, &tile);
    else tile_forward(plan, B, s->params, rows, data.X);
    double sum = tile_objective(s, B, data, rows, NULL, grad ? B->delta[0].p : NULL);
    if (grad && s->lane_major) lane_major_backward(plan, B, &tile);
    else if (grad) tile_backward(plan, B, rows, data.X, grad, add, NULL);
    return sum;
}

/* Penalties. Each returns its value and, unless grad is null, adds its derivative to grad. */

/* factor · Σ term over the weights w, without biases; `slope` is the derivative to w. */
#define SUM_OVER_WEIGHTS(factor, term, slope)                                                      \
    double_sum sum = {{{0}}};                                                                      \
    for (idx l = 0; l < plan->n_layers; l++) {                                                     \
        idx size = plan->layers[l].n_in * plan->layers[l].n_out, first = plan->layers[l].w;        \
        for (idx i = first; i < first + size; i += VL) {                                           \
            mask m = first_lanes(first + size - i);                                                \
            vec w = load_first(params + i, m);                                                     \
            add_to(&sum, term);                                                                    \
            if (grad) store_first(grad + i, m, load_first(grad + i, m) + (slope));                 \
        }                                                                                          \
    }                                                                                              \
    return (factor) * total_of(sum);

/* l2/2·‖W‖² */
static double l2_penalty(const fb_plan *plan, double l2, const real *params, real *grad)
{
    SUM_OVER_WEIGHTS(0.5 * l2, w * w, (real)l2 * w)
}

/* l1·Σ|W_ij| */
static double l1_penalty(const fb_plan *plan, double l1, const real *params, real *grad)
{
    SUM_OVER_WEIGHTS(l1, vabs(w), (real)l1 * sign(w))
}

/* group·Σ_j ‖W_:j‖₂, by blocks of columns. */
static double group_penalty(const fb_plan *plan, double group, const real *params, real *grad)
{
    enum { COLUMNS = 64 };
    double total = 0;
    for (idx l = 0; l < plan->n_layers; l++) {
        const fb_layer *layer = plan->layers + l;
        for (idx j = 0; j < layer->n_out; j += COLUMNS) {
            idx columns = layer->n_out - j < COLUMNS ? layer->n_out - j : COLUMNS;
            double norms[COLUMNS] = {0};
            for (idx i = 0; i < layer->n_in; i++) {
                const real *w = params + layer->w + i * layer->n_out + j;
                for (idx k = 0; k < columns; k++) norms[k] += (double)w[k] * (double)w[k];
            }
            real factors[COLUMNS];
            for (idx k = 0; k < columns; k++) {
                norms[k] = sqrt(norms[k]);
                total += norms[k];
                factors[k] = (real)(norms[k] == 0 ? 0 : group / norms[k]);
            }
            for (idx i = 0; grad && i < layer->n_in; i++) {
                idx at = layer->w + i * layer->n_out + j;
                for (idx k = 0; k < columns; k++) grad[at + k] += factors[k] * params[at + k];
            }
        }
    }
    return group * total;
}

/* The objective, penalties included; its gradient to s->result unless that is null. */
INLINE double objective(row_sum *s)
{
    const fb_problem *problem = s->problem;
    if (s->result && !s->lane_major) transpose_weights(s->plan, s->params, 0, s->crew->Wt);
    double value = s->scale * sum_parts(s);
    if (!s->penalised) return value;
    if (problem->l2 != 0) value += l2_penalty(s->plan, problem->l2, s->params, s->result);
    if (problem->l1 != 0) value += l1_penalty(s->plan, problem->l1, s->params, s->result);
    if (problem->group != 0) value += group_penalty(s->plan, problem->group, s->params, s->result);
    return value;
}

INLINE row_sum sum_of_losses(fb_plan *plan, const fb_problem *problem, const real *params,
                             real *grad)
{
    row_sum s = sum_over(plan, problem, params, sum_losses, grad);
    s.penalised = problem->l2 != 0 || problem->l1 != 0 || problem->group != 0;
    return s;
}

/* The public function; grad (n_params) may be null. */
static int value_and_grad(fb_plan *plan, const fb_problem *problem, const void *params,
                          idx threads, double *value, void *grad)
{
    row_sum s = sum_of_losses(plan, problem, params, grad);
    int what = grad ? FOR_FORWARD | FOR_BACKWARD | FOR_WEIGHTS : FOR_FORWARD;
    buffers crew[FB_MOST_PARTS];
    s.lane_major = fb_is_lane_major(plan, s.n);
    if (!begin_sum(&s, crew, useful_workers(s.n, threads), (needs){what, s.tile, s.tile, 0}))
        return FB_NO_MEMORY;
    *value = objective(&s);
    end_sum(&s);
    return FB_DONE;
}
