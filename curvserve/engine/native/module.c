/* Whoever lists the package's modules may import this one; the kernels are called by address. */

#include <Python.h>

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_kernels", "Called by address, see the package around it.", 0, NULL, NULL,
    NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernels(void)
{
    return PyModuleDef_Init(&module);
}
