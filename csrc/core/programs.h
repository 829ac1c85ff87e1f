/* Programs: expressions evaluated block by block. fastbp/maths/programs.py makes them and says what
 * their instructions mean; a NaN, an infinity or a zero becomes what NumPy makes of it.
 *
 * An instruction reads and writes blocks of up to 2 KB, so that the blocks of a usual expression
 * stay in the first-level cache together. Uniforms have a vector each, all lanes equal, from which
 * every vector of a block is combined: their step is 0.
 */

#include "formulas.h"

enum { PROGRAM_BYTES = 64 * FB_MOST_PLACES, MOST_IN_BLOCK = 2048 / sizeof(real) };

/* A program with its parameters, ready to run; one thread may use it at a time. */
typedef struct {
    const fb_program *program;
    idx block; /* numbers that an instruction computes at once */
    real *at[FB_MOST_PLACES]; /* memory of the places */
    _Alignas(64) real memory[PROGRAM_BYTES / sizeof(real)];
} program_run;

INLINE vec if_less_equal(vec a, vec b, vec yes, vec no)
{
    return if_greater(b, a, yes, if_equal(a, b, yes, no));
}

/* result = the expression of the vectors that `take` loads, for n numbers; step_a and so on are 0
 * for uniforms, else -1. */
#define WHOLE(x) vec x = load(at_##x + (i & step_##x));
#define FIRST(x) vec x = load_first(at_##x + (i & step_##x), m);
#define TAKE_A(how) how(a)
#define TAKE_AB(how) how(a) how(b)
#define TAKE_ABC(how) how(a) how(b) how(c)
#define TAKE_ABCD(how) how(a) how(b) how(c) how(d)
#define RUN(operation, take, expression)                                                           \
    case FB_OP_##operation:                                                                        \
        for (; i + VL <= n; i += VL) {                                                             \
            take(WHOLE) store(result + i, expression);                                             \
        }                                                                                          \
        if (i < n) {                                                                               \
            mask m = first_lanes(n - i);                                                           \
            take(FIRST) store_first(result + i, m, expression);                                    \
        }                                                                                          \
        break;

/* Run `count` instructions on n numbers of each place; an operation without a case traps. */
static void run_instructions(const program_run *run, const int16_t *code, idx count, idx n)
{
    const vec zero = {0}, one = splat(1);
    const idx uniforms = (idx)run->program->n_uniforms;
    for (const int16_t *end = code + FB_INSTRUCTION * count; code < end; code += FB_INSTRUCTION) {
        real *result = run->at[code[1]];
        const real *at_a = run->at[code[2]], *at_b = run->at[code[3]];
        const real *at_c = run->at[code[4]], *at_d = run->at[code[5]];
        idx step_a = -(code[2] >= uniforms), step_b = -(code[3] >= uniforms);
        idx step_c = -(code[4] >= uniforms), step_d = -(code[5] >= uniforms), i = 0;
        switch (code[0]) {
        RUN(COPY, TAKE_A, a)
        RUN(ADD, TAKE_AB, a + b)
        RUN(SUBTRACT, TAKE_AB, a - b)
        RUN(MULTIPLY, TAKE_AB, a * b)
        RUN(DIVIDE, TAKE_AB, a / b)
        RUN(NEGATIVE_PRODUCT, TAKE_AB, -(a * b))
        RUN(PRODUCT_OF_THREE, TAKE_ABC, a * b * c)
        RUN(PRODUCT_PLUS, TAKE_ABC, a * b + c)
        RUN(PRODUCT_MINUS, TAKE_ABC, a * b - c)
        RUN(MINUS_PRODUCT, TAKE_ABC, c - a * b)
        RUN(POWER, TAKE_AB, vpower(a, b))
        RUN(NEGATIVE, TAKE_A, -a)
        RUN(ABS, TAKE_A, vabs(a))
        RUN(SIGN, TAKE_A, vsign(a))
        RUN(MAX, TAKE_AB, if_equal(a, a, vmax(a, b), a))
        RUN(MIN, TAKE_AB, if_equal(a, a, vmin(a, b), a))
        RUN(EXP, TAKE_A, vexp(a))
        RUN(DECAY, TAKE_A, vexp(-vabs(a)))
        RUN(EXPM1, TAKE_A, vexpm1_of_any(a))
        RUN(LOG, TAKE_A, vlog_of_any(a))
        RUN(LOG1P, TAKE_A, vlog1p_of_any(a))
        RUN(LOG1P_SMALL, TAKE_A, vlog1p_to_1(a))
        RUN(SQRT, TAKE_A, vsqrt(a))
        RUN(SIN, TAKE_A, vsin(a))
        RUN(COS, TAKE_A, vcos(a))
        RUN(TANH, TAKE_A, vtanh(a))
        RUN(SIGMOID, TAKE_A, vsigmoid(a))
        RUN(SHARE, TAKE_A, 1 / (1 + a))
        RUN(BELL, TAKE_A, sigmoid_slope(a))
        RUN(ARCTAN, TAKE_A, varctan(a))
        RUN(SINH, TAKE_A, vsinh(a))
        RUN(COSH, TAKE_A, vcosh(a))
        RUN(ERF, TAKE_A, verf(a))
        RUN(ERFC, TAKE_A, verfc(a))
        RUN(LESS, TAKE_AB, if_greater(b, a, one, zero))
        RUN(LESS_EQUAL, TAKE_AB, if_less_equal(a, b, one, zero))
        RUN(EQUAL, TAKE_AB, if_equal(a, b, one, zero))
        RUN(AND, TAKE_AB, a * b)
        RUN(OR, TAKE_AB, vmax(a, b))
        RUN(NOT, TAKE_A, 1 - a)
        RUN(WHERE, TAKE_ABC, if_equal(a, zero, c, b))
        RUN(IF_LESS, TAKE_ABCD, if_greater(b, a, c, d))
        RUN(IF_LESS_EQUAL, TAKE_ABCD, if_less_equal(a, b, c, d))
        RUN(IF_EQUAL, TAKE_ABCD, if_equal(a, b, c, d))
        default: __builtin_trap();
        }
    }
}

/* Make a program ready for these parameters (n_parameters numbers). */
static void program_start(program_run *run, const fb_program *program, const double *parameters)
{
    idx constants = (idx)program->n_constants, uniforms = (idx)program->n_uniforms;
    idx fixed = constants + (idx)program->n_parameters, registers = (idx)program->n_registers;
    real *memory = run->memory, **at = run->at + uniforms + program->n_inputs;
    idx block = ((idx)(PROGRAM_BYTES / sizeof(real)) - uniforms * VL) / (registers + !registers);
    run->program = program;
    run->block = block < (idx)MOST_IN_BLOCK ? block / VL * VL : (idx)MOST_IN_BLOCK;
    for (idx k = 0; k < uniforms; k++) run->at[k] = memory + k * VL;
    for (idx k = 0; k < registers; k++) at[k] = memory + uniforms * VL + k * run->block;
    for (idx k = 0; k < fixed; k++) {
        double number = k < constants ? program->constants[k] : parameters[k - constants];
        store(run->at[k], splat((real)number));
    }
    run_instructions(run, program->code, (idx)program->n_once, VL);
}

/* outputs[k] (n) = the expressions of the inputs (n each); the last one may be inputs[0], all
 * others are separate. */
static void program_apply(program_run *run, idx n, const real *const *inputs, real *const *outputs)
{
    const fb_program *p = run->program;
    real **in = run->at + p->n_uniforms, **out = in + p->n_inputs + p->n_registers;
    for (idx i = 0; i < n; i += run->block) {
        for (idx k = 0; k < p->n_inputs; k++) in[k] = (real *)(uintptr_t)(inputs[k] + i);
        for (idx k = 0; k < p->n_outputs; k++) out[k] = outputs[k] + i;
        run_instructions(run, p->code + FB_INSTRUCTION * p->n_once,
                         (idx)(p->n_instructions - p->n_once), n - i < run->block ? n - i : run->block);
    }
}

/* The public function. */
static void evaluate(const fb_program *program, const double *parameters, idx n,
                     const void *const *inputs, void *const *outputs)
{
    program_run run;
    program_start(&run, program, parameters);
    program_apply(&run, n, (const real *const *)inputs, (real *const *)outputs);
}
