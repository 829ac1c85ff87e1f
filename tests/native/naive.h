/* The mathematics in plain loops over long double, with bounds of what rounding may do.
 *
 * A number has a value and an error: how far from the value a computation in the dtype may end. It
 * grows by the rules of N. J. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed.,
 * SIAM 2002, chapter 3: a sum of n products, in whatever order, adds (n + 1)u Σ|a b| to what the
 * errors of its terms become; a function adds its own 4 ULP to what it makes of its argument's.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "fastbp.h"
#include "kinds.h"

typedef long double exact;

typedef struct {
    exact v;
    double e; /* which needs no precision, and long double is slow where it is emulated */
} number;

static int is_double;

static double unit(void) { return is_double ? 0x1p-53 : 0x1p-24; }
static double smallest(void) { return is_double ? 0x1p-1022 : 0x1p-126; }

static exact at(const void *array, int64_t i)
{
    return is_double ? (exact)((const double *)array)[i] : (exact)((const float *)array)[i];
}

static number number_at(const void *array, int64_t i) { return (number){at(array, i), 0}; }

/* A value off by some roundings of numbers not above `size`. */
static number rounded(exact v, exact e, exact size)
{
    return (number){v, (double)e + 16 * unit() * (double)size + smallest()};
}

typedef struct {
    exact v;
    double e, size;
    int64_t n;
} sum;

static void add(sum *s, number a, number b)
{
    double size_a = fabs((double)a.v), size_b = fabs((double)b.v);
    s->v += a.v * b.v;
    s->e += size_a * b.e + a.e * size_b + a.e * b.e;
    s->size += size_a * size_b;
    s->n++;
}

static number total(sum s)
{
    double n = (double)(s.n + 1), least = n * smallest(); /* of products that are flushed to zero */
    return (number){s.v, s.e + n * 1.01 * unit() * s.size + least};
}

/* Activations: kind, constant, whether the derivative needs Z, the function and its derivative. */

static exact logistic(exact z) { return 1 / (1 + expl(-z)); }
static exact softplus(exact z) { return fmaxl(z, 0) + log1pl(expl(-fabsl(z))); }
static exact normal(exact z) { return erfcl(-z / sqrtl(2)) / 2; }
static exact density(exact z) { return expl(-z * z / 2) / sqrtl(2 * acosl(-1)); }
static exact clip(exact z, exact least, exact most) { return fminl(fmaxl(z, least), most); }
static exact gate(exact z) { return sqrtl(8 / acosl(-1)) * (z + 0.044715L * z * z * z); }
static exact gate_slope(exact z) { return sqrtl(8 / acosl(-1)) * (1 + 3 * 0.044715L * z * z); }
static exact gated_slope(exact z, exact v, exact dv)
{
    return logistic(v) * (1 + z * dv * logistic(-v));
}
static exact mish_slope(exact z)
{
    exact w = tanhl(softplus(z));
    return w + z * (1 - w * w) * logistic(z);
}

#define SELU 1.0507009873554805L
#define SELU_ALPHA 1.6732632423543773L

#define ACTIVATIONS(A)                                                                             \
    A(FB_RELU, 0, 0, fmaxl(z, 0), z > 0)                                                           \
    A(FB_RELU_Z, 0.5, 1, fmaxl(z, 0), z > 0 ? 1 : z < 0 ? 0 : c)                                   \
    A(FB_LEAKY_RELU, 0.125, 0, z > 0 ? z : c * z, z > 0 ? 1 : c)                                   \
    A(FB_ELU, 1.25, 0, z > 0 ? z : c * expm1l(z), z > 0 ? 1 : c * expl(z))                         \
    A(FB_SELU, 0, 0, SELU * (z > 0 ? z : SELU_ALPHA * expm1l(z)),                                  \
      SELU * (z > 0 ? 1 : SELU_ALPHA * expl(z)))                                                   \
    A(FB_CELU, 0.75, 0, z > 0 ? z : c * expm1l(z / c), z > 0 ? 1 : expl(z / c))                    \
    A(FB_SOFTPLUS, 0, 1, softplus(z), logistic(z))                                                 \
    A(FB_GELU, 0, 1, z * normal(z), normal(z) + z * density(z))                                    \
    A(FB_GELU_TANH, 0, 1, z * logistic(gate(z)), gated_slope(z, gate(z), gate_slope(z)))           \
    A(FB_MISH, 0, 1, z * tanhl(softplus(z)), mish_slope(z))                                        \
    A(FB_HARD_TANH, 0, 0, clip(z, -1, 1), fabsl(z) < 1)                                            \
    A(FB_HARD_SIGMOID, 0, 1, clip(z + 3, 0, 6) / 6, fabsl(z) < 3 ? 1 / 6.0L : 0)                   \
    A(FB_USER, 0, 1, z * z * z, 3 * z * z)                                                         \
    OTHER_ACTIVATIONS(A)

enum { N_ACTIVATIONS = FB_USER + 1 };

typedef struct {
    double constant;
    int needs_z;
} activation_row;

#define ROW(kind, constant, needs_z, f, df) [kind] = {constant, needs_z},
static const activation_row activations[N_ACTIVATIONS] = {ACTIVATIONS(ROW)};

static exact act(int64_t kind, exact z)
{
    const exact c = activations[kind].constant;
    (void)c;
#define VALUE(kind, constant, needs_z, f, df) case kind: return f;
    switch (kind) {
        ACTIVATIONS(VALUE)
    default: return NAN;
    }
}

static exact act_slope(int64_t kind, exact z)
{
    const exact c = activations[kind].constant;
    (void)c;
#define SLOPE(kind, constant, needs_z, f, df) case kind: return df;
    switch (kind) {
        ACTIVATIONS(SLOPE)
    default: return NAN;
    }
}

/* act(Z): what Z's error makes of it shows at both ends. */
static number act_of(int64_t kind, number z)
{
    exact y = act(kind, z.v), e = 0;
    if (z.e > 0) e = fabsl(act(kind, z.v + z.e) - y) + fabsl(act(kind, z.v - z.e) - y);
    return (number){y, (double)e + 8 * unit() * fabs((double)y) + smallest()};
}

/* act'(Z) as the backward pass has it, maybe from Y: to some units of 1 + |act'|. */
static number slope_of(int64_t kind, number z)
{
    exact s = act_slope(kind, z.v), e = 0;
    if (z.e > 0) e = fabsl(act_slope(kind, z.v + z.e) - s) + fabsl(act_slope(kind, z.v - z.e) - s);
    return rounded(s, e, 1 + fabsl(s));
}

static number times(number a, number b)
{
    sum s = {0};
    add(&s, a, b);
    return total(s);
}

/* One layer; null pointers for what is not there or not wanted. */

static void naive_layer(int64_t n, int64_t n_in, int64_t n_out, int64_t kind, const number *X,
                        const void *W, const void *b, number *Z, number *Y)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n_out; j++) {
            sum z = {0};
            for (int64_t k = 0; k < n_in; k++)
                add(&z, X[i * n_in + k], number_at(W, k * n_out + j));
            if (b) add(&z, number_at(b, j), (number){1, 0});
            Z[i * n_out + j] = total(z);
            Y[i * n_out + j] = act_of(kind, Z[i * n_out + j]);
        }
}

static void naive_layer_backward(int64_t n, int64_t n_in, int64_t n_out, const number *dZ,
                                 const number *X, const void *W, number *dX, number *dW, number *db)
{
    for (int64_t i = 0; dX && i < n; i++)
        for (int64_t k = 0; k < n_in; k++) {
            sum s = {0};
            for (int64_t j = 0; j < n_out; j++)
                add(&s, dZ[i * n_out + j], number_at(W, k * n_out + j));
            dX[i * n_in + k] = total(s);
        }
    for (int64_t j = 0; j < n_out; j++) {
        for (int64_t k = 0; k < n_in; k++) {
            sum s = {0};
            for (int64_t i = 0; i < n; i++) add(&s, X[i * n_in + k], dZ[i * n_out + j]);
            dW[k * n_out + j] = total(s);
        }
        sum s = {0};
        for (int64_t i = 0; i < n; i++) add(&s, dZ[i * n_out + j], (number){1, 0});
        if (db) db[j] = total(s);
    }
}

/* Networks. */

enum { MOST_LAYERS = 4 };

typedef struct {
    int64_t n_layers, n_params, tape_width, n_free;
    int64_t layers[MOST_LAYERS][FB_LAYER_COLUMNS]; /* as fb_plan_new() takes them */
    fb_plan *plan;
} network;

static int64_t outputs(const network *net) { return net->layers[net->n_layers - 1][FB_N_OUT]; }

/* Which parameter the free one number k is: all, or all but every fifth. */
static int64_t free_place(const network *net, int64_t k)
{
    return net->n_free < net->n_params ? k + k / 4 + 1 : k;
}

static const void *from(const void *array, int64_t i)
{
    return (const char *)array + (size_t)i * (is_double ? sizeof(double) : sizeof(float));
}

static number *numbers(int64_t n); /* of zeros; freed with the driver's arrays */

typedef struct {
    number *X[MOST_LAYERS + 1], *Z[MOST_LAYERS + 1]; /* X[l + 1] = act(Z[l + 1]) */
} tape;

static tape naive_forward(const network *net, const void *params, int64_t n, const void *X)
{
    tape t;
    t.X[0] = numbers(n * net->layers[0][FB_N_IN]);
    for (int64_t i = 0; i < n * net->layers[0][FB_N_IN]; i++) t.X[0][i] = number_at(X, i);
    for (int64_t l = 0; l < net->n_layers; l++) {
        const int64_t *layer = net->layers[l];
        t.Z[l + 1] = numbers(n * layer[FB_N_OUT]);
        t.X[l + 1] = numbers(n * layer[FB_N_OUT]);
        const void *b = layer[FB_B_OFFSET] < 0 ? NULL : from(params, layer[FB_B_OFFSET]);
        naive_layer(n, layer[FB_N_IN], layer[FB_N_OUT], layer[FB_ACTIVATION], t.X[l],
                    from(params, layer[FB_W_OFFSET]), b, t.Z[l + 1], t.X[l + 1]);
    }
    return t;
}

/* dL/dparams and dL/dX for dL/dY of the last layer. */
static void naive_backward(const network *net, const void *params, int64_t n, const tape *t,
                           const number *dY, number *grad, number *dX)
{
    for (int64_t l = net->n_layers - 1; l >= 0; l--) {
        const int64_t *layer = net->layers[l];
        number *dZ = numbers(n * layer[FB_N_OUT]), *next = l ? numbers(n * layer[FB_N_IN]) : dX;
        for (int64_t i = 0; i < n * layer[FB_N_OUT]; i++)
            dZ[i] = times(dY[i], slope_of(layer[FB_ACTIVATION], t->Z[l + 1][i]));
        naive_layer_backward(n, layer[FB_N_IN], layer[FB_N_OUT], dZ, t->X[l],
                             from(params, layer[FB_W_OFFSET]), next, grad + layer[FB_W_OFFSET],
                             layer[FB_B_OFFSET] < 0 ? NULL : grad + layer[FB_B_OFFSET]);
        dY = next;
    }
}

/* (n·n_out, n_params) */
static number *naive_jacobian(const network *net, const void *params, int64_t n, const void *X)
{
    int64_t n_in = net->layers[0][FB_N_IN], n_out = outputs(net), P = net->n_params;
    number *J = numbers(n * n_out * P);
    for (int64_t i = 0; i < n; i++) {
        tape t = naive_forward(net, params, 1, from(X, i * n_in));
        for (int64_t j = 0; j < n_out; j++) {
            number *dY = numbers(n_out);
            dY[j].v = 1;
            naive_backward(net, params, 1, &t, dY, J + (i * n_out + j) * P, NULL);
        }
    }
    return J;
}

/* Robust sums of squares: what r counts as, and its weight rho'. */

typedef struct {
    int64_t kind;
    double scale;
} robustness;

static exact robust_square(robustness how, exact r)
{
    exact C = how.scale, z = r / C * (r / C);
    switch (how.kind) {
    case FB_HUBER_RHO: return z > 1 ? C * C * (2 * sqrtl(z) - 1) : r * r;
    case FB_SOFT_L1_RHO: return C * C * 2 * (sqrtl(1 + z) - 1);
    case FB_CAUCHY_RHO: return C * C * log1pl(z);
    default: return r * r;
    }
}

static exact robust_weight(robustness how, exact r)
{
    exact z = r / how.scale * (r / how.scale);
    switch (how.kind) {
    case FB_HUBER_RHO: return z > 1 ? 1 / sqrtl(z) : 1;
    case FB_SOFT_L1_RHO: return 1 / sqrtl(1 + z);
    case FB_CAUCHY_RHO: return 1 / (1 + z);
    default: return 1;
    }
}

static number robust_number(exact (*f)(robustness, exact), robustness how, number r)
{
    exact y = f(how, r.v), e = fabsl(f(how, r.v + r.e) - y) + fabsl(f(how, r.v - r.e) - y);
    return rounded(y, e, fabsl(y));
}

/* Losses of one output: kind, parameter, ℓ(y, t) and dℓ/dy. Outputs are in (0, 1) here. */

#define LOSSES(L)                                                                                  \
    L(FB_HUBER, 0.25, fabsl(y - t) > c ? c * (fabsl(y - t) - c / 2) : (y - t) * (y - t) / 2,       \
      clip(y - t, -c, c))                                                                          \
    L(FB_LOG_COSH, 0, logl(coshl(y - t)), tanhl(y - t))                                            \
    L(FB_QUANTILE, 0.25, t > y ? c * (t - y) : (c - 1) * (t - y), t > y ? -c : 1 - c)              \
    L(FB_BCE, 0x1p-20, -t * logl(y) - (1 - t) * log1pl(-y), (y - t) / (y * (1 - y)))               \
    L(FB_BCE_LOGITS, 0, softplus(y) - y * t, logistic(y) - t)                                      \
    OTHER_LOSSES(L)

#define CONSTANT(kind, constant, f, df) [kind] = constant,
static const double loss_constants[FB_USER_LOSS] = {LOSSES(CONSTANT)[FB_MARGIN_RANKING] = 0.25};

static exact loss_value(int64_t kind, exact y, exact t)
{
    const exact c = loss_constants[kind];
    (void)c;
#define LOSS(kind, constant, f, df) case kind: return f;
    switch (kind) {
        LOSSES(LOSS)
    default: return NAN;
    }
}

static exact loss_slope(int64_t kind, exact y, exact t)
{
    const exact c = loss_constants[kind];
    (void)c;
#define LOSS_SLOPE(kind, constant, f, df) case kind: return df;
    switch (kind) {
        LOSSES(LOSS_SLOPE)
    default: return NAN;
    }
}

/* A loss or slope f(y, t), y off by some error. */
static number loss_number(exact (*f)(int64_t, exact, exact), int64_t kind, number y, exact t)
{
    exact v = f(kind, y.v, t);
    exact e = fabsl(f(kind, y.v + y.e, t) - v) + fabsl(f(kind, y.v - y.e, t) - v);
    return rounded(v, e, 1 + fabsl(v) + fabsl(y.v) + fabsl(t));
}

/* Losses of rows: each returns ℓ and fills dY. */

static number softmax_row(const number *Y, int64_t n, const exact *T, number *dY)
{
    exact top = -INFINITY, off = 0, sum_exp = 0, sum_t = 0, dot = 0;
    for (int64_t j = 0; j < n; j++) {
        top = fmaxl(top, Y[j].v);
        off = fmaxl(off, Y[j].e);
    }
    for (int64_t j = 0; j < n; j++) {
        sum_exp += expl(Y[j].v - top);
        sum_t += T[j];
        dot += T[j] * (Y[j].v - top);
    }
    exact relative = 2.02L * off + (exact)(n + 16) * unit(); /* error of a probability */
    for (int64_t j = 0; j < n; j++) {
        exact p = expl(Y[j].v - top) / sum_exp;
        dY[j] = rounded(sum_t * p - T[j], relative * sum_t * p, sum_t * p + T[j]);
    }
    exact value = sum_t * logl(sum_exp) - dot;
    return rounded(value, sum_t * (relative + 2 * off), fabsl(value) + fabsl(dot) + sum_t);
}

static number gaussian_row(int64_t kind, const number *Y, int64_t k, const exact *T, number *dY)
{
    exact value = 0, e = 0, size = 0;
    for (int64_t j = 0; j < k; j++) {
        number m = Y[j], v = Y[k + j];
        exact ev = expl(v.v), d, term;
        if (kind == FB_GAUSSIAN_NLL) {
            d = m.v - T[j];
            term = (v.v + d * d / ev) / 2 + logl(2 * acosl(-1)) / 2;
            exact slope = fabsl(d / ev), bend = d * d / ev; /* derivatives by m and v */
            dY[j] = rounded(d / ev, m.e / ev + slope * v.e * 1.01L, slope + (1 + fabsl(m.v)) / ev);
            dY[k + j] = rounded((1 - d * d / ev) / 2, slope * m.e * 1.01L + bend * v.e,
                                1 + bend + slope * fabsl(m.v));
            e += slope * m.e * 1.01L + (1 + bend) * v.e;
            size += fabsl(v.v) + bend + slope * fabsl(m.v) + 2;
        } else {
            d = m.v;
            term = (ev - v.v + d * d - 1) / 2;
            dY[j] = rounded(d, m.e, fabsl(d));
            dY[k + j] = rounded(expm1l(v.v) / 2, ev * v.e, ev + 1);
            e += fabsl(d) * m.e * 1.01L + (ev + 1) * v.e;
            size += ev + fabsl(v.v) + d * d + 1;
        }
        value += term;
    }
    return rounded(value, e, size);
}

/* Y is the better one's output, Y[1] the worse one's. */
static number margin_pair(const number *Y, number *dY)
{
    exact slack = loss_constants[FB_MARGIN_RANKING] - (Y[0].v - Y[1].v), e = Y[0].e + Y[1].e;
    dY[0] = (number){slack > 0 ? -1 : 0, fabsl(slack) <= e};
    dY[1] = (number){-dY[0].v, dY[0].e};
    return rounded(fmaxl(slack, 0), e, 1 + fabsl(slack));
}

/* The losses of all rows and dL/dY; targets of labels become rows of zeros and a one. */
static number naive_loss(const fb_problem *problem, int64_t n_out, const number *Y, number *dY)
{
    int64_t kind = problem->loss, width = kind == FB_GAUSSIAN_NLL ? n_out / 2 : n_out;
    sum value = {0};
    for (int64_t i = 0; i < problem->n; i++) {
        number w = {problem->weights ? at(problem->weights, i) : 1, 0};
        const number *y = Y + i * n_out;
        number *dy = dY + i * n_out;
        exact T[64] = {0};
        for (int64_t j = 0; problem->y && j < width; j++) T[j] = at(problem->y, i * width + j);
        if (problem->labels) T[problem->labels[i]] = 1;
        if (kind == FB_SOFTMAX_CE || kind == FB_SOFTMAX_CE_LABELS) {
            add(&value, softmax_row(y, n_out, T, dy), w);
        } else if (kind == FB_GAUSSIAN_NLL || kind == FB_GAUSSIAN_KL) {
            add(&value, gaussian_row(kind, y, n_out / 2, T, dy), w);
        } else if (kind == FB_MARGIN_RANKING) {
            if (i % 2 == 0) add(&value, margin_pair(y, dy), w);
        } else {
            for (int64_t j = 0; j < n_out; j++) {
                add(&value, loss_number(loss_value, kind, y[j], T[j]), w);
                dy[j] = loss_number(loss_slope, kind, y[j], T[j]);
            }
        }
        number factor = times(w, rounded((exact)problem->scale, 0, (exact)problem->scale));
        for (int64_t j = 0; j < n_out; j++) dy[j] = times(dy[j], factor);
    }
    return times(total(value), rounded((exact)problem->scale, 0, (exact)problem->scale));
}

/* The penalties' value, whose derivative is added to `grad`. */
static number naive_penalties(const network *net, const fb_problem *problem, const void *params,
                              number *grad)
{
    exact value = 0;
    for (int64_t l = 0; l < net->n_layers; l++) {
        const int64_t *layer = net->layers[l];
        for (int64_t j = 0; j < layer[FB_N_OUT]; j++) {
            exact squares = 0;
            for (int64_t k = 0; k < layer[FB_N_IN]; k++) {
                exact w = at(params, layer[FB_W_OFFSET] + k * layer[FB_N_OUT] + j);
                value += (exact)problem->l2 / 2 * w * w + (exact)problem->l1 * fabsl(w);
                squares += w * w;
            }
            value += (exact)problem->group * sqrtl(squares);
            for (int64_t k = 0; k < layer[FB_N_IN]; k++) {
                int64_t i = layer[FB_W_OFFSET] + k * layer[FB_N_OUT] + j;
                exact w = at(params, i), sign = (w > 0) - (w < 0);
                exact slope = (exact)problem->l2 * w + (exact)problem->l1 * sign;
                if (squares > 0) slope += (exact)problem->group * w / sqrtl(squares);
                exact size = fabsl(slope) + fabsl(grad[i].v);
                grad[i] = rounded(grad[i].v + slope, grad[i].e, size);
            }
        }
    }
    return rounded(value, 0, value);
}

/* The objective and its gradient. */
static number naive_objective(const network *net, const fb_problem *problem, const void *params,
                              number *grad)
{
    int64_t n = problem->n, n_out = outputs(net);
    tape t = naive_forward(net, params, n, problem->X);
    number *dY = numbers(n * n_out);
    number value = naive_loss(problem, n_out, t.X[net->n_layers], dY);
    naive_backward(net, params, n, &t, dY, grad, NULL);
    number penalties = naive_penalties(net, problem, params, grad);
    return (number){value.v + penalties.v,
                    value.e + penalties.e + unit() * fabs((double)(value.v + penalties.v))};
}

/* The optimizers' rules for one parameter; `m` are its moments. */
static exact naive_rule(const fb_run *run, exact p, exact *m, exact g)
{
    const double *c = run->constants;
    exact lr = run->rates[0], t = (exact)(run->step + 1);
    switch (run->optimizer) {
    case FB_ADAM: {
        m[0] = (exact)c[0] * m[0] + (1 - (exact)c[0]) * g;
        m[1] = (exact)c[1] * m[1] + (1 - (exact)c[1]) * g * g;
        exact mean = m[0] / (1 - powl(c[0], t)), square = m[1] / (1 - powl(c[1], t));
        p -= lr * (exact)c[3] * p;
        return p - lr * mean / (sqrtl(square) + (exact)c[2]);
    }
    case FB_RMSPROP:
    case FB_RMSPROP_MOMENTUM:
    case FB_RMSPROP_CENTERED:
    case FB_RMSPROP_CENTERED_MOMENTUM: {
        int64_t kind = run->optimizer, both = kind == FB_RMSPROP_CENTERED_MOMENTUM;
        exact *v = both || kind == FB_RMSPROP_MOMENTUM ? m + 1 : NULL;
        exact *a = both ? m + 2 : kind == FB_RMSPROP_CENTERED ? m + 1 : NULL;
        m[0] = (exact)c[0] * m[0] + (1 - (exact)c[0]) * g * g;
        if (a) *a = (exact)c[0] * *a + (1 - (exact)c[0]) * g;
        exact d = g / (sqrtl(fmaxl(0, m[0] - (a ? *a * *a : 0))) + (exact)c[1]);
        if (v) d = *v = (exact)c[2] * *v + d;
        return p - lr * d;
    }
        OTHER_RULES
    default: return NAN;
    }
}
