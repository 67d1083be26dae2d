// The table of ops: schema, differentiable arguments, outputs kept for backward.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace dgm_fast {

struct OpSpec {
  const char* name;
  // Arguments and returns of the forward op, in schema language.
  const char* arguments;
  const char* returns;
  // Positions of the arguments that receive gradients. None (samplers): the op has no backward.
  std::vector<int64_t> differentiable;
  // How many leading outputs backward takes.
  int64_t saved_outputs;
  // How many leading outputs are differentiable.
  int64_t differentiable_outputs = 1;
  // The derivative is constant wherever there is one, and linear in the incoming gradient: backward has no second
  // derivative but in that gradient. It is told by the saved output, so that the first differentiable argument is
  // not kept; the output stands in for it.
  bool constant_derivative = false;
  // Two of the differentiable arguments that are only added to each other: where their shapes are the same, backward
  // is asked for the gradient of the first alone, which is that of the second too.
  std::vector<int64_t> terms = {};
};

const std::vector<OpSpec>& op_specs();
const OpSpec& op_spec(const std::string& name);

// Suffix of backward ops; their schema is
//   <op>_backward(Tensor grad, <saved outputs>, <arguments>, bool[n] mask) -> n x Tensor
// where a gradient outside the mask is an empty tensor. An op with several differentiable outputs has an optional
// gradient for each, grad_0, grad_1, ..., in place of grad; one that is absent is zero.
inline constexpr const char* kBackwardSuffix = "_backward";

} // namespace dgm_fast
