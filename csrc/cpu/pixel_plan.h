// A causal pixel network made ready to run: where its buffers lie, which layers run when, and their packed weights.
#pragma once

#include "pixel_product.h"
#include "pixel_sampling_table.h"

#include <iterator>
#include <vector>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

// A buffer of a few images: [rows kept, columns with margins, images, channels], the channels of a colour together,
// in the order of the colours. Row i of the map is at i modulo the rows kept.
struct BufferPlan {
  int64_t channels, stride;
  int64_t rows = 1; // kept: the newest ones
  int64_t columns = 0, margin = 0;
  bool one_column = false; // only what was written last is read
  std::vector<int64_t> place; // of every channel
  std::vector<int64_t> first; // of every colour, and the end

  int64_t row_size(int64_t images) const {
    return (one_column ? 1 : columns + 2 * margin) * images * channels;
  }
  // From a column to the next.
  int64_t step(int64_t images) const {
    return one_column ? 0 : images * channels;
  }
  int64_t offset(int64_t row, int64_t column, int64_t images) const {
    // The row may lie above the image: there, nothing is written yet and everything is zero.
    return (row + rows) % rows * row_size(images) + (margin + column) * step(images);
  }
};

// What a convolution reads at one tap of one buffer, relative to its own position.
struct SourcePlan {
  int64_t buffer;
  int64_t row, column; // `row` from the newest one of the buffer
  int64_t depth; // channels
};

// The units of one colour (or all), for one parity of the position.
template <typename A>
struct ProductPlan {
  std::vector<SourcePlan> sources;
  int64_t depth = 0;
  int64_t first = 0; // unit, in the output
  Panels<A> panels; // of its units
  std::vector<A> weight; // packed
};

template <typename A>
struct OpPlan {
  PixelKind kind;
  bool reversed = false;
  int64_t output = 0;
  std::vector<int64_t> inputs;
  PixelTap tap{0, 0}; // Lstm
  // Of a convolution. One that runs at a pixel may add to what its taps above left there at the start of the row.
  int parities = 1; // 2 where the input's stride is the larger one
  int64_t jump = 1; // columns of the input from one column of the output to the next, but of parities
  int64_t steps = 1; // products for each parity: one a colour, or one for all units
  bool add = false;
  std::vector<ProductPlan<A>> products; // [row parity, column parity, step]
  std::vector<A> bias; // [units] or [images, units]; not used where it adds
  int64_t bias_stride = 0;
};

template <typename A>
class Plan {
 public:
  explicit Plan(const PixelSampleArgs& args) : args_(args) {
    make_buffers();
    for (int64_t i = 0; i < args.num_layers; ++i) {
      add_layer(args.layers[i]);
    }
    place_buffers();
    std::move(above_.begin(), above_.end(), std::back_inserter(rows));
  }

  std::vector<BufferPlan> buffers;
  std::vector<OpPlan<A>> rows; // at the start of a row
  std::vector<OpPlan<A>> pixels;

 private:
  void make_buffers() {
    const int64_t steps = args_.draw.steps();
    moments_.assign(args_.num_buffers, PixelMoment::Pixel);
    for (int64_t i = 0; i < args_.num_layers; ++i) {
      const PixelLayer& layer = args_.layers[i];
      moments_[layer.output] = layer.moment;
      if (layer.kind == PixelKind::Lstm) {
        moments_[layer.inputs[1]] = layer.moment;
      }
    }
    for (int64_t b = 0; b < args_.num_buffers; ++b) {
      const PixelBuffer& from = args_.buffers[b];
      BufferPlan plan{from.channels, from.stride};
      plan.columns = divide_up(args_.width, from.stride);
      const auto group = [&](int64_t channel) {
        return from.groups == nullptr ? 0 : from.groups[channel];
      };
      plan.place.resize(from.channels);
      int64_t next = 0;
      for (int64_t g = -1; g < steps; ++g) {
        if (g >= 0) {
          plan.first.push_back(next);
        }
        for (int64_t channel = 0; channel < from.channels; ++channel) {
          if (group(channel) == g) {
            plan.place[channel] = next++;
          }
        }
      }
      plan.first.push_back(next);
      buffers.push_back(std::move(plan));
    }
  }

  // Buffers that are written and read at the pixel alone keep one position.
  void place_buffers() {
    std::vector<bool> here(buffers.size(), true);
    const auto look = [&](const OpPlan<A>& op, bool pixel) {
      for (const int64_t b : op.inputs) {
        here[b] = here[b] && pixel && buffers[b].stride == buffers[op.output].stride;
      }
      here[op.output] = here[op.output] && pixel && !op.add;
      for (const auto& product : op.products) {
        for (const SourcePlan& source : product.sources) {
          BufferPlan& buffer = buffers[source.buffer];
          reach(buffer, source.row, source.column);
          here[source.buffer] = here[source.buffer] && source.row == 0 && source.column == 0;
        }
      }
      if (op.kind == PixelKind::Lstm) {
        reach(buffers[op.inputs[1]], op.tap.row, op.tap.column);
        here[op.inputs[1]] = false;
      }
    };
    for (const auto& op : rows) {
      look(op, false);
    }
    for (const auto& op : above_) {
      look(op, false);
    }
    for (const auto& op : pixels) {
      look(op, true);
    }
    for (size_t b = 1; b < buffers.size(); ++b) {
      buffers[b].one_column = here[b];
    }
  }

  static void reach(BufferPlan& buffer, int64_t row, int64_t column) {
    buffer.rows = std::max(buffer.rows, 1 - row);
    buffer.margin = std::max(buffer.margin, std::abs(column));
  }

  void add_layer(const PixelLayer& layer) {
    const bool at_pixel = layer.moment == PixelMoment::Pixel;
    if (layer.kind != PixelKind::Convolution) {
      OpPlan<A> op = op_of(layer);
      if (layer.kind == PixelKind::Lstm) {
        op.tap = layer.taps[0];
      }
      (at_pixel ? pixels : rows).push_back(std::move(op));
      return;
    }
    if (!at_pixel) {
      rows.push_back(convolution(layer, [](int64_t, const PixelTap&) { return true; }, true));
      return;
    }
    // What the rows above and row moments have ready is summed for the whole row at its start.
    const auto early = [this](int64_t b, const PixelTap& tap) {
      return tap.row < 0 || moments_[b] != PixelMoment::Pixel;
    };
    OpPlan<A> above = convolution(layer, early, true);
    OpPlan<A> here = convolution(
        layer, [&](int64_t b, const PixelTap& tap) { return !early(b, tap); }, false);
    const auto any = [](const OpPlan<A>& op) {
      return std::any_of(op.products.begin(), op.products.end(), [](const auto& product) {
        return product.depth > 0;
      });
    };
    const bool any_above = any(above), any_here = any(here);
    if (!any_above) {
      pixels.push_back(std::move(here));
      return;
    }
    above_.push_back(std::move(above));
    if (any_here) {
      here.add = true;
      pixels.push_back(std::move(here));
    }
  }

  OpPlan<A> op_of(const PixelLayer& layer) const {
    OpPlan<A> op{};
    op.kind = layer.kind;
    op.reversed = layer.moment == PixelMoment::ReversedRow;
    op.output = layer.output;
    op.inputs.assign(layer.inputs, layer.inputs + layer.num_inputs);
    return op;
  }

  // The taps that `wanted` says, for all units at once or colour by colour.
  template <typename F>
  OpPlan<A> convolution(const PixelLayer& layer, F&& wanted, bool whole) const {
    OpPlan<A> op = op_of(layer);
    const BufferPlan& out = buffers[layer.output];
    const int64_t stride_in = buffers[layer.inputs[0]].stride;
    op.parities = stride_in > out.stride ? 2 : 1;
    op.jump = stride_in < out.stride ? 2 : 1;
    op.steps = whole ? 1 : args_.draw.steps();
    const std::vector<int64_t> channel_at = inverse(out.place);
    for (int row = 0; row < op.parities; ++row) {
      for (int column = 0; column < op.parities; ++column) {
        for (int64_t step = 0; step < op.steps; ++step) {
          ProductPlan<A> product;
          product.first = whole ? 0 : out.first[step];
          product.panels =
              Panels<A>((whole ? out.channels : out.first[step + 1]) - product.first);
          pack(layer, wanted, channel_at, op.parities, row, column, product);
          op.products.push_back(std::move(product));
        }
      }
    }
    set_bias(layer, out, op);
    return op;
  }

  static std::vector<int64_t> inverse(const std::vector<int64_t>& place) {
    std::vector<int64_t> at(place.size());
    for (size_t i = 0; i < place.size(); ++i) {
      at[place[i]] = static_cast<int64_t>(i);
    }
    return at;
  }

  template <typename F>
  void pack(
      const PixelLayer& layer,
      F&& wanted,
      const std::vector<int64_t>& channel_at,
      int parities,
      int row,
      int column,
      ProductPlan<A>& product) const {
    const Panels<A>& panels = product.panels;
    if (panels.units == 0) {
      return;
    }
    const auto* weight = static_cast<const A*>(layer.weight);
    int64_t in_channels = 0;
    std::vector<std::vector<int64_t>> channels_at;
    for (int64_t n = 0; n < layer.num_inputs; ++n) {
      const BufferPlan& buffer = buffers[layer.inputs[n]];
      in_channels += buffer.channels;
      channels_at.push_back(inverse(buffer.place));
    }
    const auto entry = [&](int64_t unit, int64_t channel, int64_t tap) {
      const int64_t out = channel_at[product.first + unit];
      return weight[(out * in_channels + channel) * layer.num_taps + tap];
    };
    // Terms of the sums, each a channel of an input at a tap.
    std::vector<std::pair<int64_t, int64_t>> terms;
    for (int64_t t = 0; t < layer.num_taps; ++t) {
      const PixelTap& tap = layer.taps[t];
      if ((row + tap.row) % parities != 0 || (column + tap.column) % parities != 0) {
        continue;
      }
      int64_t before = 0; // channels of the inputs before
      for (int64_t n = 0; n < layer.num_inputs; ++n) {
        const int64_t b = layer.inputs[n];
        const BufferPlan& buffer = buffers[b];
        if (wanted(b, tap)) {
          // Channels of later colours come last; where they are not known yet their weights are zero.
          const std::vector<int64_t>& at = channels_at[n];
          int64_t depth = buffer.channels;
          const auto live = [&](int64_t channel) {
            for (int64_t u = 0; u < panels.units; ++u) {
              if (entry(u, channel, t) != A(0)) {
                return true;
              }
            }
            return false;
          };
          while (depth > 0 && !live(before + at[depth - 1])) {
            --depth;
          }
          if (depth > 0) {
            const int up = parities - 1;
            product.sources.push_back(
                {b, (row + tap.row) >> up, (column + tap.column) >> up, depth});
            for (int64_t k = 0; k < depth; ++k) {
              terms.emplace_back(before + at[k], t);
            }
          }
        }
        before += buffer.channels;
      }
    }
    product.depth = static_cast<int64_t>(terms.size());
    product.weight.assign(panels.packed_size(product.depth), A(0));
    for (int64_t p = 0; p < panels.count; ++p) {
      const int64_t first = panels.first_unit(p);
      const int64_t width = panels.first_unit(p + 1) - first;
      A* to = product.weight.data() + first * product.depth;
      for (int64_t u = 0; u < std::min(width, panels.units - first); ++u) {
        for (int64_t k = 0; k < product.depth; ++k) {
          to[k * width + u] = entry(first + u, terms[k].first, terms[k].second);
        }
      }
    }
  }

  void set_bias(const PixelLayer& layer, const BufferPlan& out, OpPlan<A>& op) const {
    if (layer.bias == nullptr) {
      op.bias.assign(out.channels, A(0));
      return;
    }
    const auto* bias = static_cast<const A*>(layer.bias);
    const int64_t images = layer.bias_stride > 0 ? args_.batch : 1;
    op.bias_stride = layer.bias_stride;
    op.bias.resize(images * out.channels);
    for (int64_t n = 0; n < images; ++n) {
      for (int64_t channel = 0; channel < out.channels; ++channel) {
        op.bias[n * out.channels + out.place[channel]] = bias[n * out.channels + channel];
      }
    }
  }

  const PixelSampleArgs& args_;
  std::vector<PixelMoment> moments_;
  std::vector<OpPlan<A>> above_; // the early parts of layers that run at the pixel
};

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
