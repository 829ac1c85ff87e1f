/* Activations of arrays. formulas.h has a function for one vector of each activation and derivative,
 * in which one case of a switch remains where `kind` is a constant. So each kind has its own loop
 * here, and no vector pays for the choice. A kind that no list has traps.
 */
#include "programs.h"

/* The parameter of a function, rounded, and the rest. */
INLINE two_words constant_of(const fb_act *a)
{
    real c = (real)a->constant;
    return (two_words){splat(c), splat((real)(a->constant - (double)c))};
}

/* Whether the derivative needs Z; for the others Y is enough. */
INLINE int act_needs_z(int kind)
{
#define CASE(kind) case kind:
    switch (kind) {
    EACH_KNOWN_FROM_Y(CASE)
    case FB_LINEAR: return 0;
    default: return 1;
    }
}

/* out = the expression of x, a vector of Z; n elements. */
#define EACH_VECTOR(expression)                                                                    \
    {                                                                                              \
        idx i_ = 0;                                                                                \
        for (; i_ + VL <= n; i_ += VL) {                                                           \
            vec x = load(Z + i_);                                                                  \
            store(out + i_, expression);                                                           \
        }                                                                                          \
        if (i_ < n) {                                                                              \
            mask m_ = first_lanes(n - i_);                                                         \
            vec x = load_first(Z + i_, m_);                                                        \
            store_first(out + i_, m_, expression);                                                 \
        }                                                                                          \
    }

/* out (n) = act(Z), act'(Z), act''(Z), act'''(Z); the higher ones are 0 between corners. */

static void act_values(const fb_act *a, idx n, const real *Z, real *out)
{
    two_words c = constant_of(a);
#define VALUES(kind) case kind: EACH_VECTOR(act(kind, c, x)) break;
    switch (a->kind) {
    EACH_BENT(VALUES)
    case FB_LINEAR:
        if (out != Z) memcpy(out, Z, (size_t)n * sizeof(real));
        break;
    default: __builtin_trap();
    }
}

static void act_derivatives(const fb_act *a, idx n, const real *Z, real *out)
{
    two_words c = constant_of(a);
#define DERIVATIVES(kind) case kind: EACH_VECTOR(act_derivative(kind, c, x)) break;
    switch (a->kind) {
    EACH_BENT(DERIVATIVES)
    DERIVATIVES(FB_LINEAR)
    default: __builtin_trap();
    }
}

static void act_seconds(const fb_act *a, idx n, const real *Z, real *out)
{
    two_words c = constant_of(a);
#define SECONDS(kind) case kind: EACH_VECTOR(act_second(kind, c, x)) break;
    switch (a->kind) {
    EACH_CURVED(SECONDS)
    EACH_POLYGON(CASE) EACH_VECTOR(act_second(FB_RELU, c, x)) break;
    SECONDS(FB_LINEAR)
    default: __builtin_trap();
    }
}

__attribute__((noinline)) static void user_apply(const fb_user *user, int order, idx n,
                                                 const real *Z, real *out)
{
    program_run run;
    if (user->function) {
        ((fb_function *)user->function)(order, n, Z, out);
        return;
    }
    if (order > 2) __builtin_trap(); /* programs[3] has two outputs */
    program_start(&run, user->programs[order], NULL);
    program_apply(&run, n, &Z, &out);
}

/* Y (n) = act(Z) and Z = act'(Z), by one program. */
__attribute__((noinline)) static void user_values_and_slopes(const fb_user *user, idx n, real *Z,
                                                             real *Y)
{
    program_run run;
    program_start(&run, user->programs[3], NULL);
    program_apply(&run, n, (const real *[]){Z}, (real *[]){Y, Z});
}

/* In the backward pass it stands for an activation whose derivatives are in the place of Z. */
static const fb_act by_slopes = {.kind = FB_USER};

static void act_thirds(const fb_act *a, idx n, const real *Z, real *out)
{
    two_words c = constant_of(a);
#define THIRDS(kind) case kind: EACH_VECTOR(act_third(kind, c, x)) break;
    switch (a->kind) {
    EACH_CURVED(THIRDS)
    default: act_seconds(a, n, Z, out);
    }
}

/* out (n) = act(Z) (order 0) or a derivative (1 to 3); out may be Z. */
static void act_apply(const fb_act *a, int order, idx n, const real *Z, real *out)
{
    if (a->kind == FB_USER) user_apply(a->user, order, n, Z, out);
    else if (order == 0) act_values(a, n, Z, out);
    else if (order == 1) act_derivatives(a, n, Z, out);
    else if (order == 2) act_seconds(a, n, Z, out);
    else act_thirds(a, n, Z, out);
}

/* The public function. */
static void activation(const fb_act *a, int order, idx n, const void *Z, void *out)
{
    act_apply(a, order, n, Z, out);
}

/* out = D ∘ the expression of x, a vector of Y, for blocks (rows, columns). */
#define EACH_ROW(expression)                                                                       \
    for (idx i_ = 0; i_ < rows; i_++) {                                                            \
        const real *d_ = D + i_ * ldd, *y_ = Y + i_ * ldy;                                         \
        real *out_ = out + i_ * ldo;                                                               \
        idx j_ = 0;                                                                                \
        for (; j_ + VL <= columns; j_ += VL) {                                                     \
            vec x = load(y_ + j_);                                                                 \
            store(out_ + j_, load(d_ + j_) * (expression));                                        \
        }                                                                                          \
        if (j_ < columns) {                                                                        \
            mask m_ = first_lanes(columns - j_);                                                   \
            vec x = load_first(y_ + j_, m_);                                                       \
            store_first(out_ + j_, m_, load_first(d_ + j_, m_) * (expression));                    \
        }                                                                                          \
    }

/* out = D ∘ act'(·), from Y; D itself for FB_LINEAR. */
INLINE void backward_from_y(const fb_act *a, idx rows, idx columns, const real *D, idx ldd,
                            const real *Y, idx ldy, real *out, idx ldo)
{
    two_words c = constant_of(a);
#define FROM_Y(kind) case kind: EACH_ROW(act_derivative_from_y(kind, c, x)) break;
    switch (a->kind) {
    EACH_KNOWN_FROM_Y(FROM_Y)
    case FB_LINEAR:
        for (idx i = 0; out != D && i < rows; i++)
            memcpy(out + i * ldo, D + i * ldd, (size_t)columns * sizeof(real));
        break;
    default: __builtin_trap();
    }
}

/* out = D ∘ Y. */
static void scale_by(idx rows, idx columns, const real *D, idx ldd, const real *Y, idx ldy,
                     real *out, idx ldo)
{
    EACH_ROW(x)
}

/* out = D ∘ act'(Z), by pieces of rows that stay in the cache. Where all rows of D share one row of
 * Z (ldz 0), its derivatives are computed once. A user's compiled function multiplies by them
 * itself. */
static void backward_from_z(const fb_act *a, idx rows, idx columns, const real *D, idx ldd,
                            const real *Z, idx ldz, real *out, idx ldo)
{
    enum { PIECE = 256 };
    real slopes[PIECE];
    if (a == &by_slopes) {
        scale_by(rows, columns, D, ldd, Z, ldz, out, ldo);
        return;
    }
    int multiplies = a->kind == FB_USER && a->user->function && (ldz != 0 || rows == 1);
    idx piece = multiplies && out == D ? columns : PIECE;
    for (idx j = 0; j < columns; j += piece) {
        idx n = columns - j < piece ? columns - j : piece;
        for (idx i = 0; i < rows; i++) {
            const real *d = D + i * ldd + j, *z = Z + i * ldz + j;
            real *result = out + i * ldo + j;
            if (multiplies) {
                if (result != d) memcpy(result, d, (size_t)n * sizeof(real));
                user_apply(a->user, 3, n, z, result);
                continue;
            }
            if (i == 0 || ldz != 0) act_apply(a, 1, n, z, slopes);
            scale_by(1, n, d, 0, slopes, 0, result, 0);
        }
    }
}

/* out = D ∘ act'(·), from Y where Y determines the derivative, else from Z; out may be D. Blocks
 * (rows, columns); ldy and ldz may be 0 for a row that all rows of D share. */
static void act_backward(const fb_act *a, idx rows, idx columns, const real *D, idx ldd,
                         const real *Y, idx ldy, const real *Z, idx ldz, real *out, idx ldo)
{
    int from_z = act_needs_z(a->kind);
    if (ldd == ldo && ldd == (from_z ? ldz : ldy) && (rows == 1 || ldd - columns < VL)) {
        if (rows > 1) columns = (rows - 1) * ldd + columns; /* one long row, gaps included */
        rows = 1;
    }
    if (from_z) backward_from_z(a, rows, columns, D, ldd, Z, ldz, out, ldo);
    else backward_from_y(a, rows, columns, D, ldd, Y, ldy, out, ldo);
}
