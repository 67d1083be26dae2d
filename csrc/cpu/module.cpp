// A kernel library as a Python module: it holds the table of its instruction-set level and that table's size. Where the
// processor has matrix units that the library uses, it holds a second table with those kernels in place.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "amx.h"
#include "kernel_table.h"

#define DGM_FAST_JOIN_(a, b) a##b
#define DGM_FAST_JOIN(a, b) DGM_FAST_JOIN_(a, b)
#define DGM_FAST_QUOTE_(a) #a
#define DGM_FAST_QUOTE(a) DGM_FAST_QUOTE_(a)

namespace {

dgm_fast::KernelTable table, amx_table;

// Kernels on the matrix units, of the families that have some.
template <class Family>
void use_amx(Family& family) {
  if constexpr (requires { fill_amx(family); }) {
    fill_amx(family);
  }
}

bool add_table(PyObject* module, const char* name, dgm_fast::KernelTable& added) {
  PyObject* capsule = PyCapsule_New(&added, nullptr, nullptr);
  if (capsule == nullptr || PyModule_AddObject(module, name, capsule) < 0) {
    Py_XDECREF(capsule);
    return false;
  }
  return true;
}

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
  bool complete = add_table(module, "table", table) &&
      PyModule_AddIntConstant(module, "table_size", sizeof(table)) >= 0;
  if (complete && dgm_fast::amx_available()) {
    amx_table = table;
    std::apply([](auto&... family) { (use_amx(family), ...); }, amx_table);
    complete = add_table(module, "amx_table", amx_table);
  }
  if (!complete) {
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
