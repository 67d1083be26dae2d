// A kernel library as a Python module: it holds one capsule, the table of its instruction-set level.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "table.h"

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
  dgm_fast::fill_likelihood(table);
  dgm_fast::fill_latent(table);
  dgm_fast::fill_bounds(table);
  dgm_fast::fill_logistic_mixture(table);
  dgm_fast::fill_gaussian_mixture(table);
  dgm_fast::fill_product(table);
  dgm_fast::fill_nade(table);
  dgm_fast::fill_nade_outputs(table);
  dgm_fast::fill_nade_likelihood(table);
  dgm_fast::fill_nade_sample(table);
  PyObject* module = PyModule_Create(&definition);
  if (module == nullptr) {
    return nullptr;
  }
  PyObject* capsule = PyCapsule_New(&table, nullptr, nullptr);
  if (capsule == nullptr || PyModule_AddObject(module, "table", capsule) < 0) {
    Py_XDECREF(capsule);
    Py_DECREF(module);
    return nullptr;
  }
  return module;
}
