// CPU function of the inversion of masked autoregressive networks: layout and allocation around the kernel.

#include "cpu/autoregressive_table.h"
#include "kernels.h"
#include "layout.h"
#include "spline_shape.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

namespace dgm_fast {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// ready[i]: how many of the units have a degree of at most i.
std::vector<int64_t> ready_units(const Tensor& degrees, int64_t size) {
  const Tensor sorted = degrees.contiguous();
  const auto* degree = sorted.const_data_ptr<int64_t>();
  const int64_t units = sorted.numel();
  TORCH_CHECK_VALUE(
      std::is_sorted(degree, degree + units), "degrees of a layer's units must not decrease");
  std::vector<int64_t> ready(size);
  int64_t count = 0;
  for (int64_t i = 0; i < size; ++i) {
    while (count < units && degree[count] <= i) {
      ++count;
    }
    ready[i] = count;
  }
  return ready;
}

// The network's layers in the sum's dtype, and what keeps their memory.
class Network {
 public:
  Network(
      at::TensorList weights,
      at::TensorList biases,
      at::TensorList degrees,
      at::TensorList gates,
      int64_t size,
      at::ScalarType sum)
      : features_(weights[0].size(1) / size) {
    for (size_t l = 0; l < weights.size(); ++l) {
      const Tensor& weight = weights[l];
      held_.push_back(weight.to(sum).contiguous());
      held_.push_back(biases[l].to(sum).contiguous());
      MaskedLayer layer{};
      layer.units = weight.size(0);
      layer.inputs = weight.size(1);
      layer.weight = held_[2 * l].const_data_ptr();
      layer.bias = held_[2 * l + 1].const_data_ptr();
      layer.bias_stride = biases[l].dim() == 2 ? layer.units : 0;
      layers_.push_back(layer);
    }
    for (size_t l = 0; l < degrees.size(); ++l) {
      ready_.push_back(ready_units(degrees[l], size));
    }
    for (size_t l = 0; l < degrees.size(); ++l) {
      layers_[l].ready = ready_[l].data();
    }
    for (size_t l = 0; l < gates.size(); ++l) {
      held_.push_back(gates[l].to(sum).contiguous());
      layers_[l].gates = held_.back().const_data_ptr();
    }
  }

  const std::vector<MaskedLayer>& layers() const {
    return layers_;
  }

  int64_t features() const {
    return features_;
  }

 private:
  int64_t features_;
  std::vector<Tensor> held_;
  std::vector<std::vector<int64_t>> ready_;
  std::vector<MaskedLayer> layers_;
};

// Given values in the sum's dtype; entries that are not given may hold anything.
Tensor given_values(
    const Tensor& values, const Tensor& given, ElementMap map, int64_t classes, at::ScalarType sum) {
  const Tensor kept =
      at::where(given, values.to(sum), at::zeros({}, values.options().dtype(sum))).contiguous();
  if (map == ElementMap::Bernoulli) {
    const bool valid = kept.ge(0).logical_and_(kept.le(1)).all().item<bool>();
    TORCH_CHECK_VALUE(valid, kUnitIntervalError);
  } else if (map == ElementMap::Categorical) {
    const bool valid = class_indices(kept, classes).ge(0).all().item<bool>();
    TORCH_CHECK_VALUE(valid, kClassError, classes - 1);
  }
  return kept;
}

// The codes of a map of `outputs` parameters, as in ops/autoregressive.py.
ElementMapOptions map_options(
    int64_t transform,
    at::IntArrayRef modes,
    at::ArrayRef<double> options,
    bool inverse,
    int64_t outputs) {
  ElementMapOptions map{};
  map.map = static_cast<ElementMap>(transform);
  map.inverse = inverse;
  switch (map.map) {
    case ElementMap::Affine:
      map.scale = static_cast<ScaleMap>(modes[0]);
      map.clamp = options[0];
      break;
    case ElementMap::GaussianMixture:
    case ElementMap::LogisticMixture:
      map.with_logits = modes[0] == 0;
      break;
    case ElementMap::Spline: {
      // K - 1, K or K + 1 slopes, by the ends.
      const int64_t bins = (outputs + 1 - modes[0]) / 3;
      map.spline = make_spline_shape(
          bins,
          {modes[0],
           modes[1] != 0,
           options[0],
           options[1],
           options[2],
           options[3],
           options[4],
           options[5],
           options[6],
           modes[2]});
      map.logit_scale = options[7];
      break;
    }
    default:
      break;
  }
  return map;
}

std::tuple<Tensor, Tensor> autoregressive_inverse(
    const Tensor& z,
    at::TensorList weights,
    at::TensorList biases,
    at::TensorList degrees,
    at::TensorList gates,
    const OptionalTensor& order,
    int64_t activation,
    double activation_parameter,
    int64_t transform,
    at::IntArrayRef modes,
    at::ArrayRef<double> options,
    bool inverse,
    const OptionalTensor& values,
    const OptionalTensor& given) {
  const bool wide = z.scalar_type() == at::kDouble || weights[0].scalar_type() == at::kDouble;
  const auto sum = wide ? at::kDouble : at::kFloat;
  const int64_t rows = z.size(0);
  const int64_t size = z.size(1);
  const Network network(weights, biases, degrees, gates, size, sum);
  AutoregressiveInverseArgs args{};
  args.rows = rows;
  args.size = size;
  args.features = network.features();
  args.outputs = weights.back().size(0) / size;
  args.noises = z.dim() == 3 ? z.size(2) : 1;
  args.dtype = dtype_code(sum);
  args.hidden_layers = static_cast<int64_t>(degrees.size());
  args.layers = network.layers().data();
  args.activation = static_cast<Activation>(activation);
  args.activation_parameter = activation_parameter;
  args.map = map_options(transform, modes, options, inverse, args.outputs);
  Tensor dimensions;
  if (order.has_value()) {
    dimensions = order->contiguous();
    args.order = dimensions.const_data_ptr<int64_t>();
  }
  Tensor kept, mask;
  if (given.has_value()) {
    mask = given->contiguous();
    kept = given_values(*values, mask, args.map.map, args.features, sum);
    args.given = mask.const_data_ptr<bool>();
    args.values = kept.const_data_ptr();
  }
  const Tensor noise = z.to(sum).contiguous();
  args.z = noise.const_data_ptr();
  Tensor x = empty_output({rows, size}, sum);
  const bool with_log_abs_det = args.map.bijective();
  Tensor log_abs_det = at::empty({with_log_abs_det ? rows : 0}, z.options().dtype(sum));
  args.x = x.mutable_data_ptr();
  args.log_abs_det = with_log_abs_det ? log_abs_det.mutable_data_ptr() : nullptr;
  kernels<AutoregressiveKernels>().inverse(args);
  return {args.map.map == ElementMap::Categorical ? x.to(at::kLong) : x, log_abs_det};
}

} // namespace
} // namespace dgm_fast

TORCH_LIBRARY_IMPL(dgm_fast, CPU, m) {
  m.impl("autoregressive_inverse", &dgm_fast::autoregressive_inverse);
}
