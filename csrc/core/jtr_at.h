/* Jᵀr at params + step, where J stays that of params and r is that of params + step.
 *
 * Levenberg and Marquardt's method with geodesic acceleration calls it: along a step v the
 * residuals' second derivative is about 2/h² (r(x + hv) - r(x) - h Jv), and its product with Jᵀ is
 * all that the correction of the step needs (M. K. Transtrum and J. P. Sethna, "Improvements to the
 * Levenberg-Marquardt algorithm for nonlinear least-squares minimization", 2012). With weights w
 * and a robust rho it is JᵀDr, D the diagonal of w·rho' at the residuals of params, as in the
 * normal equations; where step is 0, it is the JᵀDr of normal_equations().
 */

typedef struct {
    row_sum sum; /* first, so that merge_part() adds up the parts as those of a gradient */
    const real *moved; /* params + step */
    fb_rho rho;
    const outputs *at_params; /* the layers' outputs at params, or null */
} jtr_call;

/* The deltas D r(params + step) of a tile. `Y` holds the outputs at params, from which D comes,
 * `there` those at params + step; the deltas take their place. */
static void weigh_residuals(const jtr_call *c, block Y, idx rows, rows_of_data data, block there)
{
    idx n_out = c->sum.plan->layers[c->sum.plan->n_layers - 1].n_out;
    for (idx i = 0; i < rows; i++) {
        double w = data.weights ? (double)data.weights[i] : 1, slope;
        for (idx k = 0; k < n_out; k++, data.T++) {
            robust_square(c->rho, (double)(Y.p[i * Y.ld + k] - *data.T), &slope);
            real *r = there.p + i * there.ld + k;
            *r = (real)(w * slope) * (*r - *data.T);
        }
    }
}

/* Jᵀr of one part of the rows, to `grad` of the sum for part 0, else to the part's slot. */
static void jtr_part(void *context, idx worker, idx part)
{
    const jtr_call *c = context;
    const row_sum *s = &c->sum;
    const fb_plan *plan = s->plan;
    range all = part_of(s->n, part);
    buffers B = worker_buffers(s->crew, worker);
    real *grad = part ? slot_of(s, part) : s->grad;
    idx last = plan->n_layers - 1;
    block Y = B.Y[last], there = {B.delta[0].p, Y.ld};
    for (idx i = all.start; i < all.stop; i += s->tile) {
        idx rows = all.stop - i < s->tile ? all.stop - i : s->tile;
        rows_of_data data = stored_rows(plan, s->problem, i);
        tile_forward(plan, &B, c->moved, rows, data.X);
        memcpy(there.p, Y.p, (size_t)(rows * Y.ld) * sizeof(real));
        buffers K = recorded_forward(plan, &B, c->at_params, s->n, i, s->params, rows, data.X);
        weigh_residuals(c, K.Y[last], rows, data, there);
        tile_backward(plan, &K, rows, data.X, grad, i > all.start, NULL);
    }
}

/* Copy the entries of the free parameters: from (n_params), to (n_free). */
static void select_free(idx n_params, const uint8_t *free, const real *from, real *to)
{
    for (idx i = 0; i < n_params; i++)
        if (!free || free[i]) *to++ = from[i];
}

/* jtr_at() with the layers' outputs at params: it reads them from `at_params` if they are recorded
 * there, else records them. Null: it computes them. */
static int jtr_sum(fb_plan *plan, const fb_problem *problem, const void *params,
                      const void *moved, idx threads, fb_rho rho, outputs *at_params, void *result)
{
    idx n = (idx)problem->n, tile = tile_rows(plan, n), size = round_up(plan->n_params);
    idx workers = useful_workers(n, threads), n_slots = slots_for(n, workers, size);
    needs others = {FOR_FORWARD | FOR_BACKWARD, tile, tile, 0}, first = others;
    first.what |= FOR_WEIGHTS;
    first.extra = (n_slots + 1) * size;
    buffers crew[FB_MOST_PARTS];
    workers = take_crew(crew, plan, workers, first, others);
    if (!workers) return FB_NO_MEMORY;
    transpose_weights(plan, params, 0, crew->Wt);
    jtr_call call = {.sum = {.plan = plan,
                                .problem = problem,
                                .params = params,
                                .crew = crew,
                                .n = n,
                                .tile = tile,
                                .grad = crew->extra,
                                .slots = crew->extra + size,
                                .n_slots = n_slots},
                        .moved = moved,
                        .rho = rho,
                        .at_params = at_params};
    idx count = partition(n).count;
    fb_team *team = fb_team_new(workers);
    fb_team_run(team, &(fb_work){jtr_part, merge_part, &call, count, n_slots ? n_slots : count});
    fb_team_free(team);
    select_free(plan->n_params, plan->free, crew->extra, result);
    give_crew(crew, plan, workers);
    if (at_params) at_params->recorded = 1;
    return FB_DONE;
}

/* The public function: params and moved (n_params), result (n_free). */
static int jtr_at(fb_plan *plan, const fb_problem *problem, const void *params,
                           const void *moved, idx threads, fb_rho rho, void *result)
{
    return jtr_sum(plan, problem, params, moved, threads, rho, NULL, result);
}
