/* The C library against naive loops, without Python: `driver LEVEL` for one instruction set.
 *
 * For platforms that the Python tests cannot run on, such as ARM under an emulator, and for what
 * they cannot see: accesses past an array's end, writes to inputs, allocations. It goes on to the
 * first failure, says what was wrong, and exits with 1.
 */
#include "memory.h"
#include "naive.h"

#include <signal.h>
#include <stdarg.h>

/* What is being checked, for the message of a failure. */

static char doing[256];
static int64_t compared;

static void begin(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void begin(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length = snprintf(doing, sizeof doing, "%s float%d: ", fb_isa(), is_double ? 64 : 32);
    vsnprintf(doing + length, sizeof doing - (size_t)length, format, arguments);
    va_end(arguments);
    unmap_all();
}

static void fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    printf("FAILED %s: ", doing);
    vprintf(format, arguments);
    printf("\n");
    exit(1);
}

static void crashed(int signal_number)
{
    static const char message[] = ": access past an array, or a write to an input\n";
    (void)signal_number;
    if (write(1, doing, strlen(doing)) < 0 || write(1, message, sizeof message - 1) < 0) _exit(2);
    _exit(1);
}

/* Arrays. */

static size_t bytes(int64_t n) { return (size_t)n * (is_double ? sizeof(double) : sizeof(float)); }

static void set(void *array, int64_t i, exact x)
{
    if (is_double) ((double *)array)[i] = (double)x;
    else ((float *)array)[i] = (float)x;
}

/* For a result: full of NaN. */
static void *room(int64_t n)
{
    void *array = mapped(bytes(n));
    memset(array, 0xFF, bytes(n));
    return array;
}

static number *numbers(int64_t n)
{
    return memset(mapped((size_t)n * sizeof(number)), 0, (size_t)n * sizeof(number));
}

static uint64_t state;

/* In [-1, 1), of the generator xorshift64*. */
static exact uniform(void)
{
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return (exact)(state * UINT64_C(0x2545F4914F6CDD1D) >> 11) / 0x1p52L - 1;
}

static const void *uniforms(int64_t n, exact spread)
{
    void *array = room(n);
    for (int64_t i = 0; i < n; i++) set(array, i, spread * uniform());
    return protected(array, bytes(n));
}

static const void *whole_numbers(int64_t n)
{
    void *array = room(n);
    for (int64_t i = 0; i < n; i++) set(array, i, floorl(4 * uniform()));
    return protected(array, bytes(n));
}

static void *copy_of(const void *array, int64_t n) { return memcpy(room(n), array, bytes(n)); }

/* Comparisons. */

static void within(const char *what, int64_t i, exact got, number expected)
{
    compared++;
    if (!(fabsl(got - expected.v) <= expected.e))
        fail("%s[%ld] is %.17Lg, expected %.17Lg within %.2g", what, (long)i, got, expected.v,
             expected.e);
}

static void all_within(const char *what, int64_t n, const void *got, const number *expected)
{
    for (int64_t i = 0; i < n; i++) within(what, i, at(got, i), expected[i]);
}

/* Of equal value: zeros may differ in sign. */
static void all_equal(const char *what, int64_t n, const void *got, const void *expected)
{
    for (int64_t i = 0; i < n; i++) within(what, i, at(got, i), number_at(expected, i));
}

static void succeeded(int code)
{
    if (code != FB_DONE) fail("returned %d, expected %d", code, FB_DONE);
}

/* Activations as functions: f and df are good to 4 ULP, and NaN gives NaN. */

static void cube(int64_t order, int64_t n, const void *z, void *out)
{
    for (int64_t i = 0; i < n; i++) {
        exact x = at(z, i);
        exact values[] = {x * x * x, 3 * x * x, 6 * x};
        set(out, i, order < 3 ? values[order] : at(out, i) * values[1]);
    }
}

/* The same as programs: places 0 and 1 are the constants 3 and 6, 2 is the input, 3 and 4 are
 * outputs. */
static const int16_t cube_code[][FB_INSTRUCTION] = {{FB_OP_PRODUCT_OF_THREE, 3, 2, 2, 2},
                                                    {FB_OP_PRODUCT_OF_THREE, 3, 0, 2, 2},
                                                    {FB_OP_MULTIPLY, 3, 1, 2},
                                                    {FB_OP_PRODUCT_OF_THREE, 3, 2, 2, 2},
                                                    {FB_OP_PRODUCT_OF_THREE, 4, 0, 2, 2}};
static const double cube_constants[] = {3, 6};
#define CUBE(first, count)                                                                         \
    {.code = cube_code[first], .constants = cube_constants, .n_constants = 2, .n_uniforms = 2,     \
     .n_inputs = 1, .n_instructions = count, .n_outputs = count}
static const fb_program cubes[] = {CUBE(0, 1), CUBE(1, 1), CUBE(2, 1), CUBE(3, 2)};

/* The user's activation: a function for double, programs for float. */
static const fb_user *user_of(int64_t kind)
{
    static const fb_user by_programs = {0, {cubes, cubes + 1, cubes + 2, cubes + 3}};
    static fb_user by_function;
    by_function.function = (uintptr_t)cube;
    if (kind != FB_USER) return NULL;
    return is_double ? &by_function : &by_programs;
}

static void check_activation(int64_t kind, int64_t n)
{
    begin("activation %ld of %ld", (long)kind, (long)n);
    const void *Z = uniforms(n, 9);
    for (int order = 0; order < 2; order++) {
        void *result = room(n);
        fb_activation(is_double, kind, activations[kind].constant, user_of(kind), order, n, Z,
                      result);
        for (int64_t i = 0; i < n; i++) {
            exact v = order ? act_slope(kind, at(Z, i)) : act(kind, at(Z, i));
            within(order ? "df" : "f", i, at(result, i),
                   (number){v, 8 * unit() * fabs((double)v) + smallest()});
        }
        void *nan = room(1);
        fb_activation(is_double, kind, activations[kind].constant, user_of(kind), order, 1, nan,
                      nan);
        int constant = kind == FB_LINEAR && order == 1;
        if (!isnan(at(nan, 0)) && !constant) fail("of order %d of NaN is not NaN", order);
    }
}

/* One layer. */

typedef struct {
    int64_t n, n_in, n_out, kind;
    const void *X, *W, *b, *dY;
    void *Y, *Z, *dX, *dW, *db;
} layer;

static layer layer_of(int64_t n, int64_t n_in, int64_t n_out, int64_t kind)
{
    return (layer){.n = n, .n_in = n_in, .n_out = n_out, .kind = kind,
                   .Y = room(n * n_out), .Z = room(n * n_out), .dX = room(n * n_in),
                   .dW = room(n_in * n_out), .db = room(n_out)};
}

static void run_layer(layer c)
{
    double constant = activations[c.kind].constant;
    const fb_user *user = user_of(c.kind);
    succeeded(fb_dense_forward(is_double, c.n, c.n_in, c.n_out, c.kind, constant, user, c.X,
                               c.W, c.b, c.Y, c.Z));
    succeeded(fb_dense_backward(is_double, c.n, c.n_in, c.n_out, c.kind, constant, user, c.dY,
                                c.X, c.W, c.Y, c.Z, c.dX, c.dW, c.db));
}

/* Without Z where it is not needed, without b, db and dX: the same numbers. */
static void check_shorter_calls(layer c)
{
    layer d = c;
    int needs_z = activations[c.kind].needs_z;
    d.Y = room(c.n * c.n_out), d.dW = room(c.n_in * c.n_out), d.dX = NULL, d.db = NULL;
    d.Z = needs_z ? room(c.n * c.n_out) : NULL;
    run_layer(d);
    all_equal("Y without Z", c.n * c.n_out, d.Y, c.Y);
    all_equal("dW without dX", c.n_in * c.n_out, d.dW, c.dW);
    void *zero = memset(room(c.n_out), 0, bytes(c.n_out));
    layer with = c, without = c;
    with.b = zero, with.Y = room(c.n * c.n_out), with.Z = room(c.n * c.n_out);
    without.b = NULL, without.Y = room(c.n * c.n_out), without.Z = room(c.n * c.n_out);
    run_layer(with);
    run_layer(without);
    all_equal("Z without b", c.n * c.n_out, without.Z, with.Z);
}

static void check_layer(int64_t n, int64_t n_in, int64_t n_out, int64_t kind)
{
    begin("layer %ldx%ldx%ld, activation %ld", (long)n, (long)n_in, (long)n_out, (long)kind);
    layer c = layer_of(n, n_in, n_out, kind);
    c.X = uniforms(n * n_in, 2), c.W = uniforms(n_in * n_out, 1);
    c.b = uniforms(n_out, 1), c.dY = uniforms(n * n_out, 1);
    run_layer(c);
    number *X = numbers(n * n_in), *Z = numbers(n * n_out), *Y = numbers(n * n_out);
    for (int64_t i = 0; i < n * n_in; i++) X[i] = number_at(c.X, i);
    naive_layer(n, n_in, n_out, kind, X, c.W, c.b, Z, Y);
    all_within("Z", n * n_out, c.Z, Z);
    number *dZ = numbers(n * n_out), *dX = numbers(n * n_in), *dW = numbers(n_in * n_out);
    number *db = numbers(n_out);
    for (int64_t i = 0; i < n * n_out; i++) { /* of the Z that it got */
        within("Y", i, at(c.Y, i), act_of(kind, number_at(c.Z, i)));
        dZ[i] = times(number_at(c.dY, i), slope_of(kind, number_at(c.Z, i)));
    }
    naive_layer_backward(n, n_in, n_out, dZ, X, c.W, dX, dW, db);
    all_within("dX", n * n_in, c.dX, dX);
    all_within("dW", n_in * n_out, c.dW, dW);
    all_within("db", n_out, c.db, db);
    check_shorter_calls(c);
}

/* C (M, N) = A·B with the strides of a matrix and of a transpose. */
static void multiply(int64_t M, int64_t N, int64_t K, const double *A, int64_t ars, int64_t acs,
                     const double *B, int64_t brs, int64_t bcs, double *C)
{
    memset(C, 0, (size_t)(M * N) * sizeof *C);
    for (int64_t i = 0; i < M; i++)
        for (int64_t k = 0; k < K; k++)
            for (int64_t j = 0; j < N; j++)
                C[i * N + j] += A[i * ars + k * acs] * B[k * brs + j * bcs];
}

static double *doubles(int64_t n) { return mapped((size_t)n * sizeof(double)); }

static double *doubles_of(const void *array, int64_t n)
{
    double *copy = doubles(n);
    for (int64_t i = 0; i < n; i++) copy[i] = (double)at(array, i);
    return copy;
}

static void exactly(const char *what, int64_t n, const void *got, const double *expected)
{
    for (int64_t i = 0; i < n; i++) within(what, i, at(got, i), (number){expected[i], 0});
}

/* Sums of small whole numbers are exact in any order: all of a large layer at once. */
static void check_whole_numbers(int64_t n, int64_t n_in, int64_t n_out)
{
    begin("whole numbers %ldx%ldx%ld", (long)n, (long)n_in, (long)n_out);
    layer c = layer_of(n, n_in, n_out, FB_RELU);
    c.X = whole_numbers(n * n_in), c.W = whole_numbers(n_in * n_out);
    c.b = whole_numbers(n_out), c.dY = whole_numbers(n * n_out), c.Z = NULL;
    run_layer(c);
    double *X = doubles_of(c.X, n * n_in), *W = doubles_of(c.W, n_in * n_out);
    double *Z = doubles(n * n_out), *dZ = doubles_of(c.dY, n * n_out), *dX = doubles(n * n_in);
    double *dW = doubles(n_in * n_out), *db = doubles(n_out);
    multiply(n, n_out, n_in, X, n_in, 1, W, n_out, 1, Z);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n_out; j++) {
            double *z = Z + i * n_out + j;
            *z = fmax(*z + (double)at(c.b, j), 0);
            if (*z == 0) dZ[i * n_out + j] = 0;
            db[j] += dZ[i * n_out + j];
        }
    exactly("Y", n * n_out, c.Y, Z);
    multiply(n, n_in, n_out, dZ, n_out, 1, W, 1, n_out, dX);
    multiply(n_in, n_out, n, X, 1, n_in, dZ, n_out, 1, dW);
    exactly("dX", n * n_in, c.dX, dX);
    exactly("dW", n_in * n_out, c.dW, dW);
    exactly("db", n_out, c.db, db);
}

/* Networks. */

/* Layers of these widths and activations; the second has no bias. `frozen` parameters are every
 * fifth one. */
static network network_of(int64_t n_layers, const int64_t *widths, const int64_t *kinds, int frozen)
{
    network net = {.n_layers = n_layers};
    double constants[MOST_LAYERS];
    const fb_user *users[MOST_LAYERS];
    for (int64_t l = 0; l < n_layers; l++) {
        int64_t *row = net.layers[l];
        row[FB_N_IN] = widths[l], row[FB_N_OUT] = widths[l + 1], row[FB_ACTIVATION] = kinds[l];
        row[FB_W_OFFSET] = net.n_params, net.n_params += widths[l] * widths[l + 1];
        row[FB_B_OFFSET] = l == 1 ? -1 : net.n_params, net.n_params += l == 1 ? 0 : widths[l + 1];
        row[FB_Y_COLUMN] = net.tape_width, net.tape_width += widths[l + 1];
        row[FB_Z_COLUMN] = activations[kinds[l]].needs_z ? net.tape_width : -1;
        if (row[FB_Z_COLUMN] >= 0) net.tape_width += widths[l + 1];
        constants[l] = activations[kinds[l]].constant, users[l] = user_of(kinds[l]);
    }
    uint8_t *free_ones = frozen ? mapped((size_t)net.n_params) : NULL;
    for (int64_t i = 0; free_ones && i < net.n_params; i++) free_ones[i] = i % 5 != 0;
    net.n_free = net.n_params - (frozen ? (net.n_params + 4) / 5 : 0);
    net.plan = fb_plan_new(is_double, n_layers, *net.layers, constants, users, NULL, free_ones,
                           net.n_params, net.tape_width);
    if (!net.plan) fail("no memory for a plan");
    return net;
}

/* X and targets for the loss: outputs are sigmoids. */
static fb_problem problem_of(const network *net, int64_t loss, int64_t n, int extras)
{
    int64_t n_out = outputs(net), width = loss == FB_GAUSSIAN_NLL ? n_out / 2 : n_out;
    fb_problem problem = {.n = n, .n_targets = width, .loss = loss};
    problem.constant = loss_constants[loss];
    problem.scale = 1 / (double)n;
    problem.X = uniforms(n * net->layers[0][FB_N_IN], 2);
    if (loss == FB_SOFTMAX_CE_LABELS) {
        int64_t *labels = mapped((size_t)n * sizeof *labels);
        for (int64_t i = 0; i < n; i++) labels[i] = i % n_out;
        problem.labels = labels;
    } else if (loss != FB_GAUSSIAN_KL && loss != FB_MARGIN_RANKING) {
        void *y = room(n * width);
        for (int64_t i = 0; i < n * width; i++) set(y, i, (1 + uniform()) / 2);
        problem.y = y;
    }
    if (extras) {
        void *weights = room(n);
        for (int64_t i = 0; i < n; i++) /* of pairs both have the same */
            set(weights, i, 0.5L + (exact)(i / 2 % 7) / 8);
        problem.weights = weights;
        problem.l2 = 0.25, problem.l1 = 0.125, problem.group = 0.0625;
    }
    return problem;
}

static const void *params_of(const network *net) { return uniforms(net->n_params, 0.7L); }

static void check_objective(const network *net, int64_t loss, int64_t n, int extras)
{
    begin("value_and_grad of loss %ld, %ld rows, %ld wide%s", (long)loss, (long)n,
          (long)net->layers[0][FB_N_OUT], extras ? ", weights and penalties" : "");
    fb_problem problem = problem_of(net, loss, n, extras);
    const void *params = params_of(net);
    number *expected = numbers(net->n_params);
    number value = naive_objective(net, &problem, params, expected);
    void *grad = room(net->n_params);
    double got, alone;
    succeeded(fb_value_and_grad(net->plan, &problem, params, 1, &got, grad));
    within("value", 0, got, value);
    all_within("grad", net->n_params, grad, expected);
    succeeded(fb_value_and_grad(net->plan, &problem, params, 1, &alone, NULL));
    if (got != alone) fail("the value alone is %.17g, with the gradient %.17g", alone, got);
}

static void check_passes(const network *net, int64_t n)
{
    begin("forward and backward, %ld rows, %ld wide", (long)n, (long)net->layers[0][FB_N_OUT]);
    int64_t n_in = net->layers[0][FB_N_IN], n_out = outputs(net), last = net->n_layers - 1;
    const void *X = uniforms(n * n_in, 2), *params = params_of(net), *dY = uniforms(n * n_out, 1);
    void *Y = room(n * n_out), *record = room(n * net->tape_width);
    void *grad = room(net->n_params), *dX = room(n * n_in), *grad_alone = room(net->n_params);
    succeeded(fb_forward(net->plan, params, n, X, Y));
    succeeded(fb_forward_tape(net->plan, params, n, X, record));
    succeeded(fb_backward(net->plan, params, n, X, record, dY, grad, dX));
    succeeded(fb_backward(net->plan, params, n, X, record, dY, grad_alone, NULL));
    tape t = naive_forward(net, params, n, X);
    number *dY_numbers = numbers(n * n_out), *dX_expected = numbers(n * n_in);
    number *expected = numbers(net->n_params);
    for (int64_t i = 0; i < n * n_out; i++) dY_numbers[i] = number_at(dY, i);
    naive_backward(net, params, n, &t, dY_numbers, expected, dX_expected);
    all_within("Y", n * n_out, Y, t.X[last + 1]);
    for (int64_t l = 0; l <= last; l++) {
        const int64_t *row = net->layers[l];
        int64_t size = n * row[FB_N_OUT], y = row[FB_Y_COLUMN], z = row[FB_Z_COLUMN];
        all_within("Y of the tape", size, from(record, n * y), t.X[l + 1]);
        if (z >= 0) all_within("Z of the tape", size, from(record, n * z), t.Z[l + 1]);
    }
    all_within("grad", net->n_params, grad, expected);
    all_within("dX", n * n_in, dX, dX_expected);
    all_equal("grad without dX", net->n_params, grad_alone, grad);
}

static void check_jacobians(const network *net, int64_t n)
{
    begin("Jacobians, %ld rows", (long)n);
    int64_t n_in = net->layers[0][FB_N_IN], n_out = outputs(net), P = net->n_params;
    const void *X = uniforms(n * n_in, 2), *params = params_of(net), *tangent = uniforms(P, 1);
    void *J = room(n * n_out * P), *J_X = room(n * n_out * n_in);
    void *Y = room(n * n_out), *dY = room(n * n_out);
    number *expected = naive_jacobian(net, params, n, X);
    succeeded(fb_jacobian(net->plan, params, n, X, 1, 0, J));
    all_within("jacobian", n * n_out * P, J, expected);
    void *J_free = room(n * n_out * net->n_free);
    succeeded(fb_jacobian(net->plan, params, n, X, 1, 1, J_free));
    for (int64_t i = 0; i < n * n_out; i++)
        for (int64_t k = 0; k < net->n_free; k++)
            within("jacobian of the free", i * net->n_free + k, at(J_free, i * net->n_free + k),
                   number_at(J, i * P + free_place(net, k)));
    succeeded(fb_jvp(net->plan, params, n, X, tangent, Y, dY));
    tape t = naive_forward(net, params, n, X);
    all_within("Y of jvp", n * n_out, Y, t.X[net->n_layers]);
    for (int64_t i = 0; i < n * n_out; i++) {
        sum s = {0};
        for (int64_t p = 0; p < P; p++) add(&s, expected[i * P + p], number_at(tangent, p));
        within("jvp", i, at(dY, i), total(s));
    }
    succeeded(fb_input_jacobian(net->plan, params, n, X, J_X));
    for (int64_t i = 0; i < n; i++) {
        tape row = naive_forward(net, params, 1, from(X, i * n_in));
        for (int64_t j = 0; j < n_out; j++) {
            number *unit_row = numbers(n_out), *dX = numbers(n_in);
            unit_row[j].v = 1;
            naive_backward(net, params, 1, &row, unit_row, numbers(P), dX);
            all_within("input_jacobian", n_in, from(J_X, (i * n_out + j) * n_in), dX);
        }
    }
}

/* Residuals Y - T, and their sum of squares. */
static number *naive_residuals(const network *net, const fb_problem *problem, const void *params,
                               robustness how, number *sum_of_squares)
{
    int64_t n_out = outputs(net), count = problem->n * n_out;
    tape t = naive_forward(net, params, problem->n, problem->X);
    number *r = numbers(count);
    sum squares = {0};
    for (int64_t i = 0; i < count; i++) {
        number y = t.X[net->n_layers][i];
        exact target = at(problem->y, i);
        r[i] = rounded(y.v - target, y.e, fabsl(y.v) + fabsl(target));
        add(&squares, number_at(problem->weights, i / n_out),
            robust_number(robust_square, how, r[i]));
    }
    *sum_of_squares = total(squares);
    return r;
}

/* JᵀDJ and JᵀDr in the free parameters, and the sum of squares. */
static void check_normal_equations(const network *net, int64_t n, robustness how)
{
    begin("normal equations of rho %ld, %ld rows, %ld of %ld free", (long)how.kind, (long)n,
          (long)net->n_free, (long)net->n_params);
    int64_t n_out = outputs(net), P = net->n_free, count = n * n_out;
    fb_problem problem = problem_of(net, FB_SQUARED, n, 1);
    const void *params = params_of(net);
    void *normal = room((P + 1) * P);
    double got, alone, C = how.scale;
    succeeded(fb_normal_equations(net->plan, &problem, params, 1, how.kind, C, normal, &got));
    succeeded(fb_normal_equations(net->plan, &problem, params, 1, how.kind, C, NULL, &alone));
    number squares, *all = naive_jacobian(net, params, n, problem.X), *J = numbers(count * P);
    number *r = naive_residuals(net, &problem, params, how, &squares), *Dr = numbers(count);
    within("sum", 0, got, squares);
    within("sum alone", 0, alone, squares);
    for (int64_t i = 0; i < count; i++) { /* J and r times the root of D */
        number weight = robust_number(robust_weight, how, r[i]);
        exact w = at(problem.weights, i / n_out), root = sqrtl(w * weight.v);
        number factor = rounded(root, w * weight.e / root, root);
        Dr[i] = times(r[i], factor);
        for (int64_t p = 0; p < P; p++)
            J[i * P + p] = times(all[i * net->n_params + free_place(net, p)], factor);
    }
    for (int64_t p = 0; p < P; p++) {
        sum s = {0};
        for (int64_t i = 0; i < count; i++) add(&s, J[i * P + p], Dr[i]);
        within("JTr", p, at(normal, P * P + p), total(s));
        for (int64_t q = 0; q < P; q++) {
            sum entry = {0};
            for (int64_t i = 0; i < count; i++) add(&entry, J[i * P + p], J[i * P + q]);
            within("JTJ", p * P + q, at(normal, p * P + q), total(entry));
        }
    }
}

/* The gradients of rows of the squared loss, which are 2·scale·w·r·J. */
static void check_row_gradients(const network *net, int64_t n)
{
    begin("row gradients, %ld rows", (long)n);
    int64_t n_out = outputs(net), P = net->n_params;
    fb_problem problem = problem_of(net, FB_SQUARED, n, 1);
    const void *params = params_of(net);
    void *rows = room(n * P);
    succeeded(fb_row_gradients(net->plan, &problem, params, rows));
    number squares, *J = naive_jacobian(net, params, n, problem.X);
    number *r = naive_residuals(net, &problem, params, (robustness){FB_LINEAR_RHO, 1}, &squares);
    for (int64_t i = 0; i < n; i++) {
        exact factor = 2 * (exact)problem.scale * at(problem.weights, i);
        for (int64_t p = 0; p < P; p++) {
            sum row = {0};
            for (int64_t j = i * n_out; j < (i + 1) * n_out; j++) add(&row, J[j * P + p], r[j]);
            within("row gradient", i * P + p, at(rows, i * P + p),
                   times(total(row), rounded(factor, 0, factor)));
        }
    }
}

/* The exact products against differences of naive gradients, which are off by h² g''' / 6 and by
 * long double's rounding over h. */
static void check_hvp(const network *net, int64_t loss, int64_t n)
{
    begin("hvp of loss %ld, %ld rows", (long)loss, (long)n);
    enum { DOUBLE = 1 };
    const exact h = 0x1p-20L;
    int64_t P = net->n_params;
    fb_problem problem = problem_of(net, loss, n, 0);
    const void *params = params_of(net), *v = uniforms(P, 1);
    void *product = room(P);
    succeeded(fb_hvp(net->plan, &problem, params, v, 0, product));
    exact *difference = mapped((size_t)P * sizeof(exact)), most = 0;
    for (int side = -1; side <= 1; side += 2) {
        void *moved = mapped((size_t)P * sizeof(double));
        for (int64_t p = 0; p < P; p++)
            ((double *)moved)[p] = (double)(at(params, p) + side * h * at(v, p));
        number *grad = numbers(P);
        fb_problem in_double = problem;
        in_double.X = doubles_of(problem.X, n * net->layers[0][FB_N_IN]);
        if (problem.y) in_double.y = doubles_of(problem.y, n * problem.n_targets);
        int before = is_double;
        is_double = DOUBLE;
        naive_objective(net, &in_double, moved, grad);
        is_double = before;
        for (int64_t p = 0; p < P; p++) difference[p] += side * grad[p].v / (2 * h);
    }
    for (int64_t p = 0; p < P; p++) most = fmaxl(most, fabsl(difference[p]));
    for (int64_t p = 0; p < P; p++) {
        double error = (1e-8 + (double)(256 * n) * unit()) * (double)most;
        within("hvp", p, at(product, p), (number){difference[p], error});
    }
}

/* Training. */

typedef struct {
    int64_t optimizer, n_moments;
    double constants[4];
} optimizer;

static const optimizer optimizers[] = {
    {FB_ADAM, 2, {0.9, 0.999, 1e-8, 0}},
    {FB_ADAM, 2, {0.9, 0.999, 1e-8, 0.01}},
    {FB_RMSPROP, 1, {0.99, 1e-8, 0, 0}},
    {FB_RMSPROP_MOMENTUM, 2, {0.99, 1e-8, 0.9, 0}},
    {FB_RMSPROP_CENTERED, 2, {0.99, 1e-3, 0, 0}},
    {FB_RMSPROP_CENTERED_MOMENTUM, 3, {0.99, 1e-3, 0.9, 0}},
    OTHER_OPTIMIZERS
};

enum { N_OPTIMIZERS = sizeof optimizers / sizeof *optimizers, MOST_EPOCHS = 64 };
_Static_assert(N_OPTIMIZERS == FB_RULE_COUNT + 1, "a rule is missing; Adam is here twice");

/* A run from the start, in the rows' order. */
static fb_run run_of(const network *net, const optimizer *o, const void *params, int64_t batch_size)
{
    static const double rate[] = {0x1p-6};
    int64_t P = net->n_params;
    fb_run run = {.params = copy_of(params, P), .moments = room(3 * P), .good = room(2 * P),
                  .monitor = doubles(6), .optimizer = o->optimizer, .n_moments = o->n_moments,
                  .batch_size = batch_size, .averaged = 1, .clip_norm = INFINITY,
                  .average_from = -1, .goal = -INFINITY, .threads = 1, .n_rates = 1,
                  .rates = rate, .losses = doubles(MOST_EPOCHS)};
    memcpy(run.constants, o->constants, sizeof run.constants);
    memset(run.moments, 0, bytes(3 * P));
    run.monitor[FB_LOWEST] = run.monitor[FB_LAST_PROGRESS] = INFINITY;
    return run;
}

/* The rows `order` of a problem, as a problem. */
static fb_problem batch_of(const network *net, const fb_problem *problem, const int64_t *order,
                           int64_t rows)
{
    fb_problem batch = *problem;
    int64_t n_in = net->layers[0][FB_N_IN], width = problem->n_targets;
    void *X = room(rows * n_in), *y = room(rows * width), *weights = room(rows);
    for (int64_t i = 0; i < rows; i++) {
        int64_t row = order[i];
        for (int64_t k = 0; k < n_in; k++) set(X, i * n_in + k, at(problem->X, row * n_in + k));
        for (int64_t j = 0; j < width; j++) set(y, i * width + j, at(problem->y, row * width + j));
        set(weights, i, at(problem->weights, row));
    }
    batch.n = rows, batch.X = X, batch.y = y, batch.weights = weights;
    batch.scale = problem->scale * (double)problem->n / (double)rows;
    return batch;
}

/* Parameter i and its moments after a step with this gradient, given those before it. */
static void check_update(const fb_run *before, const fb_run *after, int64_t P, int64_t i, number g)
{
    exact start[3], m[3][3], p[3];
    for (int64_t k = 0; k < 3; k++)
        start[k] = k < before->n_moments ? at(before->moments, k * P + i) : 0;
    for (int side = 0; side < 3; side++) { /* in the middle, and at both ends of g's error */
        memcpy(m[side], start, sizeof start);
        exact at_end = side == 0 ? g.v : side == 1 ? g.v - g.e : g.v + g.e;
        p[side] = naive_rule(before, at(before->params, i), m[side], at_end);
    }
    for (int64_t k = 0; k < before->n_moments; k++) {
        exact e = fabsl(m[1][k] - m[0][k]) + fabsl(m[2][k] - m[0][k]);
        exact size = fabsl(start[k]) + fabsl(m[0][k]) + fabsl(g.v) * fminl(1, fabsl(g.v));
        within("moment", k * P + i, at(after->moments, k * P + i), rounded(m[0][k], e, size));
    }
    exact e = fabsl(p[1] - p[0]) + fabsl(p[2] - p[0]);
    exact size = fabsl(p[0]) + 16 * fabsl(p[0] - at(before->params, i));
    within("parameter", i, at(after->params, i), rounded(p[0], e, size));
}

/* Each step of two epochs of three batches, from where the library itself had come. */
static void check_steps(const network *net, int64_t loss, const optimizer *o)
{
    enum { ROWS = 70, BATCH = 32, STEPS = 3, EPOCHS = 2 };
    begin("training, optimizer %ld of %ld moments", (long)o->optimizer, (long)o->n_moments);
    int64_t P = net->n_params;
    fb_problem problem = problem_of(net, loss, ROWS, 1);
    int64_t order[EPOCHS][ROWS];
    for (int64_t i = 0; i < EPOCHS * ROWS; i++)
        order[i / ROWS][i % ROWS] = (i % ROWS * 29 + i / ROWS * 11) % ROWS;
    const void *params = params_of(net);
    fb_run run = run_of(net, o, params, BATCH), whole = run_of(net, o, params, BATCH);
    for (int64_t k = 0; k < EPOCHS * STEPS; k++) {
        int64_t epoch = k / STEPS, first = k % STEPS * BATCH;
        int64_t rows = ROWS - first < BATCH ? ROWS - first : BATCH;
        fb_run before = run, now = run;
        before.params = copy_of(run.params, P), before.moments = copy_of(run.moments, 3 * P);
        now.order = order[epoch], now.losses = run.losses + epoch, now.n_steps = 1;
        double so_far = *now.losses;
        succeeded(fb_train(net->plan, &problem, &now));
        run.step = now.step;
        fb_problem batch = batch_of(net, &problem, order[epoch] + first, rows);
        number *grad = numbers(P), value = naive_objective(net, &batch, before.params, grad);
        value.e += 0x1p-50 * (fabs((double)value.v) + so_far);
        within("loss", k, (exact)*now.losses - (exact)so_far, value);
        for (int64_t i = 0; i < P; i++) {
            if (i % 5 != 0) check_update(&before, &run, P, i, grad[i]);
            else all_equal("frozen parameter", 1, from(run.params, i), from(before.params, i));
        }
    }
    whole.order = *order, whole.n_steps = EPOCHS * STEPS;
    succeeded(fb_train(net->plan, &problem, &whole));
    if (memcmp(whole.params, run.params, bytes(P)) != 0)
        fail("six steps in one call give other parameters than six calls of one step");
}

/* Subnormal numbers are flushed inside of a call only. */
static void check_mode(void)
{
    volatile double tiny = 0x1p-1074, one = 1;
    volatile float tiny_float = 0x1p-149F, one_float = 1;
    if (tiny * one == 0 || tiny_float * one_float == 0) fail("subnormal numbers are flushed");
}

/* Threads: one and several give the same bits. */

static void check_threads(const network *net, int64_t n)
{
    begin("threads, %ld rows", (long)n);
    int64_t P = net->n_params, n_out = outputs(net);
    fb_problem problem = problem_of(net, FB_SQUARED, n, 1);
    const void *params = params_of(net);
    void *grads[6], *Js[6], *normals[6];
    fb_run runs[6];
    double values[6], sums[6];
    for (int64_t threads = 1; threads < 6; threads++) {
        void *grad = grads[threads] = room(P), *J = Js[threads] = room(n * n_out * P);
        void *normal = normals[threads] = room((P + 1) * P);
        fb_run *run = runs + threads;
        *run = run_of(net, optimizers, params, n);
        run->n_steps = 3, run->threads = threads;
        double *value = values + threads, *total = sums + threads;
        succeeded(fb_value_and_grad(net->plan, &problem, params, threads, value, grad));
        succeeded(fb_jacobian(net->plan, params, n, problem.X, threads, 0, J));
        succeeded(fb_normal_equations(net->plan, &problem, params, threads, FB_SOFT_L1_RHO, 0.5,
                                      normal, total));
        succeeded(fb_train(net->plan, &problem, run));
        check_mode();
        if (*value != values[1] || memcmp(grad, grads[1], bytes(P)) != 0 ||
            memcmp(J, Js[1], bytes(n * n_out * P)) != 0 || *total != sums[1] ||
            memcmp(normal, normals[1], bytes((P + 1) * P)) != 0 ||
            memcmp(run->params, runs[1].params, bytes(P)) != 0)
            fail("%ld threads give other bits than one", (long)threads);
    }
}

/* Memory. */

static int64_t allocations_of_training(const network *net, const fb_problem *problem,
                                       const void *params, int64_t epochs, int64_t threads)
{
    int64_t batch = threads > 1 ? problem->n : 32;
    fb_run run = run_of(net, optimizers, params, batch);
    run.n_steps = epochs * ((problem->n + batch - 1) / batch), run.threads = threads;
    int64_t before = allocations;
    succeeded(fb_train(net->plan, problem, &run));
    return allocations - before;
}

/* A run's epochs but the first allocate nothing, nor does a second call; threads are made once for
 * each call. Nothing stays behind. */
static void check_allocations(int64_t threads)
{
    begin("allocations, %ld threads", (long)threads);
    const int64_t widths[] = {7, 5, 131, 3}, kinds[] = {FB_TANH, FB_GELU, FB_LINEAR};
    int64_t first[2], second[2];
    for (int many = 0; many < 2; many++) {
        int64_t blocks_before = blocks;
        network net = network_of(3, widths, kinds, 0);
        fb_problem problem = problem_of(&net, FB_SQUARED, 300, 1);
        const void *params = params_of(&net);
        int64_t epochs = many ? 20 : 1;
        first[many] = allocations_of_training(&net, &problem, params, epochs, threads);
        second[many] = allocations_of_training(&net, &problem, params, epochs, threads);
        fb_plan_free(net.plan);
        int64_t left = blocks - blocks_before;
        if (left != 0) fail("%ld blocks are not freed", (long)left);
    }
    if (first[1] != first[0] || second[1] != second[0])
        fail("20 epochs allocate %ld and %ld times, one epoch %ld and %ld times", (long)first[1],
             (long)second[1], (long)first[0], (long)second[0]);
    if (threads == 1 && second[0] != 0) fail("a second call allocates %ld times", (long)second[0]);
}

/* The rest. */

/* Sizes about a vector of the level, two, and so on. */
static int64_t vector_length(void)
{
    int64_t size = strcmp(fb_isa(), "avx512") == 0 ? 64 : strcmp(fb_isa(), "avx2") == 0 ? 32 : 16;
    return size / (is_double ? 8 : 4);
}

static void check_layers(void)
{
    const int64_t VL = vector_length();
    const int64_t widths[] = {1, 2, VL - 1, VL, VL + 1, 2 * VL - 1, 5 * VL / 2, 3 * VL + 1, 4 * VL,
                              5 * VL + 1, 7 * VL, 8 * VL - 1};
    for (int64_t kind = 0; kind < N_ACTIVATIONS; kind++) {
        check_activation(kind, 4 * VL + 3);
        check_layer(7, 5, widths[3 + kind % 3], kind);
        check_layer(1 + kind, 2 * VL + 1, 1 + kind % 4, kind);
    }
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++)
        for (int64_t n = 1; n <= 26; n++)
            check_whole_numbers(n, 1 + (n * 7 + (int64_t)i * 5) % 37, widths[i]);
    for (int64_t n = 1; n <= 10; n++) { /* few rows, large matrices */
        check_whole_numbers(n, 300, 120);
        check_whole_numbers(n, 130, 257);
    }
    static const int64_t deep[][3] = {
        {9, 300, 64}, {25, 255, 67}, {24, 256, 64}, {13, 257, 96}, {12, 511, 33}, {50, 512, 33},
        {10, 513, 49}, {239, 29, 256}, {241, 130, 65}, {257, 9, 31}, {70, 481, 66}, {100, 241, 90},
        {17, 1024, 8}, {64, 1, 2000}, {260, 600, 1}, {33, 129, 128}, {9, 511, 66}, {13, 512, 67},
        {25, 513, 65}, {10, 1025, 40}, {9, 66, 513}, {11, 70, 1024}, {256, 20, 131}, {100, 17, 340},
    };
    for (size_t i = 0; i < sizeof deep / sizeof *deep; i++)
        check_whole_numbers(deep[i][0], deep[i][1], deep[i][2]);
    static const int64_t empty[][3] = {{0, 3, 2}, {4, 0, 2}, {4, 3, 0}};
    for (int i = 0; i < 3; i++) check_whole_numbers(empty[i][0], empty[i][1], empty[i][2]);
}

static void check_networks(void)
{
    const int64_t widths[] = {5, 9, 7, 4}, wide[] = {2, 131, 2, 3}, pairs[] = {5, 9, 7, 1};
    const int64_t kinds[] = {FB_TANH, FB_GELU, FB_SIGMOID};
    const int64_t others[] = {FB_RELU, FB_SILU, FB_LINEAR};
    const int64_t one[] = {1, 1};
    begin("networks");
    network single = network_of(1, one, kinds, 0);
    network net = network_of(3, widths, kinds, 0), ranking = network_of(3, pairs, kinds, 0);
    network large = network_of(3, wide, others, 0), frozen = network_of(3, widths, kinds, 1);
    for (int64_t loss = 0; loss < FB_USER_LOSS; loss++)
        for (int64_t n = 2; n < 50; n *= 3)
            check_objective(loss == FB_MARGIN_RANKING ? &ranking : &net, loss, n, n != 6);
    check_objective(&ranking, FB_BCE, 21, 1);
    check_objective(&net, FB_SQUARED, 300, 1);
    check_objective(&large, FB_SQUARED, 257, 1);
    for (int64_t n = 1; n < 100; n += 64) {
        check_passes(&net, n);
        check_passes(&large, n);
    }
    check_jacobians(&net, 6);
    check_jacobians(&ranking, 3);
    check_jacobians(&frozen, 4);
    check_row_gradients(&ranking, 5);
    for (int64_t rho = FB_LINEAR_RHO; rho <= FB_CAUCHY_RHO; rho++) {
        check_normal_equations(&ranking, 5, (robustness){rho, 0.25});
        check_normal_equations(&frozen, 6, (robustness){rho, 0.125});
    }
    check_normal_equations(&single, 3, (robustness){FB_LINEAR_RHO, 1});
    check_normal_equations(&net, 67, (robustness){FB_LINEAR_RHO, 1});
    check_hvp(&net, FB_SQUARED, 9);
    check_hvp(&net, FB_SOFTMAX_CE, 9);
    check_threads(&net, 1100);
    for (int i = 0; i < N_OPTIMIZERS; i++) check_steps(&frozen, FB_SQUARED, optimizers + i);
    begin("end");
    fb_plan_free(net.plan), fb_plan_free(ranking.plan), fb_plan_free(single.plan);
    fb_plan_free(large.plan), fb_plan_free(frozen.plan);
}

/* A fit of the straight line p0 + p1·x: the parameters are known, arrays are kept, and all memory
 * is given back. The last step decides about rounding, hence the bound. */
static void check_line(int64_t m, int is_weighted, int64_t rho, int is_bounded)
{
    begin("line through %ld points, weights %d, rho %ld, bounds %d", (long)m, is_weighted,
          (long)rho, is_bounded);
    static const int16_t value_code[] = {FB_OP_PRODUCT_PLUS, 3, 1, 2, 0, 0};
    static const int16_t slopes_code[] = {FB_OP_COPY, 4, 0, 0, 0, 0, FB_OP_COPY, 5, 3, 0, 0, 0};
    static const double one[] = {1}, wide[] = {-9, -9, 9, 9};
    fb_program value = {value_code, NULL, 1, 0, 0, 2, 2, 1, 0, 1};
    fb_program slopes = {slopes_code, one, 2, 0, 1, 2, 3, 1, 0, 2};
    const double *x = uniforms(m, 1), *weights = is_weighted ? uniforms(m, 1) : NULL;
    double *y = room(m), *p = room(2), *normal = room(6), *scales = room(2), *records = room(124);
    double *progress = room(8), *prior = room(2), *r = room(m), *J = room(2 * m);
    for (int64_t i = 0; i < m; i++) y[i] = 0.5 - 2 * x[i];
    protected(y, bytes(m));
    p[0] = p[1] = prior[0] = prior[1] = scales[0] = scales[1] = 0;
    memset(progress, 0, 8 * sizeof *progress);
    progress[FB_MU] = 1e-3;
    fb_curve curve = {&value, &slopes, (const double *[]){x}, y, weights, m, 2};
    fb_descent d = {.params = p, .normal = normal, .scales = scales, .state = progress,
                    .prior = prior, .lower = is_bounded ? wide : NULL,
                    .upper = is_bounded ? wide + 2 : NULL, .mu_max = 1e16, .ftol = 1e-14,
                    .xtol = 1e-12, .gtol = 1e-12, .goal = 1e-24, .rho_scale = 1, .bend = 1,
                    .rho = rho, .threads = 1, .steps = 30, .records = records};
    int64_t before = blocks;
    int taken = fb_fit_curve(&curve, &d);
    if (taken < 1 || taken > 30) fail("took %d steps", taken);
    if (blocks != before) fail("%ld blocks of memory are not given back", (long)(blocks - before));
    fb_curve_residuals(&curve, p, r, J);
    for (int64_t i = 0; i < m; i++) {
        double w = weights ? weights[i] : 1;
        within("r", i, r[i], (number){0, 1e-9});
        within("dr/dp0", i, J[i], (number){w, 0});
        within("dr/dp1", i, J[m + i], (number){w * x[i], 0});
    }
    if (m < 2) return; /* many lines pass through a point */
    within("p", 0, p[0], (number){0.5, 1e-9});
    within("p", 1, p[1], (number){-2, 1e-9});
}

static void check_curves(void)
{
    static const int64_t sizes[] = {1, 2, 3, 7, 8, 9, 31, 255, 256, 257, 600};
    for (size_t i = 0; is_double && i < sizeof sizes / sizeof *sizes; i++)
        for (int64_t rho = FB_LINEAR_RHO; rho <= FB_CAUCHY_RHO; rho++)
            for (int which = 0; which < 4; which++) check_line(sizes[i], which & 1, rho, which / 2);
}

int main(int argc, char **argv)
{
    if (argc != 2 || !fb_set_isa(argv[1])) {
        printf("usage: driver LEVEL, one of baseline, avx2, avx512\n");
        return 2;
    }
    if (strcmp(fb_isa(), argv[1]) != 0) {
        printf("%s: this processor has not more than %s; skipped\n", argv[1], fb_isa());
        return 0;
    }
    signal(SIGSEGV, crashed), signal(SIGBUS, crashed);
    for (is_double = 0; is_double < 2; is_double++) {
        state = 20240229;
        compared = 0;
        check_layers();
        check_networks();
        check_curves();
        check_allocations(1);
        check_allocations(3);
        printf("%s float%d: %ld numbers as they should be\n", argv[1], is_double ? 64 : 32,
               (long)compared);
        fflush(stdout);
    }
    unmap_all();
    return 0;
}
