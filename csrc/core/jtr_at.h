/* Jᵀr at params + step, where J stays that of params and r is that of params + step.
 *
 * Levenberg and Marquardt's method with geodesic acceleration calls it: along a step v the
 * residuals' second derivative is about 2/h² (r(x + hv) - r(x) - h Jv), and its product with Jᵀ is
 * all that the correction of the step needs (M. K. Transtrum and J. P. Sethna, "Improvements to the
 * Levenberg-Marquardt algorithm for nonlinear least-squares minimization", 2012). With weights w
 * and a robust rho it is JᵀDr, D the diagonal of w·rho' at the residuals of params, as in the
 * normal equations; where step is 0, it is the JᵀDr of normal_equations().
 */

/* The deltas D r(params + step) of a tile. `Y` holds the outputs at params, from which D comes,
 * `there` those at params + step; the deltas take their place. */
static void weigh_residuals(const squares_call *c, block Y, idx rows, rows_of_data data,
                            block there)
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

static double jtr_tile(const row_sum *s, const buffers *B, idx i, idx rows, real *jtr, int add)
{
    const squares_call *c = (const squares_call *)(const void *)s;
    const fb_plan *plan = s->plan;
    idx last = plan->n_layers - 1;
    block Y = B->Y[last], there = {B->delta[0].p, Y.ld};
    rows_of_data data = stored_rows(plan, s->problem, i);
    tile_forward(plan, B, c->moved, rows, data.X);
    memcpy(there.p, Y.p, (size_t)(rows * Y.ld) * sizeof(real));
    buffers K = recorded_forward(plan, B, c->at_params, s->n, i, s->params, rows, data.X);
    weigh_residuals(c, K.Y[last], rows, data, there);
    tile_backward(plan, &K, rows, data.X, jtr, add, NULL);
    return 0;
}

/* Copy the entries of the free parameters: from (n_params), to (n_free). */
static void select_free(idx n_params, const uint8_t *free, const real *from, real *to)
{
    for (idx i = 0; i < n_params; i++)
        if (!free || free[i]) *to++ = from[i];
}

/* The public function: params and moved (n_params), result (n_free); `at_params` as for
 * normal_equations(). */
static int jtr_at(fb_plan *plan, const fb_problem *problem, const void *params, const void *moved,
                  idx threads, fb_rho rho, fb_outputs *at_params, void *result)
{
    squares_call call = {.sum = sum_over(plan, problem, params, jtr_tile, NULL),
                         .rho = rho,
                         .moved = moved,
                         .at_params = at_params};
    row_sum *s = &call.sum;
    buffers crew[FB_MOST_PARTS];
    needs need = {FOR_FORWARD | FOR_BACKWARD | FOR_WEIGHTS, s->tile, s->tile, s->size};
    if (!begin_sum(s, crew, useful_workers(s->n, threads), need)) return FB_NO_MEMORY;
    s->result = crew->extra;
    transpose_weights(plan, params, 0, crew->Wt);
    sum_parts(s);
    select_free(plan->n_params, plan->free, s->result, result);
    end_sum(s);
    if (at_params) at_params->recorded = 1;
    return FB_DONE;
}
