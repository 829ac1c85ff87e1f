/* Cholesky's factorisation A = UᵀU of a symmetric matrix, and the solution of A x = b with it.
 *
 * A and U are (n, n). Only the entries of A on and above the diagonal are read; U overwrites them.
 */

/* Factor rows first..last of A, from which the products of the rows of U above have been
 * subtracted. Returns 0 if a pivot is not positive and finite. */
static int factor_rows(idx n, idx first, idx last, real *A)
{
    for (idx k = first; k < last; k++) {
        real *row = A + k * n;
        if (!(row[k] > 0) || !isfinite(row[k])) return 0;
        real root = (real)sqrt((double)row[k]);
        for (idx i = k; i < n; i++) row[i] *= 1 / root;
        for (idx i = k + 1; i < last; i++) add_multiple(n - i, -row[i], row + i, A + i * n + i);
    }
    return 1;
}

/* A becomes U, FB_FACTOR_ROWS rows at a time. Returns 0 if A is not positive definite. `negative`
 * has room for n·FB_FACTOR_ROWS numbers, `pack` for PACK_SIZE. */
static int cholesky(idx n, real *A, real *negative, real *pack)
{
    for (idx k = 0; k < n; k += FB_FACTOR_ROWS) {
        idx rows = n - k < FB_FACTOR_ROWS ? n - k : FB_FACTOR_ROWS;
        for (idx p = 0; p < k; p++)
            for (idx i = 0; i < rows; i++) negative[p * rows + i] = -A[p * n + k + i];
        epilogue add = {NULL, (real)-INFINITY, 1, 0};
        if (k)
            gemm(rows, n - k, k, negative, 1, rows, (factor){A + k, n, 0}, A + k * n + k, n, add,
                 pack);
        if (!factor_rows(n, k, k + rows, A)) return 0;
    }
    return 1;
}

/* x (n) becomes A⁻¹x. */
static void solve_factored(idx n, const real *U, real *x)
{
    for (idx k = 0; k < n; k++) {
        x[k] /= U[k * n + k];
        add_multiple(n - k - 1, -x[k], U + k * n + k + 1, x + k + 1);
    }
    for (idx k = n - 1; k >= 0; k--)
        x[k] = (x[k] - dot(n - k - 1, U + k * n + k + 1, x + k + 1)) / U[k * n + k];
}
