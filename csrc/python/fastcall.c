/* Fast calls: one C function checks the arguments, makes the results and calls the C library.
 *
 * A layer of 8 units takes the library 0.1 µs, while Python and cffi take 3 µs to call it. So
 * fastbp/networks/single_layers.py first calls dense_forward and dense_backward of this module. They
 * serve the usual call: the C backend is in use, the activation is built in, and the arrays are plain
 * ones of one float type, contiguous and of shapes that fit. For any other call they return None;
 * then Python converts the arguments, or raises the error. value_and_grad does the same for
 * backends/native.py, is_ready for common/arrays.py. Only those files call the functions of this
 * module, which therefore do not count their arguments.
 *
 * native.py hands over the addresses of the library's functions when it has loaded the library. So
 * the library needs no Python, and this module, which needs Python's limited API and NumPy's, may
 * be missing. The GIL guards the static variables.
 */
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#include <Python.h>
#include <numpy/arrayobject.h>

#include "../fastbp.h"

/* A layer of at least so many multiplications, which take about 1 µs, releases the GIL. */
enum { LONG_WORK = 20000 };

/* From connect_kernels(). */
static PyObject *backend_of_context, *activations;
static PyTypeObject *activation_type;

/* From connect_library(): the module native.py, null before, and the library's functions. */
static PyObject *c_backend;
static __typeof__(fb_dense_forward) *c_forward;
static __typeof__(fb_dense_backward) *c_backward;
static __typeof__(fb_value_and_grad) *c_value_and_grad;

static PyObject *str_numbers;
static PyArray_Descr *float32, *float64;

/* Whether the value is an array of this type that the library can read as it is. */
static int suits(PyObject *value, const PyArray_Descr *type)
{
    const PyArrayObject *a = (const PyArrayObject *)value;
    return PyArray_CheckExact(value) && PyArray_DESCR(a) == type &&
           PyArray_CHKFLAGS(a, NPY_ARRAY_CARRAY_RO);
}

/* Whether in addition its shape is (n,) for ndim 1, (n, width) for ndim 2. */
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
    int is_double, keeps_z, is_long;
} layer;

/* Read the layer from X, W and an Activation. Returns 0 if this module does not serve it: another
 * backend, a user's activation, or arrays that do not fit. */
static int read_layer(layer *l, PyObject *backend, PyObject *X, PyObject *W, PyObject *activation)
{
    if (!backend || backend != c_backend) return 0;
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
    Py_XDECREF(numbers); /* the activation holds another reference */
    if (!numbers || numbers == Py_None) return 0;
    l->kind = PyLong_AsLong(PyTuple_GetItem(numbers, 0));
    l->constant = PyFloat_AsDouble(PyTuple_GetItem(numbers, 1));
    l->keeps_z = PyTuple_GetItem(numbers, 2) == Py_True;
    return 1;
}

/* A new array (n,) or (n, width), or None if it is not needed. */
static PyObject *result(int needed, const layer *l, int ndim, npy_intp n, npy_intp width)
{
    npy_intp shape[] = {n, width};
    return needed ? PyArray_SimpleNew(ndim, shape, l->type->type_num) : Py_NewRef(Py_None);
}

/* The module of the backend in use, a borrowed reference; null if connect_kernels() was not
 * called. */
static PyObject *backend_in_use(PyObject *default_backend)
{
    PyObject *backend = PyObject_CallNoArgs(backend_of_context);
    Py_XDECREF(backend); /* a module, which stays, or None */
    return backend == Py_None ? default_backend : backend;
}

#define FAST PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t Py_UNUSED(n_args)

/* dense_forward(X, W, b, activation, backends._default, DenseCache) -> (Y, cache) or None */
static PyObject *dense_forward(FAST)
{
    PyObject *X = args[0], *W = args[1], *b = args[2], *act = args[3], *results = NULL;
    layer l;
    PyObject *backend = backend_in_use(args[4]);
    if (PyUnicode_CheckExact(act)) act = PyDict_GetItemWithError(activations, act);
    if (!act || !read_layer(&l, backend, X, W, act)) Py_RETURN_NONE;
    if (b != Py_None && !fits(b, l.type, 1, l.n_out, 0)) Py_RETURN_NONE;
    PyObject *Y = result(1, &l, 2, l.n, l.n_out), *Z = result(l.keeps_z, &l, 2, l.n, l.n_out);
    PyObject *cache = Y && Z ? PyType_GenericAlloc((PyTypeObject *)args[5], 8) : NULL;
    if (cache) {
        PyObject *has_bias = b == Py_None ? Py_False : Py_True;
        PyObject *fields[] = {X, W, Y, Z, act, has_bias, Py_None, backend};
        for (int i = 0; i < 8; i++) PyTuple_SetItem(cache, i, Py_NewRef(fields[i]));
        PyThreadState *state = l.is_long ? PyEval_SaveThread() : NULL;
        int code = c_forward(l.is_double, l.n, l.n_in, l.n_out, l.kind, l.constant, 0, data(X),
                             data(W), data(b), data(Y), data(Z));
        if (state) PyEval_RestoreThread(state);
        results = code ? Py_NewRef(Py_None) : PyTuple_Pack(2, Y, cache);
    }
    Py_XDECREF(Y), Py_XDECREF(Z), Py_XDECREF(cache);
    return results;
}

/* dense_backward(dY, cache, need_dX) -> (dX, dW, db) or None */
static PyObject *dense_backward(FAST)
{
    PyObject *dY = args[0], *results = NULL, *field[8];
    layer l;
    if (!PyTuple_Check(args[1]) || PyTuple_Size(args[1]) != 8 || !PyBool_Check(args[2]))
        Py_RETURN_NONE;
    for (int i = 0; i < 8; i++) field[i] = PyTuple_GetItem(args[1], i);
    PyObject *X = field[0], *W = field[1], *Y = field[2], *Z = field[3];
    if (field[6] != Py_None || !read_layer(&l, field[7], X, W, field[4]) ||
        !fits(dY, l.type, 2, l.n, l.n_out) || !fits(Y, l.type, 2, l.n, l.n_out) ||
        (l.keeps_z && !fits(Z, l.type, 2, l.n, l.n_out)))
        Py_RETURN_NONE;
    PyObject *dX = result(args[2] == Py_True, &l, 2, l.n, l.n_in);
    PyObject *dW = result(1, &l, 2, l.n_in, l.n_out);
    PyObject *db = result(field[5] == Py_True, &l, 1, l.n_out, 0);
    if (dX && dW && db) {
        PyThreadState *state = l.is_long ? PyEval_SaveThread() : NULL;
        int code = c_backward(l.is_double, l.n, l.n_in, l.n_out, l.kind, l.constant, 0, data(dY),
                              data(X), data(W), data(Y), l.keeps_z ? data(Z) : NULL, data(dX),
                              data(dW), data(db));
        if (state) PyEval_RestoreThread(state);
        results = code ? Py_NewRef(Py_None) : PyTuple_Pack(3, dX, dW, db);
    }
    Py_XDECREF(dX), Py_XDECREF(dW), Py_XDECREF(db);
    return results;
}

/* value_and_grad(address of the fb_plan, of the fb_problem, checked params (n_params,), threads)
 * -> (value, gradient (n_params,)), or None without memory */
static PyObject *value_and_grad(FAST)
{
    PyObject *grad = PyArray_NewLikeArray((PyArrayObject *)args[2], NPY_CORDER, NULL, 0);
    if (!grad) return NULL;
    void *plan = PyLong_AsVoidPtr(args[0]), *problem = PyLong_AsVoidPtr(args[1]);
    int64_t threads = PyLong_AsLongLong(args[3]);
    double value = 0;
    PyThreadState *state = PyEval_SaveThread();
    int code = c_value_and_grad(plan, problem, data(args[2]), threads, &value, data(grad));
    PyEval_RestoreThread(state);
    PyObject *number = code ? NULL : PyFloat_FromDouble(value);
    PyObject *results = number ? PyTuple_Pack(2, number, grad) : Py_NewRef(Py_None);
    Py_XDECREF(number), Py_DECREF(grad);
    return results;
}

/* is_ready(value, dtype) -> bool: whether the value is an array that needs no conversion */
static PyObject *is_ready(FAST)
{
    return PyBool_FromLong(suits(args[0], (PyArray_Descr *)args[1]));
}

/* connect_kernels(backends._context.get, activations by name, Activation) */
static PyObject *connect_kernels(PyObject *Py_UNUSED(module), PyObject *args)
{
    if (!PyArg_ParseTuple(args, "OOO", &backend_of_context, &activations, &activation_type))
        return NULL;
    Py_INCREF(args); /* which holds the three objects */
    Py_RETURN_NONE;
}

/* connect_library(native.py, addresses of fb_dense_forward, fb_dense_backward,
 * fb_value_and_grad) */
static PyObject *connect_library(PyObject *Py_UNUSED(module), PyObject *args)
{
    unsigned long long forward, backward, objective;
    if (!PyArg_ParseTuple(args, "OKKK", &c_backend, &forward, &backward, &objective)) return NULL;
    Py_INCREF(args);
    c_forward = (__typeof__(c_forward))(uintptr_t)forward;
    c_backward = (__typeof__(c_backward))(uintptr_t)backward;
    c_value_and_grad = (__typeof__(c_value_and_grad))(uintptr_t)objective;
    Py_RETURN_NONE;
}

#define FUNCTION(name) {#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL, NULL}
static PyMethodDef functions[] = {
    FUNCTION(dense_forward), FUNCTION(dense_backward), FUNCTION(value_and_grad), FUNCTION(is_ready),
    {"connect_kernels", connect_kernels, METH_VARARGS, NULL},
    {"connect_library", connect_library, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_fastcall", NULL, -1, functions, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__fastcall(void)
{
    if (PyArray_ImportNumPyAPI() < 0) return NULL;
    float32 = PyArray_DescrFromType(NPY_FLOAT);
    float64 = PyArray_DescrFromType(NPY_DOUBLE);
    str_numbers = PyUnicode_InternFromString("numbers");
    return PyModule_Create(&definition);
}
