/* The matrix product: C = epilogue(A·B), one register-blocked kernel for all three of a layer.
 *
 *     Z  = X·W       A = X, row-major
 *     dX = dZ·Wᵀ     A = dZ, row-major; B the transpose of W, by a copy or as it is packed
 *     dW = Xᵀ·dZ     A = X read by columns: A has arbitrary strides
 *
 * Vectors run along the columns of B and C, elements of A are broadcast. A tile keeps MR x NV
 * accumulators in registers: with NV loads of B and MR broadcasts for MR·NV multiply-adds, 12 x 2
 * and 8 x 3 fill the 32 registers of AVX-512 and are bound by arithmetic, 6 x 2 the 16 of AVX2. All
 * smaller row counts exist too, and few rows go with more vectors, so that there are sums enough to
 * hide a multiply-add's latency. Rows and columns are split evenly, so that no shape falls off an
 * edge. The last vector of a row is masked, and a half one if that is enough.
 *
 * A product with a large B is cut along K into slices of depth KC, for which B is packed panel by
 * panel, a panel being PANEL_NV vectors wide. With a small B, packing costs more than it gains.
 */

#if FB_ISA == 2
#define MOST_NV 8
INLINE idx rows_of_tile(idx nv)
{
    return nv <= 2 ? 12 : nv == 3 ? 8 : nv == 4 ? 6 : nv <= 6 ? 3 : 2;
}
INLINE idx vectors_of_tile(idx rows) { return rows <= 2 ? 8 : rows == 3 ? 6 : rows <= 6 ? 4 : 3; }
#define FOR_EACH_TILE(T)                                                                           \
    T(1, 1) T(2, 1) T(3, 1) T(4, 1) T(5, 1) T(6, 1) T(7, 1) T(8, 1) T(9, 1) T(10, 1) T(11, 1)      \
    T(12, 1) T(1, 2) T(2, 2) T(3, 2) T(4, 2) T(5, 2) T(6, 2) T(7, 2) T(8, 2) T(9, 2) T(10, 2)      \
    T(11, 2) T(12, 2) T(1, 3) T(2, 3) T(3, 3) T(4, 3) T(5, 3) T(6, 3) T(7, 3) T(8, 3) T(1, 4)      \
    T(2, 4) T(3, 4) T(4, 4) T(5, 4) T(6, 4) T(1, 5) T(2, 5) T(3, 5) T(1, 6) T(2, 6) T(3, 6)        \
    T(1, 7) T(2, 7) T(1, 8) T(2, 8)
#else
#define MOST_NV 4
INLINE idx rows_of_tile(idx nv) { return nv == 1 ? 8 : nv == 2 ? 6 : nv == 3 ? 4 : 2; }
INLINE idx vectors_of_tile(idx rows) { return rows <= 2 ? 4 : rows <= 4 ? 3 : 2; }
#define FOR_EACH_TILE(T)                                                                           \
    T(1, 1) T(2, 1) T(3, 1) T(4, 1) T(5, 1) T(6, 1) T(7, 1) T(8, 1) T(1, 2) T(2, 2) T(3, 2)        \
    T(4, 2) T(5, 2) T(6, 2) T(1, 3) T(2, 3) T(3, 3) T(4, 3) T(1, 4) T(2, 4)
#endif
#define PANEL_NV (FB_ISA == 2 ? 3 : 2) /* vectors of a panel of B with many rows of A */

enum {
    KC = 512, /* depth of a slice; 256 costs 4 to 12 % more in f64 at 1024 x 1024 */
    PACK_SIZE = KC * PANEL_NV * VL, /* elements of a packed panel of B, 96 KB at AVX-512 */
    UNPACKED_BYTES = 128 * 1024, /* of a B that is used where it lies: to pack from 28 KB on costs
                                    4 to 7 % more at widths of 64 to 150 */
    FEW_ROWS = 8, /* so many rows of A do not repay packing */
    DOTTED = 2 /* sums along so many vectors for each row of A cost as much as a copy of B: at 1, 2
                  and 4 rows, widths of 32, 64 and 128 gain 1 to 40 % and smaller ones lose */
};

/* What happens to the sums of a product before they are stored in C. */
typedef struct {
    const real *bias; /* added to each row, or null */
    real least; /* results below become this: 0 for relu, -inf for nothing */
    int add; /* whether C is added to instead of set; then there is no bias */
    int padded; /* whether rows of C have room for whole vectors */
} epilogue;

/* C (MR, up to NV vectors) = epilogue(A·B): A (MR, K) with strides ars from row to row and acs from
 * column to column, B (K, ldb), C (MR, ldc); `last` masks the last vector. */
typedef void tile(idx K, const real *A, idx ars, idx acs, const real *B, idx ldb, real *C, idx ldc,
                  mask last, const epilogue *e);

/* The last vector of a row may be a half: both kinds under names to build tiles from. */
#define vec_load_first load_first
#define vec_splat splat
#define vec_max vmax
#define vec_of(v) (v)
#define vec_widened(v) (v)

/* Rows of A are reached from base pointers four rows apart, so that the addresses of a dozen
 * rows need six registers instead of twelve. Rows of C are walked through twice, which costs less
 * than to keep their addresses during the product: SAME hides that they are the same. */
#define SAME(pointer) __asm__("" : "+r"(pointer))

#define DEFINE_TILE(MR, NV, LAST)                                                                  \
    static void LAST##_tile_##MR##_##NV(idx K, const real *A, idx ars, idx acs, const real *B,     \
                                        idx ldb, real *C, idx ldc, mask last, const epilogue *e)   \
    {                                                                                              \
        enum { END = (NV - 1) * VL }; /* where the last vector begins */                           \
        vec acc[MR][NV];                                                                           \
        LAST end[MR];                                                                              \
        if (e->add) {                                                                              \
            const real *c = C;                                                                     \
            UNROLL for (int m = 0; m < MR; m++, c += ldc) {                                        \
                UNROLL for (int v = 0; v < NV - 1; v++) acc[m][v] = load(c + v * VL);              \
                end[m] = LAST##_load_first(c + END, last);                                         \
            }                                                                                      \
        } else if (e->bias) {                                                                      \
            UNROLL for (int m = 0; m < MR; m++) {                                                  \
                UNROLL for (int v = 0; v < NV - 1; v++) acc[m][v] = load(e->bias + v * VL);        \
                end[m] = LAST##_load_first(e->bias + END, last);                                   \
            }                                                                                      \
        } else {                                                                                   \
            UNROLL for (int m = 0; m < MR; m++) {                                                  \
                UNROLL for (int v = 0; v < NV - 1; v++) acc[m][v] = (vec){0};                      \
                end[m] = (LAST){0};                                                                \
            }                                                                                      \
        }                                                                                          \
        const real *a0 = A, *a4 = A + 4 * ars, *a8 = A + 8 * ars;                                  \
        for (idx k = 0; k < K; k++) {                                                              \
            vec b[NV];                                                                             \
            UNROLL for (int v = 0; v < NV - 1; v++) b[v] = load(B + v * VL);                       \
            LAST b_end = LAST##_load_first(B + END, last);                                         \
            UNROLL for (int m = 0; m < MR; m++) {                                                  \
                const real *a = (m < 4 ? a0 : m < 8 ? a4 : a8) + (m % 4) * ars;                    \
                vec all = splat(*a);                                                               \
                UNROLL for (int v = 0; v < NV - 1; v++) acc[m][v] += all * b[v];                   \
                end[m] += (NV < 3 ? LAST##_splat(*a) : LAST##_of(all)) * b_end;                    \
            }                                                                                      \
            a0 += acs, a4 += acs, a8 += acs, B += ldb;                                             \
        }                                                                                          \
        vec least = splat(e->least);                                                               \
        int padded = e->padded;                                                                    \
        SAME(C);                                                                                   \
        UNROLL for (int m = 0; m < MR; m++, C += ldc) {                                            \
            UNROLL for (int v = 0; v < NV - 1; v++) store(C + v * VL, vmax(least, acc[m][v]));     \
            vec c = LAST##_widened(LAST##_max(LAST##_of(least), end[m]));                          \
            if (padded) store(C + END, c);                                                         \
            else store_first(C + END, last, c);                                                    \
        }                                                                                          \
    }

#define DEFINE_WHOLE(MR, NV) DEFINE_TILE(MR, NV, vec)
#define DEFINE_HALF(MR, NV) DEFINE_TILE(MR, NV, half)
#define WHOLE_ENTRY(MR, NV) [NV - 1][MR - 1] = vec_tile_##MR##_##NV,
#define HALF_ENTRY(MR, NV) [NV - 1][MR - 1] = half_tile_##MR##_##NV,

FOR_EACH_TILE(DEFINE_WHOLE)
static tile *const whole_tiles[MOST_NV][12] = {FOR_EACH_TILE(WHOLE_ENTRY)};
#if HAVE_HALVES
FOR_EACH_TILE(DEFINE_HALF)
static tile *const half_tiles[MOST_NV][12] = {FOR_EACH_TILE(HALF_ENTRY)};
#endif

typedef tile *const tiles[12]; /* by their rows */

/* The tiles for so many columns. */
INLINE tiles *tiles_for(idx columns)
{
    idx nv = (columns + VL - 1) / VL;
#if HAVE_HALVES
    if (nv * VL - columns >= VL / 2) return half_tiles + nv - 1;
#endif
    return whole_tiles + nv - 1;
}

/* A part of a matrix that a panel's product prefetches meanwhile; none if rows is 0. */
typedef struct {
    const real *p;
    idx rows, columns, ld;
} region;

enum { LINE = 64 / sizeof(real) };

/* Prefetch share i of n of a region into the second-level cache. */
INLINE void prefetch_share(region r, idx i, idx n)
{
    for (idx row = r.rows * i / n; row < r.rows * (i + 1) / n; row++)
        for (idx j = 0; j < r.columns; j += LINE) __builtin_prefetch(r.p + row * r.ld + j, 0, 2);
}

/* C (M, columns) = epilogue(A (M, K)·B (K, columns)) for one panel B, tile by tile. */
INLINE void panel_product(idx M, idx columns, idx K, const real *A, idx ars, idx acs, const real *B,
                          idx ldb, real *C, idx ldc, epilogue e, region next)
{
    idx nv = (columns + VL - 1) / VL;
    idx most = rows_of_tile(nv), blocks = (M + most - 1) / most;
    mask last = first_lanes(columns - (nv - 1) * VL);
    tiles *tile_of = tiles_for(columns);
    for (idx block = 0, i = 0; block < blocks; block++) {
        idx rows = (M - i) / (blocks - block); /* even shares, smaller ones first */
        if (next.rows) {
            prefetch_share(next, block, blocks);
            prefetch_share((region){C + (i + rows) * ldc, rows, columns, ldc}, 0, 1);
        }
        (*tile_of)[rows - 1](K, A + i * ars, ars, acs, B, ldb, C + i * ldc, ldc, last, &e);
        i += rows;
    }
}

/* How many of n columns the first of `shares` even shares has, in whole vectors. */
INLINE idx share_of(idx n, idx shares)
{
    idx columns = (n + VL - 1) / VL / shares * VL;
    return columns < n ? columns : n;
}

/* How many shares of at most `most` vectors n columns need. */
INLINE idx shares_of(idx n, idx most) { return ((n + VL - 1) / VL + most - 1) / most; }

/* The product without packing. */
static void product_in_place(idx M, idx N, idx K, const real *A, idx ars, idx acs, const real *B,
                             idx ldb, real *C, idx ldc, epilogue e)
{
    idx chunks = shares_of(N, vectors_of_tile(M)), columns;
    for (idx j = 0; j < N; j += columns) {
        columns = share_of(N - j, chunks--);
        panel_product(M, columns, K, A, ars, acs, B + j, ldb, C + j, ldc, e, (region){0});
        if (e.bias) e.bias += columns;
    }
}

/* B (K, N): in memory the matrix itself, or its transpose (N, K); rows in memory are `ld` apart. */
typedef struct {
    const real *p;
    idx ld;
    int transposed;
} factor;

/* B without its first k rows and j columns. */
INLINE factor block_of(factor B, idx k, idx j)
{
    return (factor){B.p + (B.transposed ? j * B.ld + k : k * B.ld + j), B.ld, B.transposed};
}

/* The memory of the first K rows and columns of B. */
INLINE region region_of(factor B, idx K, idx columns)
{
    return B.transposed ? (region){B.p, columns, K, B.ld} : (region){B.p, K, columns, B.ld};
}

/* panel (K, round_up(columns)) = the first columns of B. */
static void pack_panel(idx K, idx columns, factor B, real *panel)
{
    idx ld = round_up(columns);
    if (B.transposed) {
        transpose(columns, K, B.p, B.ld, panel, ld);
        return;
    }
    mask last = first_lanes(columns - (ld - VL));
    for (idx k = 0; k < K; k++, panel += ld, B.p += B.ld) {
        for (idx j = 0; j < ld - VL; j += VL) store(panel + j, load(B.p + j));
        store(panel + ld - VL, load_first(B.p + ld - VL, last));
    }
}

/* The product by panels of B, packed one after another in `pack`. The rows of a large B are pages
 * apart, so that packing would wait for memory; therefore each panel's product prefetches the next
 * panel. */
static void product_of_panels(idx M, idx N, idx K, const real *A, idx ars, idx acs, factor B,
                              real *C, idx ldc, epilogue e, real *pack)
{
    /* For K = 0 there is one slice too, since the epilogue is due. */
    idx slices = K > KC ? (K + KC - 1) / KC : 1, depth;
    for (idx k = 0; slices > 0; k += depth) {
        depth = (K - k) / slices--;
        epilogue of_slice = {k ? NULL : e.bias, slices ? (real)-INFINITY : e.least, k ? 1 : e.add,
                             e.padded};
        idx chunks = shares_of(N, PANEL_NV), columns;
        for (idx j = 0; j < N; j += columns) {
            columns = share_of(N - j, chunks--);
            pack_panel(depth, columns, block_of(B, k, j), pack);
            int more = j + columns < N || slices;
            factor after =
                j + columns < N ? block_of(B, k, j + columns) : block_of(B, k + depth, 0);
            panel_product(M, columns, depth, A + k * acs, ars, acs, pack, round_up(columns), C + j,
                          ldc, of_slice, more ? region_of(after, depth, columns) : (region){0});
            if (of_slice.bias) of_slice.bias += columns;
        }
    }
}

/* y_m (+)= A_m·x + bias for `rows` rows m of A (rows, K), 1 or 4, which share the loads of x (K).
 * A product with one column: vectors run along K. */
INLINE void dots(int rows, idx K, const real *A, idx lda, const real *x, real *y, epilogue e)
{
    idx whole = K / VL * VL;
    mask last = first_lanes(K - whole);
    vec s[4] = {{0}};
    for (idx k = 0; k < whole; k += VL) {
        vec xk = load(x + k);
        UNROLL for (int m = 0; m < rows; m++) s[m] += load(A + m * lda + k) * xk;
    }
    if (whole < K) {
        vec xk = load_first(x + whole, last);
        UNROLL for (int m = 0; m < rows; m++) s[m] += load_first(A + m * lda + whole, last) * xk;
    }
    real sums[4];
    if (rows == 4) hsum4(s, sums);
    else sums[0] = hsum(s[0]);
    UNROLL for (int m = 0; m < rows; m++) {
        real z = sums[m] + (e.bias ? *e.bias : e.add ? y[m] : 0);
        y[m] = z < e.least ? e.least : z;
    }
}

/* The same for M rows. */
static void row_dots(idx M, idx K, const real *A, idx lda, const real *x, real *y, epilogue e)
{
    idx i = 0;
    for (; i + 4 <= M; i += 4) dots(4, K, A + i * lda, lda, x, y + i, e);
    for (; i < M; i++) dots(1, K, A + i * lda, lda, x, y + i, e);
}

/* C (M, N) = A·Bᵀ for few rows of A (M, K); reads B (N, K) from memory once. */
static void product_of_dots(idx M, idx N, idx K, const real *A, idx lda, const real *B, idx ldb,
                            real *C, idx ldc, epilogue e)
{
    enum { ROWS = 32 };
    for (idx j = 0; j < N; j += ROWS)
        for (idx i = 0; i < M; i++)
            row_dots(N - j < ROWS ? N - j : ROWS, K, B + j * ldb, ldb, A + i * lda,
                     C + i * ldc + j, e);
}

/* Whether B (K, N) is packed for products with many rows of A. */
INLINE int is_large(idx N, idx K) { return K * N * (idx)sizeof(real) > UNPACKED_BYTES; }

/* Whether A (M, K) has so few rows that products with a transposed B are sums along vectors. */
INLINE int is_dotted(idx M, idx K) { return M <= FEW_ROWS && K >= DOTTED * M * VL; }

/* Whether the product of A (M, K) with a transposed B (K, N) is faster with a copy of B that is not
 * transposed. */
INLINE int wants_copy(idx M, idx N, idx K) { return !is_dotted(M, K) && !is_large(N, K); }

/* C (M, N) = epilogue(A (M, K)·B (K, N)), A with strides ars and acs. If B is transposed, acs is 1
 * and there is no bias. `pack` has room for PACK_SIZE numbers. Products of small networks are
 * single tiles, for which one more call would count. */
INLINE void gemm(idx M, idx N, idx K, const real *A, idx ars, idx acs, factor B, real *C, idx ldc,
                 epilogue e, real *pack)
{
    idx nv = (N + VL - 1) / VL;
    int one_tile = nv >= 1 && nv <= MOST_NV && M >= 1 && M <= rows_of_tile(nv);
    int ragged = !HAVE_MASKS && N % VL != 0 && M > 2; /* a copy makes the vectors whole */
    if (B.transposed && is_dotted(M, K))
        product_of_dots(M, N, K, A, ars, B.p, B.ld, C, ldc, e);
    else if (B.transposed || (is_large(N, K) && M > FEW_ROWS) || ragged)
        product_of_panels(M, N, K, A, ars, acs, B, C, ldc, e, pack);
    else if (one_tile)
        (*tiles_for(N))[M - 1](K, A, ars, acs, B.p, B.ld, C, ldc, first_lanes(N - (nv - 1) * VL),
                               &e);
    else
        product_in_place(M, N, K, A, ars, acs, B.p, B.ld, C, ldc, e);
}
