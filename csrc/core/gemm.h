/* The matrix product: C = epilogue(A·B), one register-blocked kernel for all three of a layer.
 *
 *     Z  = X·W       A = X, row-major
 *     dX = dZ·Wᵀ     A = dZ, row-major; B a transposed copy of W
 *     dW = Xᵀ·dZ     A = X read by columns: A has arbitrary strides
 *
 * Vectors run along the columns of B and C, elements of A are broadcast. A tile keeps MR x NV
 * accumulators in registers: with NV loads of B and MR broadcasts for MR·NV multiply-adds, 12 x 2 and
 * 8 x 3 fill the 32 registers of AVX-512 and are bound by arithmetic, 6 x 2 the 16 of AVX2. All
 * smaller row counts exist too, and rows and columns are split evenly, so that no shape falls
 * off an edge. The last vector of a row is masked.
 *
 * A product whose B is beyond the first-level cache is cut into blocks of MC rows and KC deep; then
 * panels of B, and of a strided A, are packed. Below that size packing costs more than it gives.
 */

#if FB_ISA == 2
#define MAX_NV 3
INLINE idx rows_of_tile(idx nv) { return nv == 3 ? 8 : 12; }
#define FOR_EACH_TILE(T)                                                                           \
    T(1, 1) T(2, 1) T(3, 1) T(4, 1) T(5, 1) T(6, 1) T(7, 1) T(8, 1) T(9, 1) T(10, 1) T(11, 1)      \
    T(12, 1) T(1, 2) T(2, 2) T(3, 2) T(4, 2) T(5, 2) T(6, 2) T(7, 2) T(8, 2) T(9, 2) T(10, 2)      \
    T(11, 2) T(12, 2) T(1, 3) T(2, 3) T(3, 3) T(4, 3) T(5, 3) T(6, 3) T(7, 3) T(8, 3)
#else
#define MAX_NV 2
INLINE idx rows_of_tile(idx nv) { return nv == 2 ? 6 : 8; }
#define FOR_EACH_TILE(T)                                                                           \
    T(1, 1) T(2, 1) T(3, 1) T(4, 1) T(5, 1) T(6, 1) T(7, 1) T(8, 1) T(1, 2) T(2, 2) T(3, 2)        \
    T(4, 2) T(5, 2) T(6, 2)
#endif

enum {
    KC = 256, /* depth of a block: a panel of B of 3 vectors is then 48 KB, half of it for f64 */
    MC = 240, /* rows of a block: 240 KB of A in f32, which second-level caches hold */
    UNPACKED_BYTES = 28 * 1024, /* B up to this size is used where it lies */
    PANEL = KC * MAX_NV * VL, /* elements of a packed panel of B */
    PACK_SIZE = PANEL + KC * MC /* elements of scratch memory that gemm() needs */
};

typedef struct {
    const real *bias; /* added to each row, or null */
    real least; /* results below become this: 0 for relu, -inf for nothing */
    int add; /* whether C is added to instead of set; then there is no bias */
    int padded; /* whether rows of C have room for whole vectors */
} epilogue;

typedef void tile(idx K, const real *A, idx ars, idx acs, const real *B, idx ldb, real *C, idx ldc,
                  mask last, epilogue e);

/* Rows of A are reached from base pointers four rows apart, so that the addresses of a dozen
 * rows need six registers instead of twelve. */
#define DEFINE_TILE(MR, NV)                                                                        \
    static void tile_##MR##_##NV(idx K, const real *A, idx ars, idx acs, const real *B, idx ldb,   \
                                 real *C, idx ldc, mask last, epilogue e)                          \
    {                                                                                              \
        vec acc[MR][NV];                                                                           \
        if (e.add) {                                                                               \
            UNROLL for (int m = 0; m < MR; m++) UNROLL for (int v = 0; v < NV; v++)                \
                acc[m][v] = v < NV - 1 || e.padded ? load(C + m * ldc + v * VL)                    \
                                                   : load_first(C + m * ldc + v * VL, last);       \
        } else if (e.bias) {                                                                       \
            UNROLL for (int v = 0; v < NV; v++) {                                                  \
                vec b = v < NV - 1 ? load(e.bias + v * VL) : load_first(e.bias + v * VL, last);    \
                UNROLL for (int m = 0; m < MR; m++) acc[m][v] = b;                                 \
            }                                                                                      \
        } else {                                                                                   \
            UNROLL for (int m = 0; m < MR; m++) UNROLL for (int v = 0; v < NV; v++)                \
                acc[m][v] = (vec){0};                                                              \
        }                                                                                          \
        const real *a0 = A, *a4 = A + 4 * ars, *a8 = A + 8 * ars;                                  \
        for (idx k = 0; k < K; k++) {                                                              \
            vec b[NV];                                                                             \
            UNROLL for (int v = 0; v < NV; v++)                                                    \
                b[v] = v < NV - 1 ? load(B + v * VL) : load_first(B + v * VL, last);               \
            UNROLL for (int m = 0; m < MR; m++) {                                                  \
                vec a = splat((m < 4 ? a0 : m < 8 ? a4 : a8)[(m % 4) * ars]);                      \
                UNROLL for (int v = 0; v < NV; v++) acc[m][v] += a * b[v];                         \
            }                                                                                      \
            a0 += acs, a4 += acs, a8 += acs, B += ldb;                                             \
        }                                                                                          \
        vec least = splat(e.least);                                                                \
        UNROLL for (int m = 0; m < MR; m++) UNROLL for (int v = 0; v < NV; v++) {                  \
            vec c = vmax(least, acc[m][v]);                                                        \
            if (v < NV - 1 || e.padded)                                                            \
                store(C + m * ldc + v * VL, c);                                                    \
            else                                                                                   \
                store_first(C + m * ldc + v * VL, last, c);                                        \
        }                                                                                          \
    }

#define TILE_ENTRY(MR, NV) [NV - 1][MR - 1] = tile_##MR##_##NV,

FOR_EACH_TILE(DEFINE_TILE)
static tile *const tiles[MAX_NV][12] = {FOR_EACH_TILE(TILE_ENTRY)};

/* Copies of blocks as the tiles read them. */

static void pack_panel(idx K, idx columns, const real *B, idx ldb, real *panel)
{
    idx ld = round_up(columns);
    mask last = first_lanes(columns - (ld - VL));
    for (idx k = 0; k < K; k++) {
        for (idx j = 0; j < ld - VL; j += VL) store(panel + j, load(B + j));
        store(panel + ld - VL, load_first(B + ld - VL, last));
        panel += ld, B += ldb;
    }
}

static void pack_columns(idx K, idx rows, const real *A, idx acs, real *packed)
{
    for (idx k = 0; k < K; k++) memcpy(packed + k * rows, A + k * acs, (size_t)rows * sizeof(real));
}

/* Rows of one column panel of C. */
INLINE void panel_product(idx M, idx columns, idx K, const real *A, idx ars, idx acs, const real *B,
                          idx ldb, real *C, idx ldc, epilogue e)
{
    idx nv = (columns + VL - 1) / VL;
    idx most = rows_of_tile(nv), blocks = (M + most - 1) / most;
    mask last = first_lanes(columns - (nv - 1) * VL);
    for (idx block = 0, i = 0; block < blocks; block++) {
        idx rows = (M - i) / (blocks - block); /* even shares, smaller ones first */
        tiles[nv - 1][rows - 1](K, A + i * ars, ars, acs, B, ldb, C + i * ldc, ldc, last, e);
        i += rows;
    }
}

/* Whether B is beyond the first-level cache, and whether its columns are packed. */
INLINE int is_large(idx M, idx N, idx K)
{
    return K * N * (idx)sizeof(real) > UNPACKED_BYTES && M > 8;
}

INLINE int packs_columns(idx M, idx N, idx K)
{
    return is_large(M, N, K) || (!HAVE_MASKS && N % VL != 0 && M > 2);
}

/* What gemm() does with products that are more than one tile. */
static void product_of_tiles(idx M, idx N, idx K, const real *A, idx ars, idx acs, const real *B,
                             idx ldb, real *C, idx ldc, epilogue e, real *pack)
{
    int large = is_large(M, N, K), pack_b = packs_columns(M, N, K);
    int pack_a = large && ars == 1 && acs > 1;
    idx vectors = (N + VL - 1) / VL, chunks = (vectors + MAX_NV - 1) / MAX_NV;
    idx depth = large ? KC : K, height = large ? MC : M;
    if (!large && pack_b) depth = K < KC ? K : KC;
    for (idx i = 0; i < M; i += height) {
        idx rows = M - i < height ? M - i : height;
        idx k = 0;
        do { /* once even for K = 0: the epilogue is still due */
            idx deep = K - k < depth ? K - k : depth;
            int first = k == 0, final = k + deep >= K;
            epilogue step = {first ? e.bias : NULL, final ? e.least : (real)-INFINITY,
                             first ? e.add : 1, e.padded};
            const real *a = A + i * ars + k * acs;
            idx a_rs = ars, a_cs = acs;
            if (pack_a) {
                pack_columns(deep, rows, a, acs, pack + PANEL);
                a = pack + PANEL, a_rs = 1, a_cs = rows;
            }
            for (idx chunk = 0, v = 0; chunk < chunks; chunk++) {
                idx nv = (vectors - v) / (chunks - chunk), j = v * VL;
                idx columns = N - j < nv * VL ? N - j : nv * VL;
                const real *b = B + k * ldb + j;
                idx b_ld = ldb;
                if (pack_b) {
                    pack_panel(deep, columns, b, ldb, pack);
                    b = pack, b_ld = round_up(columns);
                }
                epilogue part = step;
                if (part.bias) part.bias += j;
                panel_product(rows, columns, deep, a, a_rs, a_cs, b, b_ld, C + i * ldc + j, ldc,
                              part);
                v += nv;
            }
            k += deep;
        } while (k < K);
    }
}

/* C (M, N) = A (M, K; strides ars, acs) · B (K, N), with the epilogue. `pack` has PACK_SIZE. The
 * products of small networks are single tiles, for which a call more would count. */
INLINE void gemm(idx M, idx N, idx K, const real *A, idx ars, idx acs, const real *B, idx ldb,
                 real *C, idx ldc, epilogue e, real *pack)
{
    idx nv = (N + VL - 1) / VL;
    int one_tile = nv >= 1 && nv <= MAX_NV && M >= 1 && M <= rows_of_tile(nv);
    if (one_tile && !packs_columns(M, N, K))
        tiles[nv - 1][M - 1](K, A, ars, acs, B, ldb, C, ldc, first_lanes(N - (nv - 1) * VL), e);
    else
        product_of_tiles(M, N, K, A, ars, acs, B, ldb, C, ldc, e, pack);
}

/* y = A (M, K) · x: the product with one column, whose vectors run along K instead. Four rows share
 * the loads of x. */
static void row_dots(idx M, idx K, const real *A, idx lda, const real *x, real bias, real least,
                     real *y)
{
    idx whole = K / VL * VL;
    mask last = first_lanes(K - whole);
    idx i = 0;
    for (; i + 4 <= M; i += 4) {
        const real *a = A + i * lda;
        vec s[4] = {{0}};
        for (idx k = 0; k < whole; k += VL) {
            vec xk = load(x + k);
            UNROLL for (int m = 0; m < 4; m++) s[m] += load(a + m * lda + k) * xk;
        }
        if (whole < K) {
            vec xk = load_first(x + whole, last);
            UNROLL for (int m = 0; m < 4; m++) s[m] += load_first(a + m * lda + whole, last) * xk;
        }
        UNROLL for (int m = 0; m < 4; m++) {
            real z = hsum(s[m]) + bias;
            y[i + m] = z < least ? least : z;
        }
    }
    for (; i < M; i++) {
        const real *a = A + i * lda;
        vec s = {0};
        for (idx k = 0; k < whole; k += VL) s += load(a + k) * load(x + k);
        if (whole < K) s += load_first(a + whole, last) * load_first(x + whole, last);
        real z = hsum(s) + bias;
        y[i] = z < least ? least : z;
    }
}
