/* Directional derivatives: of the outputs (jvp), and of the gradient (hvp), which is the product of
 * the Hessian with the direction, by B. A. Pearlmutter's R-operator ("Fast exact multiplication by
 * the Hessian", Neural Computation 6(1), 1994).
 *
 * R{A} is the derivative of A as the parameters (W, b) move in the direction (V, c).
 */

/* R{Z} = R{X}·W + X·V + c; R{X} is null for the network's input, which does not move. */
static void layer_direction(const fb_layer *layer, idx rows, block X, block RX, const real *params,
                            const real *direction, block RZ, real *pack)
{
    idx n_in = layer->n_in, n_out = layer->n_out;
    int padded = RZ.ld % VL == 0 && RZ.ld >= round_up(n_out);
    const real *c = layer->b < 0 ? NULL : direction + layer->b;
    epilogue set = {c, (real)-INFINITY, 0, padded}, add = {NULL, (real)-INFINITY, 1, padded};
    factor V = {direction + layer->w, n_out, 0}, W = {params + layer->w, n_out, 0};
    gemm(rows, n_out, n_in, X.p, X.ld, 1, V, RZ.p, RZ.ld, set, pack);
    if (RX.p)
        gemm(rows, n_out, n_in, RX.p, RX.ld, 1, W, RZ.p, RZ.ld, add, pack);
}

/* Y, Z, R{Z} and R{Y} = act'(Z) ∘ R{Z} of all layers for a tile of rows. */
static void tile_direction(const fb_plan *plan, const buffers *B, const real *params,
                           const real *direction, idx rows, const real *X)
{
    block in = {(real *)(uintptr_t)X, plan->layers[0].n_in}, R_in = {NULL, 0};
    tile_forward(plan, B, params, rows, X);
    for (idx l = 0; l < plan->n_layers; l++) {
        const fb_layer *layer = plan->layers + l;
        block Y = B->Y[l], Z = B->Z[l], RZ = B->RZ[l], RY = B->RY[l];
        layer_direction(layer, rows, in, R_in, params, direction, RZ, B->pack);
        act_backward(&layer->act, rows, layer->n_out, RZ.p, RZ.ld, Y.p, Y.ld, Z.p, Z.ld, RY.p,
                     RY.ld);
        in = Y, R_in = RY;
    }
}

static int jvp(fb_plan *plan, const void *params, idx n, const void *X_, const void *tangent,
               void *Y_, void *dY_)
{
    const real *X = X_;
    real *Y = Y_, *dY = dY_;
    idx tile = tile_rows(plan, n), n_in = plan->layers[0].n_in;
    idx last = plan->n_layers - 1, n_out = plan->layers[last].n_out;
    buffers B;
    if (!take_buffers(&B, plan, (needs){FOR_FORWARD | FOR_DIRECTION, tile, 0, 0}))
        return FB_NO_MEMORY;
    for (idx i = 0; i < n; i += tile) {
        B.Y[last] = (block){Y + i * n_out, n_out}; /* the results themselves, without gaps */
        B.Z[last].ld = B.RZ[last].ld = n_out;
        B.RY[last] = (block){dY + i * n_out, n_out};
        tile_direction(plan, &B, params, tangent, n - i < tile ? n - i : tile, X + i * n_in);
    }
    give_buffers(&B, plan);
    return FB_DONE;
}

/* d = dL/dA of a layer's output becomes D = dL/dZ, and Rd its derivative: D = dL/dA ∘ act'(Z) and
 * R{D} = R{dL/dA} ∘ act'(Z) + dL/dA ∘ act''(Z) ∘ R{Z}. Overwrites Z and R{Z}. For Gauss and
 * Newton's matrix dL/dA counts as 0. */
static void differentiate_deltas(const fb_layer *layer, idx rows, const buffers *B, idx l, block d,
                                 block Rd, int gauss_newton)
{
    idx n_out = layer->n_out, size = size_of(rows, n_out, d);
    block Y = B->Y[l], Z = B->Z[l], RZ = B->RZ[l];
    act_backward(&layer->act, rows, n_out, Rd.p, Rd.ld, Y.p, Y.ld, Z.p, Z.ld, Rd.p, Rd.ld);
    if (gauss_newton) return;
    multiply(size, d.p, RZ.p, RZ.p);
    act_backward(&layer->act, rows, n_out, d.p, d.ld, Y.p, Y.ld, Z.p, Z.ld, d.p, d.ld);
    act_apply(&layer->act, 2, size, Z.p, Z.p);
    multiply(size, RZ.p, Z.p, RZ.p);
    add_multiple(size, 1, RZ.p, Rd.p);
}

typedef struct {
    row_sum sum;
    const real *v;
    int gauss_newton;
} hvp_call;

/* product (n_params) (+)= the Hessian of a tile times v, or Gauss and Newton's matrix, which leaves
 * out all terms with dL/dY. */
static double hvp_tile(const row_sum *s, const buffers *B, idx i, idx rows, real *product, int add)
{
    const hvp_call *c = (const hvp_call *)(const void *)s;
    const fb_plan *plan = s->plan;
    const int gauss_newton = c->gauss_newton;
    rows_of_data data = stored_rows(plan, s->problem, i);
    idx last = plan->n_layers - 1;
    block d = B->delta[0], d_next = B->delta[1], Rd = B->delta[2], Rd_next = B->delta[3];
    d.ld = Rd.ld = leading(plan->layers[last].n_out);
    tile_direction(plan, B, s->params, c->v, rows, data.X);
    tile_objective(s, B, data, rows, B->RY[last].p, Rd.p);
    if (!gauss_newton) tile_objective(s, B, data, rows, NULL, d.p);
    for (idx l = last; l >= 0; l--) {
        const fb_layer *layer = plan->layers + l;
        idx n_in = layer->n_in, n_out = layer->n_out;
        block A = l ? B->Y[l - 1] : (block){(real *)(uintptr_t)data.X, n_in};
        real *W = product + layer->w, *b = layer->b < 0 ? NULL : product + layer->b;
        differentiate_deltas(layer, rows, B, l, d, Rd, gauss_newton);
        layer_gradient(rows, n_in, n_out, A.p, A.ld, Rd, W, b, add, B->pack);
        if (l == 0) break; /* the input does not move */
        Rd_next.ld = d_next.ld = leading(n_in);
        layer_pullback(rows, n_in, n_out, Rd, B->Wt[l], Rd_next, 0, B->pack);
        if (!gauss_newton) {
            block RA = B->RY[l - 1];
            layer_gradient(rows, n_in, n_out, RA.p, RA.ld, d, W, NULL, 1, B->pack);
            layer_pullback(rows, n_in, n_out, d, B->Vt[l], Rd_next, 1, B->pack);
            layer_pullback(rows, n_in, n_out, d, B->Wt[l], d_next, 0, B->pack);
        }
        block swap = d, R_swap = Rd;
        d = d_next, Rd = Rd_next;
        d_next = swap, Rd_next = R_swap;
    }
    return 0;
}

static int hvp(fb_plan *plan, const fb_problem *problem, const void *params, const void *v,
               int gauss_newton, void *product)
{
    hvp_call call = {sum_over(plan, problem, params, hvp_tile, product), v, gauss_newton};
    row_sum *s = &call.sum;
    int what = FOR_FORWARD | FOR_BACKWARD | FOR_WEIGHTS | FOR_DIRECTION;
    buffers B;
    if (!begin_sum(s, &B, 1, (needs){what, s->tile, s->tile, 0})) return FB_NO_MEMORY;
    transpose_weights(plan, params, 0, B.Wt);
    if (!gauss_newton) transpose_weights(plan, v, 0, B.Vt);
    sum_parts(s);
    end_sum(s);
    return FB_DONE;
}
