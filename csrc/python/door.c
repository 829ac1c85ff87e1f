/* The way in from Python where calls are short: arguments, results and the call of the library's
 * function in one C function.
 *
 * A layer of 8 units takes the kernels 0.15 µs, and Python and cffi 3 µs to come to them. So
 * dense_forward and dense_backward here stand before those of fastbp/_kernels.py. They serve what
 * most calls are: plain arrays of one float type that fit each other and need no conversion, a
 * built-in activation, the C backend in use. All else goes to the Python function behind, which
 * converts, and knows what to say of errors. is_ready and value_and_grad do what their namesakes in
 * fastbp/_arrays.py and backends/native.py do.
 *
 * This is an extension module of its own, over the limited API and NumPy's, so that the library
 * needs neither; it is handed the library's functions. The GIL guards what is static here.
 */
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#include <Python.h>
#include <numpy/arrayobject.h>

#include "../fastbp.h"

/* The GIL is released for so many multiplications or more, about 1 µs. */
enum { LONG_WORK = 20000 };

/* The fields of a DenseCache. */
enum { C_X, C_W, C_Y, C_Z, C_ACTIVATION, C_HAS_BIAS, C_MASK, C_BACKEND, C_FIELDS };

/* What connect() and stand_before() were given. */
static __typeof__(fb_dense_forward) *kernel_forward;
static __typeof__(fb_dense_backward) *kernel_backward;
static __typeof__(fb_value_and_grad) *kernel_value_and_grad;
static PyObject *native, *backends, *chosen_backend, *activations, *python_functions[2];
static PyTypeObject *cache_type, *activation_type;

static PyArray_Descr *float32, *float64;
static PyObject *str_default, *str_linear, *str_numbers;
static newfunc new_tuple;

/* Whether kernels take it as it is: a plain array of that type. */
static int is_ready(PyObject *value, const PyArray_Descr *type)
{
    if (!PyArray_CheckExact(value)) return 0;
    const PyArrayObject *a = (const PyArrayObject *)value;
    return PyArray_DESCR(a) == type && PyArray_CHKFLAGS(a, NPY_ARRAY_CARRAY_RO);
}

static int has_dimensions(PyObject *value, const PyArray_Descr *type, int ndim)
{
    return is_ready(value, type) && PyArray_NDIM((PyArrayObject *)value) == ndim;
}

static npy_intp length(PyObject *array, int axis)
{
    return PyArray_DIM((PyArrayObject *)array, axis);
}

static void *data(PyObject *array)
{
    return array == Py_None ? NULL : PyArray_DATA((PyArrayObject *)array);
}

typedef struct {
    PyArray_Descr *type;
    npy_intp n, n_in, n_out;
    long kind;
    double constant;
    int keeps_z;
} layer;

static int fits_output(const layer *l, PyObject *value)
{
    return has_dimensions(value, l->type, 2) && length(value, 0) == l->n &&
           length(value, 1) == l->n_out;
}

/* What X, W and an Activation say; 0 if they do not fit, or the function is the user's own. */
static int read_layer(layer *l, PyObject *X, PyObject *W, PyObject *activation)
{
    l->type = has_dimensions(X, float32, 2) ? float32 : float64;
    if (!has_dimensions(X, l->type, 2) || !has_dimensions(W, l->type, 2)) return 0;
    l->n = length(X, 0), l->n_in = length(W, 0), l->n_out = length(W, 1);
    if (length(X, 1) != l->n_in || Py_TYPE(activation) != activation_type) return 0;
    PyObject *numbers = PyObject_GetAttr(activation, str_numbers);
    int built_in = numbers && PyTuple_CheckExact(numbers);
    if (built_in) {
        l->kind = PyLong_AsLong(PyTuple_GetItem(numbers, 0));
        l->constant = PyFloat_AsDouble(PyTuple_GetItem(numbers, 1));
        l->keeps_z = PyTuple_GetItem(numbers, 2) == Py_True;
    }
    Py_XDECREF(numbers);
    return built_in;
}

/* A new array of one or two dimensions, or None. */
static PyObject *result(int needed, const layer *l, int ndim, npy_intp rows, npy_intp columns)
{
    npy_intp shape[] = {rows, columns};
    if (!needed) return Py_NewRef(Py_None);
    PyArray_Descr *type = (PyArray_Descr *)Py_NewRef((PyObject *)l->type); /* which it takes */
    return PyArray_NewFromDescr(&PyArray_Type, type, ndim, shape, NULL, NULL, 0, NULL);
}

static PyThreadState *release(const layer *l)
{
    double size = (double)l->n * (double)l->n_in * (double)l->n_out;
    return size < LONG_WORK ? NULL : PyEval_SaveThread();
}

static PyObject *new_cache(PyObject *fields)
{
    PyObject *arguments = fields ? PyTuple_Pack(1, fields) : NULL;
    PyObject *cache = arguments ? new_tuple(cache_type, arguments, NULL) : NULL;
    Py_XDECREF(fields);
    Py_XDECREF(arguments);
    return cache;
}

static int native_is_in_use(void)
{
    PyObject *backend = PyObject_CallNoArgs(chosen_backend);
    if (!backend) return 0;
    Py_DECREF(backend); /* a module, which stays, or None */
    if (backend == Py_None) backend = PyDict_GetItemWithError(backends, str_default);
    return backend == native;
}

/* X, W, b, activation -> (Y, cache); null if the call is not a usual one, or memory is short. */
static PyObject *quick_forward(PyObject **arguments)
{
    PyObject *X = arguments[0], *W = arguments[1], *b = arguments[2], *act = arguments[3];
    layer l;
    if (!native) return NULL; /* connect() has not been called: another backend is in use */
    if (!b) b = Py_None;
    if (!act) act = str_linear;
    if (PyUnicode_CheckExact(act)) act = PyDict_GetItemWithError(activations, act);
    if (!act || !read_layer(&l, X, W, act) || !native_is_in_use()) return NULL;
    if (b != Py_None && !(has_dimensions(b, l.type, 1) && length(b, 0) == l.n_out)) return NULL;

    PyObject *Y = result(1, &l, 2, l.n, l.n_out), *Z = result(l.keeps_z, &l, 2, l.n, l.n_out);
    PyObject *cache = NULL, *results = NULL, *has_bias = b == Py_None ? Py_False : Py_True;
    if (Y && Z) {
        PyThreadState *state = release(&l);
        int code = kernel_forward(l.type == float64, l.n, l.n_in, l.n_out, l.kind, l.constant, 0,
                                  data(X), data(W), data(b), data(Y), data(Z));
        if (state) PyEval_RestoreThread(state);
        if (code != FB_NO_MEMORY)
            cache = new_cache(PyTuple_Pack(C_FIELDS, X, W, Y, Z, act, has_bias, Py_None, native));
    }
    if (cache) results = PyTuple_Pack(2, Y, cache);
    Py_XDECREF(Y), Py_XDECREF(Z), Py_XDECREF(cache);
    return results;
}

/* dY, cache, need_dX -> (dX, dW, db); null likewise. */
static PyObject *quick_backward(PyObject **arguments)
{
    PyObject *dY = arguments[0], *cache = arguments[1], *need_dX = arguments[2], *field[C_FIELDS];
    layer l;
    if (!need_dX) need_dX = Py_True;
    if (Py_TYPE(cache) != cache_type || PyTuple_Size(cache) != C_FIELDS) return NULL;
    if (!PyBool_Check(need_dX)) return NULL;
    for (int i = 0; i < C_FIELDS; i++) field[i] = PyTuple_GetItem(cache, i);
    PyObject *X = field[C_X], *W = field[C_W], *Y = field[C_Y], *Z = field[C_Z];
    if (field[C_MASK] != Py_None || field[C_BACKEND] != native) return NULL;
    if (!read_layer(&l, X, W, field[C_ACTIVATION])) return NULL;
    if (!fits_output(&l, dY) || !fits_output(&l, Y)) return NULL;
    if (l.keeps_z && !fits_output(&l, Z)) return NULL;

    PyObject *dX = result(need_dX == Py_True, &l, 2, l.n, l.n_in), *results = NULL;
    PyObject *dW = result(1, &l, 2, l.n_in, l.n_out);
    PyObject *db = result(field[C_HAS_BIAS] == Py_True, &l, 1, l.n_out, 0);
    if (dX && dW && db) {
        PyThreadState *state = release(&l);
        int code = kernel_backward(l.type == float64, l.n, l.n_in, l.n_out, l.kind, l.constant, 0,
                                   data(dY), data(X), data(W), data(Y), data(Z), data(dX), data(dW),
                                   data(db));
        if (state) PyEval_RestoreThread(state);
        if (code != FB_NO_MEMORY) results = PyTuple_Pack(3, dX, dW, db);
    }
    Py_XDECREF(dX), Py_XDECREF(dW), Py_XDECREF(db);
    return results;
}

/* The functions that Python calls. */

/* Puts arguments in the places of their names; 0 if that cannot be done. */
static int arrange(PyObject **places, const char *const *names, Py_ssize_t positional,
                   PyObject *const *given, Py_ssize_t n, PyObject *keywords)
{
    if (n > positional) return 0;
    for (Py_ssize_t i = 0; i < n; i++) places[i] = given[i];
    for (Py_ssize_t k = 0; keywords && k < PyTuple_Size(keywords); k++) {
        PyObject *name = PyTuple_GetItem(keywords, k);
        Py_ssize_t i = n; /* what came by position may not come again */
        while (names[i] && PyUnicode_CompareWithASCIIString(name, names[i]) != 0) i++;
        if (!names[i]) return 0;
        places[i] = given[n + k];
    }
    return places[0] && places[1];
}

static PyObject *long_way(PyObject *function, PyObject *const *given, Py_ssize_t n,
                          PyObject *keywords)
{
    PyErr_Clear();
    PyObject *arguments = PyTuple_New(n), *named = keywords ? PyDict_New() : NULL, *results = NULL;
    if (arguments && (named || !keywords)) {
        for (Py_ssize_t i = 0; i < n; i++) PyTuple_SetItem(arguments, i, Py_NewRef(given[i]));
        for (Py_ssize_t k = 0; named && k < PyTuple_Size(keywords); k++)
            PyDict_SetItem(named, PyTuple_GetItem(keywords, k), given[n + k]);
        results = PyObject_Call(function, arguments, named);
    }
    Py_XDECREF(arguments), Py_XDECREF(named);
    return results;
}

static PyObject *forward(PyObject *Py_UNUSED(module), PyObject *const *given, Py_ssize_t n,
                         PyObject *keywords)
{
    static const char *const names[] = {"X", "W", "b", "activation", NULL};
    PyObject *places[4] = {NULL}, *results = NULL;
    if (arrange(places, names, 4, given, n, keywords)) results = quick_forward(places);
    return results ? results : long_way(python_functions[0], given, n, keywords);
}

static PyObject *backward(PyObject *Py_UNUSED(module), PyObject *const *given, Py_ssize_t n,
                          PyObject *keywords)
{
    static const char *const names[] = {"dY", "cache", "need_dX", NULL};
    PyObject *places[3] = {NULL}, *results = NULL;
    if (arrange(places, names, 2, given, n, keywords)) results = quick_backward(places);
    return results ? results : long_way(python_functions[1], given, n, keywords);
}

static PyMethodDef fronts[] = {
    {"dense_forward", (PyCFunction)(void (*)(void))forward, METH_FASTCALL | METH_KEYWORDS, NULL},
    {"dense_backward", (PyCFunction)(void (*)(void))backward, METH_FASTCALL | METH_KEYWORDS, NULL},
};

/* stand_before(function, its module's name, 0 or 1 for which it is, docstring beginning with the
 * signature, DenseCache) -> the C function */
static PyObject *stand_before(PyObject *module, PyObject *args)
{
    PyObject *function, *home;
    int i;
    const char *text;
    if (!PyArg_ParseTuple(args, "OUisO", &function, &home, &i, &text, &cache_type)) return NULL;
    Py_INCREF(args); /* and with it all that it holds */
    python_functions[i] = function;
    fronts[i].ml_doc = text;
    return PyCFunction_NewEx(&fronts[i], module, home);
}

/* value_and_grad(addresses of a plan and a problem, checked params, threads) -> (value, gradient);
 * None if memory is short */
static PyObject *value_and_grad(PyObject *Py_UNUSED(module), PyObject *const *given, Py_ssize_t n)
{
    if (n != 4 || !PyArray_CheckExact(given[2])) Py_RETURN_NONE;
    PyObject *grad = PyArray_NewLikeArray((PyArrayObject *)given[2], NPY_CORDER, NULL, 0);
    if (!grad) return NULL;
    fb_plan *plan = PyLong_AsVoidPtr(given[0]);
    const fb_problem *problem = PyLong_AsVoidPtr(given[1]);
    int64_t threads = PyLong_AsLongLong(given[3]);
    double value = 0;
    PyThreadState *state = PyEval_SaveThread();
    int code = kernel_value_and_grad(plan, problem, data(given[2]), threads, &value, data(grad));
    PyEval_RestoreThread(state);
    PyObject *number = PyFloat_FromDouble(value), *results = NULL;
    if (code == FB_NO_MEMORY)
        results = Py_NewRef(Py_None);
    else if (number)
        results = PyTuple_Pack(2, number, grad);
    Py_XDECREF(number), Py_DECREF(grad);
    return results;
}

/* connect(the C backend, backends._context.get, vars(backends), activations by name, addresses of
 * fb_dense_forward, fb_dense_backward and fb_value_and_grad) */
static PyObject *connect(PyObject *Py_UNUSED(module), PyObject *args)
{
    unsigned long long addresses[3];
    if (!PyArg_ParseTuple(args, "OOOOKKK", &native, &chosen_backend, &backends, &activations,
                          &addresses[0], &addresses[1], &addresses[2]))
        return NULL;
    Py_INCREF(args);
    PyObject *linear = PyDict_GetItemWithError(activations, str_linear);
    if (linear) activation_type = Py_TYPE(linear);
    kernel_forward = (__typeof__(kernel_forward))(uintptr_t)addresses[0];
    kernel_backward = (__typeof__(kernel_backward))(uintptr_t)addresses[1];
    kernel_value_and_grad = (__typeof__(kernel_value_and_grad))(uintptr_t)addresses[2];
    Py_RETURN_NONE;
}

/* is_ready(value, dtype) */
static PyObject *python_is_ready(PyObject *Py_UNUSED(module), PyObject *const *given, Py_ssize_t n)
{
    return PyBool_FromLong(n == 2 && is_ready(given[0], (PyArray_Descr *)given[1]));
}

static PyMethodDef functions[] = {{"stand_before", stand_before, METH_VARARGS, NULL},
                                  {"connect", connect, METH_VARARGS, NULL},
                                  {"is_ready", (PyCFunction)(void (*)(void))python_is_ready,
                                   METH_FASTCALL, NULL},
                                  {"value_and_grad", (PyCFunction)(void (*)(void))value_and_grad,
                                   METH_FASTCALL, NULL},
                                  {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_door", NULL, -1, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__door(void)
{
    if (PyArray_ImportNumPyAPI() < 0) return NULL;
    float32 = PyArray_DescrFromType(NPY_FLOAT);
    float64 = PyArray_DescrFromType(NPY_DOUBLE);
    str_default = PyUnicode_InternFromString("_default");
    str_linear = PyUnicode_InternFromString("linear");
    str_numbers = PyUnicode_InternFromString("numbers");
    new_tuple = (newfunc)PyType_GetSlot(&PyTuple_Type, Py_tp_new);
    return PyModule_Create(&definition);
}
