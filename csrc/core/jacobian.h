/* Jacobians: derivatives of every output of every row, to the parameters or to the inputs.
 *
 * Each row of data has n_out rows of deltas, one for each output. They pass through the transposed
 * layers together, so that narrow networks still fill the matrix product.
 */

enum { DELTA_ROWS = 64 };

/* Row v of J: for this layer a_i·d_j, then d_j for the biases. */
static void fill_row(const fb_layer *layer, const real *a, const real *d, real *J)
{
    idx n_in = layer->n_in, n_out = layer->n_out;
    real *W = J + layer->w;
    if (n_out == 1) {
        for (idx i = 0; i < n_in; i += VL) {
            mask m = first_lanes(n_in - i);
            store_first(W + i, m, load_first(a + i, m) * *d);
        }
    } else {
        for (idx i = 0; i < n_in; i++, W += n_out) {
            for (idx j = 0; j < n_out; j += VL) {
                mask m = first_lanes(n_out - j);
                store_first(W + j, m, load_first(d + j, m) * a[i]);
            }
        }
    }
    if (layer->b >= 0) memcpy(J + layer->b, d, (size_t)n_out * sizeof(real));
}

/* d ∘= act' of the layer, where output rows share the row of Y (or Z) of their sample. */
static void scale_deltas(const fb_layer *layer, idx rows, idx n_out, block Y, block Z, block d)
{
    if (n_out == 1) {
        act_backward(&layer->act, rows, layer->n_out, d.p, d.ld, Y.p, Y.ld, Z.p, Z.ld, d.p, d.ld);
        return;
    }
    for (idx r = 0; r < rows; r++) {
        real *p = d.p + r * n_out * d.ld, *z = Z.p ? Z.p + r * Z.ld : NULL;
        act_backward(&layer->act, n_out, layer->n_out, p, d.ld, Y.p + r * Y.ld, 0, z, 0, p, d.ld);
    }
}

/* The rows of J (if not null) and of dY/dX (if not null) of one tile. */
static void tile_jacobian(const fb_plan *plan, const buffers *B, const real *params, idx rows,
                          const real *X, real *J, real *dX)
{
    idx L = plan->n_layers, n_out = plan->layers[L - 1].n_out, deltas = rows * n_out;
    tile_forward(plan, B, params, rows, X);
    block d = B->delta[0], other = B->delta[1];
    d.ld = leading(n_out);
    memset(d.p, 0, (size_t)(deltas * d.ld) * sizeof(real));
    for (idx v = 0; v < deltas; v++) d.p[v * d.ld + v % n_out] = 1;
    for (idx l = L - 1; l >= 0; l--) {
        const fb_layer *layer = plan->layers + l;
        scale_deltas(layer, rows, n_out, B->Y[l], B->Z[l], d);
        if (J) {
            const real *a = l ? B->Y[l - 1].p : X;
            idx lda = l ? B->Y[l - 1].ld : layer->n_in;
            for (idx v = 0; v < deltas; v++)
                fill_row(layer, a + v / n_out * lda, d.p + v * d.ld, J + v * plan->n_params);
        }
        if (l == 0 && !dX) break;
        other.ld = leading(layer->n_in);
        if (l == 0) other = (block){dX, layer->n_in};
        layer_pullback(deltas, layer->n_in, layer->n_out, d, B->Wt[l], other, B->pack);
        block swap = d;
        d = other, other = swap;
    }
}

static int jacobians(fb_plan *plan, const void *params, idx n, const real *X, real *J, real *dX)
{
    idx n_in = plan->layers[0].n_in, n_out = plan->layers[plan->n_layers - 1].n_out;
    idx most = n_out < DELTA_ROWS ? DELTA_ROWS / n_out : 1;
    buffers B;
    fb_workspace *workspace =
        take_buffers(&B, plan, most, most * n_out, FOR_FORWARD | FOR_BACKWARD);
    if (!workspace) return FB_NO_MEMORY;
    transpose_weights(plan, &B, params, dX != NULL);
    for (idx i = 0; i < n; i += most)
        tile_jacobian(plan, &B, params, n - i < most ? n - i : most, X + i * n_in,
                      J ? J + i * n_out * plan->n_params : NULL, dX ? dX + i * n_out * n_in : NULL);
    fb_give(&plan->pool, workspace);
    return FB_DONE;
}

static int jacobian(fb_plan *plan, const void *params, idx n, const void *X, void *J)
{
    return jacobians(plan, params, n, X, J, NULL);
}

static int input_jacobian(fb_plan *plan, const void *params, idx n, const void *X, void *J)
{
    return jacobians(plan, params, n, X, NULL, J);
}
