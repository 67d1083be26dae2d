// CPU function of cached sampling: from the op's arguments to the description that the kernel takes.

#include "cpu/pixel_sampling_table.h"
#include "kernels.h"
#include "layout.h"
#include "progress_bridge.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <deque>

namespace dgm_fast {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Reads a list of integers one by one.
class Reader {
 public:
  explicit Reader(at::IntArrayRef list) : list_(list) {}

  int64_t next() {
    TORCH_CHECK_VALUE(at_ < list_.size(), "layers ends within a layer");
    return list_[at_++];
  }
  bool done() const {
    return at_ == list_.size();
  }
  const int64_t* take(int64_t count) {
    const auto first = at_;
    at_ += count;
    TORCH_CHECK_VALUE(count >= 0 && at_ <= list_.size(), "layers ends within a layer");
    return list_.data() + first;
  }

 private:
  at::IntArrayRef list_;
  size_t at_ = 0;
};

// Layers and buffers in the sum's dtype, and what keeps their memory.
struct Description {
  std::vector<PixelBuffer> buffers;
  std::vector<PixelLayer> layers;
  std::vector<Tensor> held;
  std::deque<std::vector<PixelTap>> taps;

  Description(
      at::TensorList weights,
      at::TensorList biases,
      at::IntArrayRef layer_list,
      at::IntArrayRef channels,
      at::IntArrayRef strides,
      at::IntArrayRef groups,
      at::ScalarType sum) {
    size_t first = 0;
    for (size_t b = 0; b < channels.size(); ++b) {
      buffers.push_back({channels[b], strides[b], groups.empty() ? nullptr : &groups[first]});
      first += channels[b];
    }
    TORCH_CHECK_VALUE(
        groups.empty() || groups.size() == first, "groups must have an entry for every channel");
    size_t next_weight = 0, next_bias = 0;
    Reader reader(layer_list);
    const auto buffer = [&] {
      const int64_t b = reader.next();
      TORCH_CHECK_VALUE(b >= 0 && b < static_cast<int64_t>(channels.size()), "no buffer ", b);
      return b;
    };
    while (!reader.done()) {
      PixelLayer layer{};
      layer.kind = static_cast<PixelKind>(reader.next());
      layer.moment = static_cast<PixelMoment>(reader.next());
      layer.output = buffer();
      const bool with_weight = reader.next() != 0;
      const bool with_bias = reader.next() != 0;
      layer.num_inputs = reader.next();
      layer.inputs = reader.take(layer.num_inputs);
      layer.num_taps = reader.next();
      auto& own = taps.emplace_back();
      for (int64_t t = 0; t < layer.num_taps; ++t) {
        const int64_t row = reader.next();
        own.push_back({row, reader.next()});
      }
      layer.taps = own.data();
      if (with_weight) {
        layer.weight = hold(weights.at(next_weight++).to(sum).contiguous());
      }
      if (with_bias) {
        const Tensor& bias = biases.at(next_bias++);
        layer.bias_stride = bias.dim() == 2 ? bias.size(1) : 0;
        layer.bias = hold(bias.to(sum).contiguous());
      }
      layers.push_back(layer);
    }
  }

 private:
  const void* hold(Tensor t) {
    held.push_back(std::move(t));
    return held.back().const_data_ptr();
  }
};

// Given values in the sum's dtype; entries that are not given may hold anything.
Tensor given_values(const Tensor& values, const Tensor& given, const PixelDraw& draw, at::ScalarType sum) {
  const Tensor kept =
      at::where(given, values.to(sum), at::zeros({}, values.options().dtype(sum))).contiguous();
  if (draw.kind == PixelDrawKind::Categorical) {
    const bool valid = class_indices(kept, draw.levels).ge(0).all().item<bool>();
    TORCH_CHECK_VALUE(valid, kClassError, draw.levels - 1);
  } else if (draw.kind == PixelDrawKind::Bernoulli) {
    const bool valid = kept.ge(0).logical_and_(kept.le(1)).all().item<bool>();
    TORCH_CHECK_VALUE(valid, kUnitIntervalError);
  } else {
    const bool valid = kept.abs().le(1).all().item<bool>();
    TORCH_CHECK_VALUE(valid, "x must hold values in [-1, 1] for the logistic mixture likelihood");
  }
  return kept;
}

at::ScalarType sum_dtype_of(const Tensor& noise, at::TensorList weights, at::TensorList biases) {
  bool wide = noise.scalar_type() == at::kDouble;
  for (const auto& list : {weights, biases}) {
    for (const Tensor& t : list) {
      wide = wide || t.scalar_type() == at::kDouble;
    }
  }
  return wide ? at::kDouble : at::kFloat;
}

Tensor pixel_sample(
    const Tensor& noise,
    at::TensorList weights,
    at::TensorList biases,
    at::IntArrayRef layers,
    at::IntArrayRef channels,
    at::IntArrayRef strides,
    at::IntArrayRef groups,
    int64_t output,
    int64_t draw,
    int64_t colors,
    int64_t levels,
    int64_t num_mixtures,
    bool one_hot,
    double scale,
    double shift,
    int64_t ones,
    const OptionalTensor& values,
    const OptionalTensor& given) {
  const auto sum = sum_dtype_of(noise, weights, biases);
  const Description network(weights, biases, layers, channels, strides, groups, sum);
  PixelSampleArgs args{};
  args.batch = noise.size(0);
  args.height = noise.size(2);
  args.width = noise.size(3);
  args.dtype = dtype_code(sum);
  args.num_buffers = static_cast<int64_t>(network.buffers.size());
  args.num_layers = static_cast<int64_t>(network.layers.size());
  args.buffers = network.buffers.data();
  args.layers = network.layers.data();
  args.output = output;
  args.draw = {
      static_cast<PixelDrawKind>(draw), colors, levels, num_mixtures, one_hot, scale, shift, ones};
  args.row_done = report_progress;
  const Tensor uniforms = noise.to(sum).contiguous();
  args.noise = uniforms.const_data_ptr();
  Tensor kept, mask;
  if (given.has_value()) {
    mask = given->contiguous();
    kept = given_values(*values, mask, args.draw, sum);
    args.given = mask.const_data_ptr<bool>();
    args.values = kept.const_data_ptr();
  }
  Tensor x = empty_output({args.batch, colors, args.height, args.width}, sum);
  if (x.numel() > 0) {
    args.x = x.mutable_data_ptr();
    kernels<PixelSamplingKernels>().sample(args);
    throw_interruption();
  }
  return args.draw.kind == PixelDrawKind::Categorical ? x.to(at::kLong) : x;
}

} // namespace
} // namespace dgm_fast

TORCH_LIBRARY_IMPL(dgm_fast, CPU, m) {
  m.impl("pixel_sample", &dgm_fast::pixel_sample);
}
