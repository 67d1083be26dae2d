// The Python module dgm_fast._C.

#include "kernels.h"
#include "layout.h"
#include "output_pool.h"
#include "progress_bridge.h"
#include "reference_bridge.h"
#include "registry.h"

#include <torch/csrc/jit/python/pybind_utils.h>
#include <torch/csrc/utils/pybind.h>

namespace py = pybind11;

namespace dgm_fast {
namespace {

// Leaked on purpose: a Python object must not be released after the interpreter has gone.
py::object* reference_vjp_function = nullptr;
py::object* progress_function = nullptr;

// What stopped a call of this thread.
thread_local std::exception_ptr interruption;

std::string active_level;

} // namespace

std::vector<at::Tensor> reference_vjp(
    const std::string& op,
    const std::vector<c10::IValue>& grads,
    const std::vector<c10::IValue>& arguments,
    const c10::IValue& mask) {
  py::gil_scoped_acquire gil;
  TORCH_CHECK(reference_vjp_function != nullptr, "dgm_fast: the Python package is not loaded");
  const auto to_list = [](const std::vector<c10::IValue>& values) {
    py::list list;
    for (const auto& value : values) {
      list.append(torch::jit::toPyObject(value));
    }
    return list;
  };
  py::list result = (*reference_vjp_function)(
      op, to_list(grads), to_list(arguments), torch::jit::toPyObject(mask));
  std::vector<at::Tensor> gradients;
  for (const auto& item : result) {
    gradients.push_back(item.is_none() ? at::Tensor() : item.cast<at::Tensor>());
  }
  return gradients;
}

bool report_progress(int64_t done) {
  py::gil_scoped_acquire gil;
  try {
    if (PyErr_CheckSignals() != 0) {
      throw py::error_already_set();
    }
    if (progress_function != nullptr) {
      (*progress_function)(done);
    }
    return true;
  } catch (const py::error_already_set&) {
    interruption = std::current_exception();
    return false;
  }
}

void throw_interruption() {
  if (interruption) {
    std::rethrow_exception(std::exchange(interruption, nullptr));
  }
}

} // namespace dgm_fast

PYBIND11_MODULE(_C, m) {
  using namespace dgm_fast;
  m.doc() = "Schemas, autograd and CPU dispatch of the dgm_fast ops.";
  m.def("op_specs", [] {
    py::list result;
    for (const auto& spec : op_specs()) {
      result.append(py::make_tuple(
          spec.name, spec.differentiable, spec.saved_outputs, spec.differentiable_outputs));
    }
    return result;
  });
  m.def("set_reference_vjp", [](py::object function) {
    delete reference_vjp_function;
    reference_vjp_function = new py::object(std::move(function));
  });
  m.def("set_progress", [](py::object function) {
    delete progress_function;
    progress_function = new py::object(std::move(function));
  });
  m.def("use_kernels", [](const py::capsule& table, size_t size, std::string level) {
    use_kernel_table(table.get_pointer<const void>(), size);
    active_level = std::move(level);
  });
  m.def("active_isa", [] { return active_level; });
  // For the test that fills new memory.
  m.def("empty_output", [](const std::vector<int64_t>& sizes) {
    return empty_output(sizes, at::kFloat);
  });
  m.def("empty_output_pool", &empty_output_pool);
  m.def("output_pool_idle_bytes", &output_pool_idle_bytes);
  m.def("output_pool_limit", &output_pool_limit);
}
