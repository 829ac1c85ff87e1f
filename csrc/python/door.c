/* The way in from Python where calls are short: checks, results and the library's work in one call.
 *
 * A layer of 8 units takes the kernels 0.1 µs, and Python and cffi 3 µs to come to them. So
 * fastbp/_kernels.py asks dense_forward and dense_backward here first, which serve what most calls
 * are: plain arrays of one float type that fit each other and need no conversion, a built-in
 * activation, the C backend in use. Otherwise they return None, and Python converts, or says what
 * is wrong. is_ready and value_and_grad do what their namesakes in fastbp/_arrays.py and
 * backends/native.py do. Those three files alone call these functions, and count the arguments.
 *
 * The module uses the limited API and NumPy's, so that the library, which it is handed, needs
 * neither. The GIL guards what is static here.
 */
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#include <Python.h>
#include <numpy/arrayobject.h>

#include "../fastbp.h"

/* The GIL is released for so many multiplications or more, about 1 µs. */
enum { LONG_WORK = 20000 };

/* What connect() was given; the addresses are of the library's functions. */
static PyObject *native, *chosen_backend, *activations;
static PyTypeObject *activation_type;
static unsigned long long addresses[3];
#define LIBRARY(i, function) ((__typeof__(function) *)(uintptr_t)addresses[i])

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
    PyArray_Descr *type;
    npy_intp n, n_in, n_out;
    long kind;
    double constant;
    int keeps_z, is_long;
} layer;

/* What X, W and an Activation say; 0 if they do not fit, or the function is the user's own. */
static int read_layer(layer *l, PyObject *X, PyObject *W, PyObject *activation)
{
    const PyArrayObject *x = (PyArrayObject *)X, *w = (PyArrayObject *)W;
    l->type = suits(X, float32) ? float32 : float64;
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

/* A new array of one or two dimensions, or None. */
static PyObject *result(int needed, const layer *l, int ndim, npy_intp n, npy_intp width)
{
    npy_intp shape[] = {n, width};
    return needed ? PyArray_SimpleNew(ndim, shape, l->type->type_num) : Py_NewRef(Py_None);
}

static int native_is_in_use(PyObject *otherwise)
{
    PyObject *backend = native ? PyObject_CallNoArgs(chosen_backend) : NULL;
    if (!backend) return 0; /* also before connect(): then another is in use */
    Py_DECREF(backend);     /* a module, which stays, or None */
    return native == (backend == Py_None ? otherwise : backend);
}

#define FAST PyObject *Py_UNUSED(module), PyObject *const *given, Py_ssize_t Py_UNUSED(n)
/* dense_forward(X, W, b, activation, backends._default, DenseCache) -> (Y, cache) */
static PyObject *dense_forward(FAST)
{
    PyObject *X = given[0], *W = given[1], *b = given[2], *act = given[3], *results = NULL;
    layer l;
    if (!native_is_in_use(given[4])) Py_RETURN_NONE;
    if (PyUnicode_CheckExact(act)) act = PyDict_GetItemWithError(activations, act);
    if (!act || !read_layer(&l, X, W, act)) Py_RETURN_NONE;
    if (b != Py_None && !fits(b, l.type, 1, l.n_out, 0)) Py_RETURN_NONE;
    PyObject *Y = result(1, &l, 2, l.n, l.n_out), *Z = result(l.keeps_z, &l, 2, l.n, l.n_out);
    PyObject *cache = Y && Z ? PyType_GenericAlloc((PyTypeObject *)given[5], 8) : NULL;
    if (cache) {
        PyObject *has_bias = b == Py_None ? Py_False : Py_True;
        PyObject *fields[] = {X, W, Y, Z, act, has_bias, Py_None, native};
        for (int i = 0; i < 8; i++) PyTuple_SetItem(cache, i, Py_NewRef(fields[i]));
        PyThreadState *state = l.is_long ? PyEval_SaveThread() : NULL;
        int code = LIBRARY(0, fb_dense_forward)(l.type == float64, l.n, l.n_in, l.n_out, l.kind,
                                                l.constant, 0, data(X), data(W), data(b), data(Y),
                                                data(Z));
        if (state) PyEval_RestoreThread(state);
        results = code == FB_NO_MEMORY ? Py_NewRef(Py_None) : PyTuple_Pack(2, Y, cache);
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
    if (field[6] != Py_None || field[7] != native || !read_layer(&l, X, W, field[4]) ||
        !fits(dY, l.type, 2, l.n, l.n_out) || !fits(Y, l.type, 2, l.n, l.n_out) ||
        (l.keeps_z && !fits(Z, l.type, 2, l.n, l.n_out)))
        Py_RETURN_NONE;
    PyObject *dX = result(given[2] == Py_True, &l, 2, l.n, l.n_in);
    PyObject *dW = result(1, &l, 2, l.n_in, l.n_out);
    PyObject *db = result(field[5] == Py_True, &l, 1, l.n_out, 0);
    if (dX && dW && db) {
        PyThreadState *state = l.is_long ? PyEval_SaveThread() : NULL;
        int code = LIBRARY(1, fb_dense_backward)(l.type == float64, l.n, l.n_in, l.n_out, l.kind,
                                                 l.constant, 0, data(dY), data(X), data(W), data(Y),
                                                 data(Z), data(dX), data(dW), data(db));
        if (state) PyEval_RestoreThread(state);
        results = code == FB_NO_MEMORY ? Py_NewRef(Py_None) : PyTuple_Pack(3, dX, dW, db);
    }
    Py_XDECREF(dX), Py_XDECREF(dW), Py_XDECREF(db);
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
    int code = LIBRARY(2, fb_value_and_grad)(plan, problem, data(given[2]), threads, &value,
                                             data(grad));
    PyEval_RestoreThread(state);
    PyObject *number = code == FB_NO_MEMORY ? NULL : PyFloat_FromDouble(value);
    PyObject *results = number ? PyTuple_Pack(2, number, grad) : Py_NewRef(Py_None);
    Py_XDECREF(number), Py_DECREF(grad);
    return results;
}

/* is_ready(value, dtype) */
static PyObject *is_ready(FAST)
{
    return PyBool_FromLong(suits(given[0], (PyArray_Descr *)given[1]));
}

/* connect(the C backend, backends._context.get, activations by name, their type, addresses of
 * fb_dense_forward, fb_dense_backward and fb_value_and_grad) */
static PyObject *connect(PyObject *Py_UNUSED(module), PyObject *args)
{
    if (!PyArg_ParseTuple(args, "OOOOKKK", &native, &chosen_backend, &activations,
                          &activation_type, &addresses[0], &addresses[1], &addresses[2]))
        return NULL;
    Py_INCREF(args); /* and with it all that it holds */
    Py_RETURN_NONE;
}

#define FUNCTION(name) {#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL, NULL}
static PyMethodDef functions[] = {
    FUNCTION(dense_forward), FUNCTION(dense_backward), FUNCTION(value_and_grad), FUNCTION(is_ready),
    {"connect", connect, METH_VARARGS, NULL}, {NULL, NULL, 0, NULL}};

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
