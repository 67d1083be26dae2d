// A linear layer and the likelihood of its logits: matrix products over tiles whose logits stay in the cache.

#include "cpu/likelihood_table.h"
#include "kernels.h"
#include "layout.h"
#include "product.h"

#include <ATen/ExpandUtils.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <atomic>

namespace dgm_fast {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Logits of a tile: half a mebibyte of float, a share of the second-level cache.
constexpr int64_t kTileEntries = 1 << 17;
// Rows of a tile: enough for the matrix product to reach its rate.
constexpr int64_t kMinTile = 32;
// Tiles that a large enough problem has at least, for the threads.
constexpr int64_t kMinTiles = 4;

int64_t tile_size(int64_t rows, int64_t width, int64_t entries = kTileEntries) {
  const int64_t fitting = entries / std::max<int64_t>(1, width) / 16 * 16;
  const int64_t shared = (rows / kMinTiles + 15) / 16 * 16;
  return std::min(std::max<int64_t>(1, rows), std::max(kMinTile, std::min(fitting, shared)));
}

// How many sums the weight's gradient is split into. By size alone, so that results do not depend on the number
// of threads; together they stay small beside the logits that are not stored.
int64_t num_parts(int64_t rows, int64_t tiles, const at::Tensor& weight) {
  constexpr int64_t kMaxParts = 16;
  constexpr int64_t kPartEntries = 1 << 15;
  const int64_t small = std::max<int64_t>(kMinTiles, rows / (8 * std::max<int64_t>(1, weight.size(1))));
  const int64_t worthwhile = rows * weight.size(0) / kPartEntries;
  return std::max<int64_t>(1, std::min({kMaxParts, tiles, small, worthwhile}));
}

// visit(item) for every item, several at a time, each on one thread: matrix products inside do not split
// further, so that their sums do not depend on the number of threads.
template <typename F>
void each_part(int64_t items, F&& visit) {
  // At least two, since a single one would run outside of a parallel region.
  at::parallel_for(0, std::max<int64_t>(2, items), 1, [&](int64_t begin, int64_t end) {
    at::NoGradGuard no_grad;
    for (int64_t item = begin; item < std::min(end, items); ++item) {
      visit(item);
    }
  });
}

// The range of tiles of one part, as even as it goes.
std::pair<int64_t, int64_t> part_range(int64_t tiles, int64_t parts, int64_t part) {
  return {tiles * part / parts, tiles * (part + 1) / parts};
}

// to = a b, where `to` may be of reduced precision.
void product_into(const Tensor& to, const Tensor& a, const Factor& b) {
  if (to.scalar_type() == a.scalar_type()) {
    b.multiply(to, a);
  } else {
    const Tensor exact = at::empty(to.sizes(), a.options());
    b.multiply(exact, a);
    to.copy_(exact);
  }
}

// The linear layer in the sum's dtype.
struct Layer {
  Tensor weight, bias; // [out, in], [out] or undefined
  std::optional<Factor> to_logits; // weight^T, for tiles of rows

  Layer(const Tensor& weight_in, const OptionalTensor& bias_in, at::ScalarType sum)
      : weight(weight_in.to(sum).contiguous()) {
    if (bias_in.has_value()) {
      bias = bias_in->to(sum).contiguous();
    }
  }

  // logits [n, out] = h [n, in] weight^T + bias
  void rows(const Tensor& logits, const Tensor& h) const {
    to_logits->multiply_with_bias(logits, h, {}, bias);
  }

  // logits [out, n] = weight h [in, n] + bias
  void columns(const Tensor& logits, const Tensor& h) const {
    Factor(h).multiply_with_bias(logits, weight, bias, {});
  }
};

// Sums of the layer's gradients, one per part of the work.
class LayerGradient {
 public:
  LayerGradient(bool weight, bool bias, const Layer& layer, int64_t parts) : begun_(parts, 0) {
    if (weight) {
      weight_ = empty_output(
          {parts, layer.weight.size(0), layer.weight.size(1)}, layer.weight.scalar_type());
    }
    if (bias) {
      bias_ = at::zeros({parts, layer.weight.size(0)}, layer.weight.options());
    }
  }

  // grad_logits [out, n], h [n, in]. One thread at a time for one part.
  void add(int64_t part, const Tensor& grad_logits, const Tensor& h) {
    if (weight_.defined()) {
      Factor(h).multiply(weight_[part], grad_logits, begun_[part] != 0);
      begun_[part] = 1;
    }
    if (bias_.defined()) {
      bias_[part].add_(grad_logits.sum(1));
    }
  }

  Tensor weight(const Tensor& like) const {
    for (size_t part = 0; weight_.defined() && part < begun_.size(); ++part) {
      if (!begun_[part]) {
        weight_[static_cast<int64_t>(part)].zero_();
      }
    }
    return finish(weight_, like);
  }
  Tensor bias(const Tensor& like) const {
    return finish(bias_, like);
  }

 private:
  static Tensor finish(const Tensor& parts, const Tensor& like) {
    if (!parts.defined()) {
      return at::empty({0}, like.options());
    }
    return (parts.size(0) == 1 ? parts.squeeze(0) : parts.sum(0)).to(like.scalar_type());
  }

  std::vector<char> begun_; // whether a part of the weight's sum holds anything; bool would share bytes
  Tensor weight_, bias_;
};

// Rows of h [rows, in] beside data that may be shared between them.
struct BernoulliHead {
  std::vector<int64_t> batch;
  int64_t rows, width, tile;
  at::ScalarType sum;
  Layer layer;
  Tensor h; // [rows, in]
  Rows x;

  BernoulliHead(
      const Tensor& h_in,
      const Tensor& weight,
      const OptionalTensor& bias,
      const Tensor& x_in)
      : batch(at::infer_size(
            h_in.sizes().slice(0, h_in.dim() - 1),
            x_in.sizes().slice(0, x_in.dim() - 1))),
        rows(c10::multiply_integers(batch)),
        width(weight.size(0)),
        tile(tile_size(rows, width)),
        sum(sum_dtype(h_in)),
        layer(weight, bias, sum) {
    std::vector<int64_t> full = batch;
    full.push_back(h_in.size(-1));
    h = h_in.expand(full).reshape({rows, h_in.size(-1)}).contiguous();
    x = make_rows(bernoulli_data(x_in, sum), batch, {width});
    layer.to_logits.emplace(layer.weight.t());
  }

  Tensor tile_buffer() const {
    return at::empty({tile, width}, layer.weight.options());
  }

  Tensor tile_input(int64_t first, int64_t count) const {
    return h.narrow(0, first, count).to(sum);
  }

  // The logits of a tile, into the first rows of `buffer`.
  Tensor logits(const Tensor& buffer, const Tensor& input) const {
    Tensor out = buffer.narrow(0, 0, input.size(0));
    layer.rows(out, input);
    return out;
  }

  Operand tile_logits(const Tensor& logits) const {
    Operand operand;
    operand.data = logits.const_data_ptr();
    operand.dtype = dtype_code(sum);
    operand.rows.ndim = 1;
    operand.rows.size[0] = logits.size(0);
    operand.rows.stride[0] = width;
    return operand;
  }

  Operand tile_data(int64_t first) const {
    Operand operand = x.operand;
    operand.rows.first = first;
    return operand;
  }
};

Tensor linear_bernoulli_log_prob(
    const Tensor& h,
    const Tensor& weight,
    const OptionalTensor& bias,
    const Tensor& x) {
  const BernoulliHead head(h, weight, bias, x);
  Tensor out = at::empty(head.batch, h.options().dtype(head.sum));
  auto* to = static_cast<char*>(out.mutable_data_ptr());
  std::atomic<bool> invalid{false};
  const int64_t tiles = (head.rows + head.tile - 1) / head.tile;
  const int64_t parts = std::min<int64_t>(tiles, 16);
  each_part(parts, [&](int64_t part) {
    const Tensor buffer = head.tile_buffer();
    const auto [begin, end] = part_range(tiles, parts, part);
    for (int64_t t = begin; t < end; ++t) {
      const int64_t first = t * head.tile;
      const int64_t count = std::min(head.tile, head.rows - first);
      const Tensor logits = head.logits(buffer, head.tile_input(first, count));
      BernoulliArgs args{
          count,
          head.width,
          head.tile_logits(logits),
          head.tile_data(first),
          to + first * out.element_size(),
          false};
      kernels<LikelihoodKernels>().bernoulli(args);
      if (args.invalid) {
        invalid.store(true, std::memory_order_relaxed);
      }
    }
  });
  TORCH_CHECK_VALUE(!invalid.load(), kUnitIntervalError);
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> linear_bernoulli_log_prob_backward(
    const Tensor& grad,
    const Tensor& h,
    const Tensor& weight,
    const OptionalTensor& bias,
    const Tensor& x,
    std::array<bool, 4> mask) {
  const BernoulliHead head(h, weight, bias, x);
  const bool with_bias = mask[2] && bias.has_value();
  const int64_t tiles = (head.rows + head.tile - 1) / head.tile;
  const int64_t parts = num_parts(head.rows, tiles, weight);
  LayerGradient layer_gradient(mask[1], with_bias, head.layer, parts);
  Tensor grad_h = mask[0] ? empty_output(head.h.sizes(), h.scalar_type()) : Tensor();
  std::optional<Factor> to_input;
  if (grad_h.defined()) {
    to_input.emplace(head.layer.weight);
  }
  Tensor grad_x = mask[3] ? empty_output({head.rows, head.width}, head.sum) : Tensor();
  const Tensor grad_rows = grad.to(head.sum).contiguous();
  const auto* upstream = static_cast<const char*>(grad_rows.const_data_ptr());
  const auto element = grad_rows.element_size();
  each_part(parts, [&](int64_t part) {
    const Tensor buffer = head.tile_buffer();
    const auto [begin, end] = part_range(tiles, parts, part);
    for (int64_t t = begin; t < end; ++t) {
      const int64_t first = t * head.tile;
      const int64_t count = std::min(head.tile, head.rows - first);
      const Tensor input = head.tile_input(first, count);
      const Tensor logits = head.logits(buffer, input);
      BernoulliGradArgs args{
          count,
          head.width,
          head.tile_logits(logits),
          head.tile_data(first),
          upstream + first * element,
          nullptr,
          nullptr,
          false};
      if (grad_x.defined()) {
        args.grad_x = grad_x.narrow(0, first, count).mutable_data_ptr();
        kernels<LikelihoodKernels>().bernoulli_grad(args);
        args.grad_x = nullptr;
      }
      // In place: an entry of the logits is not read again.
      args.grad_logits = logits.mutable_data_ptr();
      kernels<LikelihoodKernels>().bernoulli_grad(args);
      if (grad_h.defined()) {
        product_into(grad_h.narrow(0, first, count), logits, *to_input);
      }
      layer_gradient.add(part, logits.t(), input);
    }
  });
  const auto back = [&](const Tensor& gradient, const Tensor& like) {
    if (!gradient.defined()) {
      return at::empty({0}, like.options());
    }
    std::vector<int64_t> full = head.batch;
    full.push_back(like.size(-1));
    return at::sum_to(gradient.reshape(full), like.sizes()).to(like.scalar_type());
  };
  return {
      back(grad_h, h),
      layer_gradient.weight(weight),
      layer_gradient.bias(weight),
      back(grad_x, x)};
}

// Work of a categorical head: tiles of rows (vectors), or of the pixels of one image.
struct CategoricalHead {
  enum class Packing : int64_t { Variable = 0, Class = 1, Pixel = 2 };

  Packing packing;
  int64_t classes, width, variables;
  // Vectors: one image of all rows. Pixels: `size` pixels an image.
  std::vector<int64_t> batch;
  int64_t images, size, tile, tiles;
  at::ScalarType sum;
  Layer layer;
  Tensor h; // [rows, in] or [B, in, S]
  Rows x; // by rows, by entries of rows ("variable"), or by images

  CategoricalHead(
      const Tensor& h_in,
      const Tensor& weight,
      const OptionalTensor& bias,
      const Tensor& x_in,
      int64_t num_classes,
      int64_t packing_in)
      : packing(static_cast<Packing>(packing_in)),
        classes(num_classes),
        width(weight.size(0)),
        variables(pixel() ? 1 : width / num_classes),
        sum(sum_dtype(h_in)),
        layer(weight, bias, sum) {
    // Logits and their gradients are there together.
    constexpr int64_t kEntries = kTileEntries / 2;
    const Tensor indices = class_indices(x_in, classes);
    if (pixel()) {
      batch = {h_in.size(0)};
      images = h_in.size(0);
      size = h_in.size(2);
      h = h_in.contiguous();
      x = make_rows(indices, batch, {size});
    } else {
      batch = at::infer_size(
          h_in.sizes().slice(0, h_in.dim() - 1), indices.sizes().slice(0, indices.dim() - 1));
      images = 1;
      size = c10::multiply_integers(batch);
      std::vector<int64_t> full = batch;
      full.push_back(h_in.size(-1));
      h = h_in.expand(full).reshape({size, h_in.size(-1)}).contiguous();
      std::vector<int64_t> entries = batch;
      entries.push_back(variables);
      x = packing == Packing::Class ? make_rows(indices, batch, {variables})
                                    : make_rows(indices, entries, {});
    }
    if (!pixel()) {
      layer.to_logits.emplace(layer.weight.t());
    }
    tile = tile_size(size, width, kEntries);
    tiles = (size + tile - 1) / tile;
  }

  bool pixel() const {
    return packing == Packing::Pixel;
  }

  // One tile: its place, its inputs [n, in], and room for its logits.
  struct Tile {
    int64_t image, first, count;
    Tensor input;
  };

  Tile at(int64_t unit) const {
    Tile t{unit / tiles, unit % tiles * tile, 0, {}};
    t.count = std::min(tile, size - t.first);
    const Tensor part = pixel() ? h[t.image].narrow(1, t.first, t.count).t()
                                : h.narrow(0, t.first, t.count);
    t.input = part.to(sum);
    return t;
  }

  Tensor buffer() const {
    return at::empty({tile * width}, layer.weight.options());
  }

  // Logits [n, width], or [classes, n] for pixels.
  Tensor logits(const Tensor& buffer, const Tile& t) const {
    Tensor out = shaped(buffer, t);
    if (pixel()) {
      layer.columns(out, t.input.t());
    } else {
      layer.rows(out, t.input);
    }
    return out;
  }

  Tensor shaped(const Tensor& buffer, const Tile& t) const {
    const Tensor used = buffer.narrow(0, 0, t.count * width);
    return pixel() ? used.view({classes, t.count}) : used.view({t.count, width});
  }

  // The tile as blocks [outer, classes, inner] with one sum each.
  struct Blocks {
    int64_t outer, inner;
    Operand logits, x;
  };

  Blocks blocks(const Tensor& logits, const Tile& t) const {
    Blocks b{};
    b.logits.data = logits.const_data_ptr();
    b.logits.dtype = dtype_code(sum);
    b.x = x.operand;
    if (pixel()) {
      b.outer = 1;
      b.inner = t.count;
      b.x.data = static_cast<const int32_t*>(x.operand.data) + t.first;
      b.x.rows.first = t.image;
    } else if (packing == Packing::Class) {
      b.outer = t.count;
      b.inner = variables;
      b.x.rows.first = t.first;
    } else {
      b.outer = t.count * variables;
      b.inner = 1;
      b.x.rows.first = t.first * variables;
    }
    b.logits.rows.ndim = 1;
    b.logits.rows.size[0] = b.outer;
    b.logits.rows.stride[0] = classes * b.inner;
    return b;
  }
};

Tensor linear_categorical_log_prob(
    const Tensor& h,
    const Tensor& weight,
    const OptionalTensor& bias,
    const Tensor& x,
    int64_t num_classes,
    int64_t packing) {
  const CategoricalHead head(h, weight, bias, x, num_classes, packing);
  // One sum a tile of pixels, one a row of vectors.
  Tensor sums = at::empty(
      {head.pixel() ? head.images * head.tiles : head.size}, h.options().dtype(head.sum));
  if (head.width == 0) {
    sums.zero_();
  }
  std::atomic<bool> invalid{false};
  const int64_t units = head.width == 0 ? 0 : head.images * head.tiles;
  const int64_t parts = std::min<int64_t>(units, 16);
  each_part(parts, [&](int64_t part) {
    const Tensor buffer = head.buffer();
    const auto [begin, end] = part_range(units, parts, part);
    for (int64_t unit = begin; unit < end; ++unit) {
      const auto tile = head.at(unit);
      const Tensor logits = head.logits(buffer, tile);
      const auto blocks = head.blocks(logits, tile);
      Tensor out = head.pixel() ? sums.narrow(0, unit, 1)
                                : sums.narrow(0, tile.first, tile.count);
      const bool entries = head.packing == CategoricalHead::Packing::Variable;
      Tensor of_blocks = entries ? at::empty({blocks.outer}, out.options()) : out;
      CategoricalArgs args{
          blocks.outer,
          head.classes,
          blocks.inner,
          blocks.inner,
          blocks.logits,
          blocks.x,
          of_blocks.mutable_data_ptr(),
          false};
      kernels<LikelihoodKernels>().categorical(args);
      if (args.invalid) {
        invalid.store(true, std::memory_order_relaxed);
      }
      if (entries) {
        at::sum_out(out, of_blocks.view({tile.count, head.variables}), {1});
      }
    }
  });
  TORCH_CHECK_VALUE(!invalid.load(), kClassError, num_classes - 1);
  return head.pixel() ? sums.view({head.images, head.tiles}).sum(1) : sums.view(head.batch);
}

std::tuple<Tensor, Tensor, Tensor> linear_categorical_log_prob_backward(
    const Tensor& grad,
    const Tensor& h,
    const Tensor& weight,
    const OptionalTensor& bias,
    const Tensor& x,
    int64_t num_classes,
    int64_t packing,
    std::array<bool, 3> mask) {
  const CategoricalHead head(h, weight, bias, x, num_classes, packing);
  const bool with_bias = mask[2] && bias.has_value();
  const int64_t units = head.width == 0 ? 0 : head.images * head.tiles;
  const int64_t parts = num_parts(head.images * head.size, units, weight);
  LayerGradient layer_gradient(mask[1], with_bias, head.layer, parts);
  Tensor grad_h = mask[0] ? empty_output(head.h.sizes(), h.scalar_type()) : Tensor();
  std::optional<Factor> to_input;
  if (grad_h.defined() && !head.pixel()) {
    to_input.emplace(head.layer.weight);
  }
  if (grad_h.defined() && units == 0) {
    grad_h.zero_();
  }
  // One upstream gradient a block.
  Tensor upstream = grad.to(head.sum).reshape({-1, 1});
  if (head.packing == CategoricalHead::Packing::Variable) {
    upstream = upstream.expand({-1, head.variables});
  }
  upstream = upstream.contiguous();
  each_part(parts, [&](int64_t part) {
    const Tensor buffer = head.buffer();
    const Tensor grad_buffer = head.buffer();
    const auto [begin, end] = part_range(units, parts, part);
    for (int64_t unit = begin; unit < end; ++unit) {
      const auto tile = head.at(unit);
      const Tensor logits = head.logits(buffer, tile);
      const auto blocks = head.blocks(logits, tile);
      const Tensor grad_logits = head.shaped(grad_buffer, tile);
      kernels<LikelihoodKernels>().categorical_grad(
          {blocks.outer,
           head.classes,
           blocks.inner,
           blocks.inner,
           blocks.logits,
           blocks.x,
           upstream[head.pixel() ? tile.image : tile.first].const_data_ptr(),
           grad_logits.mutable_data_ptr(),
           false});
      if (head.pixel()) {
        if (grad_h.defined()) {
          product_into(
              grad_h[tile.image].narrow(1, tile.first, tile.count),
              head.layer.weight.t(),
              Factor(grad_logits));
        }
        layer_gradient.add(part, grad_logits, tile.input);
      } else {
        if (grad_h.defined()) {
          product_into(
              grad_h.narrow(0, tile.first, tile.count), grad_logits, *to_input);
        }
        layer_gradient.add(part, grad_logits.t(), tile.input);
      }
    }
  });
  if (!grad_h.defined()) {
    grad_h = at::empty({0}, h.options());
  } else if (!head.pixel()) {
    std::vector<int64_t> full = head.batch;
    full.push_back(h.size(-1));
    grad_h = at::sum_to(grad_h.reshape(full), h.sizes());
  }
  return {grad_h, layer_gradient.weight(weight), layer_gradient.bias(weight)};
}

} // namespace
} // namespace dgm_fast

TORCH_LIBRARY_IMPL(dgm_fast, CPU, m) {
  m.impl("linear_bernoulli_log_prob", &dgm_fast::linear_bernoulli_log_prob);
  m.impl("linear_bernoulli_log_prob_backward", &dgm_fast::linear_bernoulli_log_prob_backward);
  m.impl("linear_categorical_log_prob", &dgm_fast::linear_categorical_log_prob);
  m.impl("linear_categorical_log_prob_backward", &dgm_fast::linear_categorical_log_prob_backward);
}
