// The way back to Python's reference formulas, for derivatives of second and higher order.
#pragma once

#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

namespace dgm_fast {

// Gradients of the op's reference formula at `arguments`, contracted with `grads` of its differentiable outputs
// (None: zero) and connected to the graph of both. Undefined where the mask is false.
std::vector<at::Tensor> reference_vjp(
    const std::string& op,
    const std::vector<c10::IValue>& grads,
    const std::vector<c10::IValue>& arguments,
    const c10::IValue& mask);

} // namespace dgm_fast
