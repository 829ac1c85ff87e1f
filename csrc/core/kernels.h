/* One dense layer: the public dense_forward() and dense_backward(). The backward pass goes in tiles
 * of rows, so that its workspace stays small for any batch. */

static int dense_forward(fb_pool *pool, idx n, idx n_in, idx n_out, const fb_act *act,
                         const void *X, const void *W, const void *b, void *Y, void *Z)
{
    fb_workspace *workspace = fb_pool_take(pool, PACK_SIZE * sizeof(real));
    if (!workspace) return FB_NO_MEMORY;
    if (n > 0 && n_out > 0)
        layer_forward(n, n_in, n_out, act, X, n_in, W, b, (block){Y, n_out},
                      (block){Z, n_out}, 0, (real *)(void *)workspace->bytes);
    fb_pool_give(pool, workspace);
    return FB_DONE;
}

static int dense_backward(fb_pool *pool, idx n, idx n_in, idx n_out, const fb_act *act,
                          const void *dY_, const void *X_, const void *W, const void *Y_,
                          const void *Z_, void *dX_, void *dW, void *db)
{
    const real *dY = dY_, *X = X_, *Y = Y_, *Z = Z_;
    real *dX = dX_;
    idx most = n < FB_WIDE_TILE_ROWS ? n : FB_WIDE_TILE_ROWS;
    idx ld = leading(n_out), ldt = round_up(n_in);
    int copies = dX && copies_transpose(most, n_in, n_out);
    idx size = PACK_SIZE + most * ld + VL + (copies ? n_out * ldt : 0);
    fb_workspace *workspace = fb_pool_take(pool, (size_t)size * sizeof(real));
    if (!workspace) return FB_NO_MEMORY;
    real *pack = (real *)(void *)workspace->bytes;
    block dZ = {pack + PACK_SIZE, ld};
    factor Wt = {copies ? dZ.p + round_up(most * ld) : NULL, ldt, 0};
    if (dX) Wt = transpose_of(n_in, n_out, W, Wt);
    if (n == 0 || n_out == 0) {
        memset(dW, 0, (size_t)(n_in * n_out) * sizeof(real));
        if (db) memset(db, 0, (size_t)n_out * sizeof(real));
        if (dX) memset(dX, 0, (size_t)(n * n_in) * sizeof(real));
        n = 0;
    }
    for (idx i = 0; i < n; i += most) {
        idx rows = n - i < most ? n - i : most;
        act_backward(act, rows, n_out, dY + i * n_out, n_out, Y + i * n_out, n_out,
                     Z ? Z + i * n_out : NULL, n_out, dZ.p, ld);
        layer_gradient(rows, n_in, n_out, X + i * n_in, n_in, dZ, dW, db, i > 0, pack);
        if (dX && n_in > 0)
            layer_pullback(rows, n_in, n_out, dZ, Wt, (block){dX + i * n_in, n_in}, 0, pack);
    }
    fb_pool_give(pool, workspace);
    return FB_DONE;
}
