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
  // How many leading outputs backward takes; the first output is the differentiable one.
  int64_t saved_outputs;
};

const std::vector<OpSpec>& op_specs();
const OpSpec& op_spec(const std::string& name);

// Suffix of backward ops; their schema is
//   <op>_backward(Tensor grad, <saved outputs>, <arguments>, bool[n] mask) -> n x Tensor
// where a gradient outside the mask is an empty tensor.
inline constexpr const char* kBackwardSuffix = "_backward";

} // namespace dgm_fast
