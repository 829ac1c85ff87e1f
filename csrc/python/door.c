/* The way in from Python where calls are short: checks, results and a backend's work in one call.
 *
 * A layer of 8 units takes the kernels 0.1 µs, and Python and cffi, or Python and Numba's
 * dispatcher, 3 µs to come to them. So fastbp/_kernels.py asks dense_forward and dense_backward
 * here first, which serve what most calls are: plain arrays of one float type that fit each other
 * and need no conversion, a built-in activation, the C or the Numba backend in use. Otherwise they
 * return None, and Python converts, or says what is wrong. is_ready does what its namesake in
 * fastbp/_arrays.py does, value_and_grad and numba_value_and_grad what theirs in the backends do.
 * The Python files that import this module alone call its functions, and count the arguments.
 *
 * The backends hand over the addresses of the functions that do the work: native.py those of the C
 * library when it is loaded, jit/__init__.py Numba's as they come to be compiled, until when calls
 * go by way of Python. So neither needs the limited API and NumPy's, which this module uses. The
 * GIL guards what is static here.
 */
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#include <Python.h>
#include <numpy/arrayobject.h>

#include <stdlib.h>
#include <string.h>

#include "../fastbp.h"

/* The GIL is released for so many multiplications or more, about 1 µs. */
enum { LONG_WORK = 20000 };

/* What open() was given. */
static PyObject *chosen_backend, *activations;
static PyTypeObject *activation_type;

/* Addresses of a backend's functions, for float32 and float64; 0 for what is not there yet. */
typedef struct {
    PyObject *backend;
    uintptr_t forward[2], backward[2], activation[2][FB_USER];
} library;
static library c_library, numba_library;
static uintptr_t c_value_and_grad;
#define AT(address, function) ((__typeof__(function) *)(address))

/* fb_dense_forward and fb_dense_backward in Numba: see backends/jit/kernels.py. As all that Numba
 * compiles they have two places in front, for a result and for an error; there are none. */
typedef int numba_forward(void **result, void **error, int64_t n, int64_t n_in, int64_t n_out,
                          int64_t kind, uintptr_t function, double constant, uintptr_t user,
                          const void *X, const void *W, const void *b, int64_t has_bias, void *Y,
                          void *Z, int64_t keep_z);
typedef int numba_backward(void **result, void **error, int64_t n, int64_t n_in, int64_t n_out,
                           int64_t kind, uintptr_t function, double constant, uintptr_t user,
                           void *dZ, const void *X, const void *W, const void *kept, void *dX,
                           int64_t need_dX, void *dW, void *db, int64_t need_db,
                           void *transposed);

/* What jit/__init__.py says of an objective: the address of linked_objective of objective.py, the
 * size of its workspace in bytes, how many rows there are, and what else it takes. */
typedef struct {
    uintptr_t function, workspace;
    intptr_t n;
    const void *plan, *constants, *terms, *numbers, *X, *targets, *labels, *weights;
} numba_problem;
typedef int numba_objective(double *result, void **error, const void *plan, const void *constants,
                            const void *params, const void *terms, const void *numbers,
                            const void *X, const void *targets, const void *labels,
                            const void *weights, int64_t n, int64_t n_params, void *gradient,
                            int64_t need_gradient, void *workspace);

static PyObject *str_numbers;
static PyArray_Descr *float32, *float64;

/* Whether kernels take it as it is: a plain array of that type. */
static int suits(PyObject *value, const PyArray_Descr *type)
{
    const PyArrayObject *a = (const PyArrayObject *)value;
    return PyArray_CheckExact(value) && PyArray_DESCR(a) == type &&
           PyArray_CHKFLAGS(a, NPY_ARRAY_CARRAY_RO);
}

static int fits(PyObject *value, const PyArray_Descr *type, int ndim, npy_intp n, npy_intp width)
{
    const PyArrayObject *a = (const PyArrayObject *)value;
    return suits(value, type) && PyArray_NDIM(a) == ndim && PyArray_DIM(a, 0) == n &&
           (ndim == 1 || PyArray_DIM(a, 1) == width);
}

static void *data(PyObject *array)
{
    return array == Py_None ? NULL : PyArray_DATA((PyArrayObject *)array);
}

typedef struct {
    const library *from;
    PyArray_Descr *type;
    npy_intp n, n_in, n_out;
    long kind;
    double constant;
    int is_double, keeps_z, is_long;
} layer;

/* What X, W and an Activation say; 0 if they do not fit, or the function is the user's own, or the
 * backend is another one. */
static int read_layer(layer *l, PyObject *backend, PyObject *X, PyObject *W, PyObject *activation)
{
    l->from = backend == c_library.backend ? &c_library : &numba_library;
    if (!backend || backend != l->from->backend) return 0;
    const PyArrayObject *x = (PyArrayObject *)X, *w = (PyArrayObject *)W;
    l->is_double = !suits(X, float32);
    l->type = l->is_double ? float64 : float32;
    if (!suits(X, l->type) || !suits(W, l->type) || PyArray_NDIM(x) != 2 ||
        PyArray_NDIM(w) != 2 || PyArray_DIM(x, 1) != PyArray_DIM(w, 0) ||
        Py_TYPE(activation) != activation_type)
        return 0;
    l->n = PyArray_DIM(x, 0), l->n_in = PyArray_DIM(w, 0), l->n_out = PyArray_DIM(w, 1);
    l->is_long = (double)l->n * (double)l->n_in * (double)l->n_out >= LONG_WORK;
    PyObject *numbers = PyObject_GetAttr(activation, str_numbers);
    Py_XDECREF(numbers); /* the activation keeps it */
    if (!numbers || numbers == Py_None) return 0;
    l->kind = PyLong_AsLong(PyTuple_GetItem(numbers, 0));
    l->constant = PyFloat_AsDouble(PyTuple_GetItem(numbers, 1));
    l->keeps_z = PyTuple_GetItem(numbers, 2) == Py_True;
    return 1;
}

/* Whether Numba has compiled what the layer needs. */
static int is_there(const layer *l, const uintptr_t *of_type)
{
    return l->from == &c_library ||
           (of_type[l->is_double] && l->from->activation[l->is_double][l->kind]);
}

/* A new array of one or two dimensions, or None. */
static PyObject *result(int needed, const layer *l, int ndim, npy_intp n, npy_intp width)
{
    npy_intp shape[] = {n, width};
    return needed ? PyArray_SimpleNew(ndim, shape, l->type->type_num) : Py_NewRef(Py_None);
}

/* Borrowed; NULL before open(). */
static PyObject *backend_in_use(PyObject *otherwise)
{
    PyObject *backend = PyObject_CallNoArgs(chosen_backend);
    Py_XDECREF(backend); /* a module, which stays, or None */
    return backend == Py_None ? otherwise : backend;
}

static int forward(const layer *l, const void *X, const void *W, const void *b, void *Y, void *Z)
{
    uintptr_t address = l->from->forward[l->is_double];
    if (l->from == &c_library)
        return AT(address, fb_dense_forward)(l->is_double, l->n, l->n_in, l->n_out, l->kind,
                                             l->constant, 0, X, W, b, Y, Z);
    void *nothing, *error;
    return ((numba_forward *)address)(&nothing, &error, l->n, l->n_in, l->n_out, l->kind,
                                      l->from->activation[l->is_double][l->kind], l->constant, 0, X,
                                      W, b, b != NULL, Y, Z, Z != NULL);
}

static int backward(const layer *l, const void *dY, const void *X, const void *W, const void *Y,
                    const void *Z, void *dX, void *dW, void *db)
{
    uintptr_t address = l->from->backward[l->is_double];
    if (l->from == &c_library)
        return AT(address, fb_dense_backward)(l->is_double, l->n, l->n_in, l->n_out, l->kind,
                                              l->constant, 0, dY, X, W, Y, Z, dX, dW, db);
    /* Numba's function works on a copy of dY, and is given room for Wᵀ. */
    size_t size = l->is_double ? sizeof(double) : sizeof(float), line = 64;
    size_t of_dZ = ((size_t)(l->n * l->n_out) * size + line - 1) / line * line;
    char *room = malloc(of_dZ + (dX ? (size_t)(l->n_in * l->n_out) * size : 0) + line);
    if (!room) return FB_NO_MEMORY;
    char *dZ = room + line - (uintptr_t)room % line; /* begins at a cache line */
    memcpy(dZ, dY, (size_t)(l->n * l->n_out) * size);
    void *nothing, *error;
    int code = ((numba_backward *)address)(
        &nothing, &error, l->n, l->n_in, l->n_out, l->kind,
        l->from->activation[l->is_double][l->kind], l->constant, 0, dZ, X, W, l->keeps_z ? Z : Y,
        dX, dX != NULL, dW, db, db != NULL, dZ + of_dZ);
    free(room);
    return code;
}

#define FAST PyObject *Py_UNUSED(module), PyObject *const *given, Py_ssize_t Py_UNUSED(n)
/* dense_forward(X, W, b, activation, backends._default, DenseCache) -> (Y, cache) */
static PyObject *dense_forward(FAST)
{
    PyObject *X = given[0], *W = given[1], *b = given[2], *act = given[3], *results = NULL;
    layer l;
    PyObject *backend = backend_in_use(given[4]);
    if (PyUnicode_CheckExact(act)) act = PyDict_GetItemWithError(activations, act);
    if (!act || !read_layer(&l, backend, X, W, act) || !is_there(&l, l.from->forward))
        Py_RETURN_NONE;
    if (b != Py_None && !fits(b, l.type, 1, l.n_out, 0)) Py_RETURN_NONE;
    PyObject *Y = result(1, &l, 2, l.n, l.n_out), *Z = result(l.keeps_z, &l, 2, l.n, l.n_out);
    PyObject *cache = Y && Z ? PyType_GenericAlloc((PyTypeObject *)given[5], 8) : NULL;
    if (cache) {
        PyObject *has_bias = b == Py_None ? Py_False : Py_True;
        PyObject *fields[] = {X, W, Y, Z, act, has_bias, Py_None, backend};
        for (int i = 0; i < 8; i++) PyTuple_SetItem(cache, i, Py_NewRef(fields[i]));
        PyThreadState *state = l.is_long ? PyEval_SaveThread() : NULL;
        int code = forward(&l, data(X), data(W), data(b), data(Y), data(Z));
        if (state) PyEval_RestoreThread(state);
        results = code ? Py_NewRef(Py_None) : PyTuple_Pack(2, Y, cache);
    }
    Py_XDECREF(Y), Py_XDECREF(Z), Py_XDECREF(cache);
    return results;
}

/* dense_backward(dY, cache, need_dX) -> (dX, dW, db) */
static PyObject *dense_backward(FAST)
{
    PyObject *dY = given[0], *results = NULL, *field[8];
    layer l;
    if (!PyTuple_Check(given[1]) || PyTuple_Size(given[1]) != 8 || !PyBool_Check(given[2]))
        Py_RETURN_NONE;
    for (int i = 0; i < 8; i++) field[i] = PyTuple_GetItem(given[1], i);
    PyObject *X = field[0], *W = field[1], *Y = field[2], *Z = field[3];
    if (field[6] != Py_None || !read_layer(&l, field[7], X, W, field[4]) ||
        !is_there(&l, l.from->backward) ||
        !fits(dY, l.type, 2, l.n, l.n_out) || !fits(Y, l.type, 2, l.n, l.n_out) ||
        (l.keeps_z && !fits(Z, l.type, 2, l.n, l.n_out)))
        Py_RETURN_NONE;
    PyObject *dX = result(given[2] == Py_True, &l, 2, l.n, l.n_in);
    PyObject *dW = result(1, &l, 2, l.n_in, l.n_out);
    PyObject *db = result(field[5] == Py_True, &l, 1, l.n_out, 0);
    if (dX && dW && db) {
        PyThreadState *state = l.is_long ? PyEval_SaveThread() : NULL;
        int code = backward(&l, data(dY), data(X), data(W), data(Y), l.keeps_z ? data(Z) : NULL,
                            data(dX), data(dW), data(db));
        if (state) PyEval_RestoreThread(state);
        results = code ? Py_NewRef(Py_None) : PyTuple_Pack(3, dX, dW, db);
    }
    Py_XDECREF(dX), Py_XDECREF(dW), Py_XDECREF(db);
    return results;
}

/* (value, gradient), or None after a failure; takes the gradient. */
static PyObject *value_with(PyObject *grad, int code, double value)
{
    PyObject *number = code ? NULL : PyFloat_FromDouble(value);
    PyObject *results = number ? PyTuple_Pack(2, number, grad) : Py_NewRef(Py_None);
    Py_XDECREF(number), Py_DECREF(grad);
    return results;
}

/* value_and_grad(addresses of plan and problem, checked params, threads) -> (value, gradient) */
static PyObject *value_and_grad(FAST)
{
    PyObject *grad = PyArray_NewLikeArray((PyArrayObject *)given[2], NPY_CORDER, NULL, 0);
    if (!grad) return NULL;
    void *plan = PyLong_AsVoidPtr(given[0]), *problem = PyLong_AsVoidPtr(given[1]);
    int64_t threads = PyLong_AsLongLong(given[3]);
    double value = 0;
    PyThreadState *state = PyEval_SaveThread();
    int code = AT(c_value_and_grad, fb_value_and_grad)(plan, problem, data(given[2]), threads,
                                                       &value, data(grad));
    PyEval_RestoreThread(state);
    return value_with(grad, code, value);
}

/* numba_value_and_grad(an array that holds a numba_problem, checked params) -> (value, gradient) */
static PyObject *numba_value_and_grad(FAST)
{
    const numba_problem *p = data(given[0]);
    PyArrayObject *params = (PyArrayObject *)given[1];
    PyObject *grad = PyArray_NewLikeArray(params, NPY_CORDER, NULL, 0);
    if (!grad) return NULL;
    double value = 0;
    int code = FB_NO_MEMORY;
    PyThreadState *state = PyEval_SaveThread();
    void *error, *workspace = malloc(p->workspace);
    if (workspace)
        code = ((numba_objective *)p->function)(
            &value, &error, p->plan, p->constants, data(given[1]), p->terms, p->numbers, p->X,
            p->targets, p->labels, p->weights, p->n, PyArray_DIM(params, 0), data(grad), 1,
            workspace);
    free(workspace);
    PyEval_RestoreThread(state);
    return value_with(grad, code, value);
}

/* is_ready(value, dtype) */
static PyObject *is_ready(FAST)
{
    return PyBool_FromLong(suits(given[0], (PyArray_Descr *)given[1]));
}

/* open(backends._context.get, activations by name, their type) */
static PyObject *open_(PyObject *Py_UNUSED(module), PyObject *args)
{
    if (!PyArg_ParseTuple(args, "OOO", &chosen_backend, &activations, &activation_type))
        return NULL;
    Py_INCREF(args); /* and with it all that it holds */
    Py_RETURN_NONE;
}

/* connect_c(the backend, addresses of fb_dense_forward, fb_dense_backward, fb_value_and_grad) */
static PyObject *connect_c(PyObject *Py_UNUSED(module), PyObject *args)
{
    unsigned long long forward, backward, value_and_grad;
    if (!PyArg_ParseTuple(args, "OKKK", &c_library.backend, &forward, &backward, &value_and_grad))
        return NULL;
    Py_INCREF(args);
    for (int i = 0; i < 2; i++)
        c_library.forward[i] = (uintptr_t)forward, c_library.backward[i] = (uintptr_t)backward;
    c_value_and_grad = (uintptr_t)value_and_grad;
    Py_RETURN_NONE;
}

/* connect_numba(the backend, is_double, is_backward, address of linked_backward or linked_forward
 * of backends/jit/kernels.py, an activation's kind, address of its function) */
static PyObject *connect_numba(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *backend;
    int is_double, is_backward, kind;
    unsigned long long address, function;
    if (!PyArg_ParseTuple(args, "OppKiK", &backend, &is_double, &is_backward, &address, &kind,
                          &function))
        return NULL;
    library *numba = &numba_library;
    if (!numba->backend) numba->backend = Py_NewRef(backend);
    (is_backward ? numba->backward : numba->forward)[is_double] = (uintptr_t)address;
    if (kind < FB_USER) numba->activation[is_double][kind] = (uintptr_t)function;
    Py_RETURN_NONE;
}

#define FUNCTION(name) {#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL, NULL}
static PyMethodDef functions[] = {
    FUNCTION(dense_forward), FUNCTION(dense_backward), FUNCTION(value_and_grad),
    FUNCTION(numba_value_and_grad), FUNCTION(is_ready),
    {"open", open_, METH_VARARGS, NULL}, {"connect_c", connect_c, METH_VARARGS, NULL},
    {"connect_numba", connect_numba, METH_VARARGS, NULL}, {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_door", NULL, -1, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__door(void)
{
    if (PyArray_ImportNumPyAPI() < 0) return NULL;
    float32 = PyArray_DescrFromType(NPY_FLOAT);
    float64 = PyArray_DescrFromType(NPY_DOUBLE);
    str_numbers = PyUnicode_InternFromString("numbers");
    return PyModule_Create(&definition);
}
