// A kernel library as a Python module: it holds the table of its instruction-set level and that table's size.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "kernel_table.h"

#define DGM_FAST_JOIN_(a, b) a##b
#define DGM_FAST_JOIN(a, b) DGM_FAST_JOIN_(a, b)
#define DGM_FAST_QUOTE_(a) #a
#define DGM_FAST_QUOTE(a) DGM_FAST_QUOTE_(a)

namespace {

dgm_fast::KernelTable table;

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    DGM_FAST_QUOTE(DGM_FAST_MODULE),
    "CPU kernels of one instruction-set level.",
    -1,
    nullptr,
    nullptr,
    nullptr,
    nullptr,
    nullptr};

} // namespace

PyMODINIT_FUNC DGM_FAST_JOIN(PyInit_, DGM_FAST_MODULE)() {
  std::apply([](auto&... family) { (fill(family), ...); }, table);
  PyObject* module = PyModule_Create(&definition);
  if (module == nullptr) {
    return nullptr;
  }
  PyObject* capsule = PyCapsule_New(&table, nullptr, nullptr);
  if (capsule == nullptr || PyModule_AddObject(module, "table", capsule) < 0 ||
      PyModule_AddIntConstant(module, "table_size", sizeof(table)) < 0) {
    Py_XDECREF(capsule);
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
