// Masked convolutions on the vector units: the rows of one share, and its sums of the weight's gradient.
#pragma once

#include "masked_conv_geometry.h"
#include "masked_conv_region.h"

#include <vector>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

// Weights as tiles take them, [block of to][tap][from][kBlock], where `to` are the output channels of the pass and
// `from` those it sums over; dead pairs at the centre are 0.
template <typename A>
class PackedWeight {
 public:
  explicit PackedWeight(const ConvPass& pass)
      : packed_(Scratch<A>::zeros(
            num_blocks(pass.to_channels(), kBlock<A>) * pass.terms() * kBlock<A>)) {
    const auto& args = pass.args;
    const int64_t kernel = args.kernel_rows * args.kernel_columns;
    const int64_t from_channels = pass.from_channels();
    // Entries that follow one another in memory: of several input channels forward, of one output channel backward.
    const int64_t chunk = pass.forward ? std::min<int64_t>(from_channels, 16) : 1;
    const int64_t chunks = num_blocks(from_channels, chunk);
    const int64_t blocks = num_blocks(pass.to_channels(), kBlock<A>);
    const auto* weight = static_cast<const A*>(args.weight);
    at::parallel_for(0, blocks * chunks, grain_rows(chunk * kernel * kBlock<A>), [&](int64_t begin, int64_t end) {
      Scratch<A> columns(chunk * kernel * kBlock<A>);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t to = i / chunks * kBlock<A>, from = i % chunks * chunk;
        const int64_t count = std::min<int64_t>(kBlock<A>, pass.to_channels() - to);
        const int64_t several = std::min(chunk, from_channels - from);
        const int64_t out = pass.forward ? to : from, in = pass.forward ? from : to;
        transpose(
            weight + (out * args.in_channels + in) * kernel,
            pass.forward ? args.in_channels * kernel : kernel,
            columns.data(),
            kBlock<A>,
            count,
            several * kernel);
        for (int64_t k = 0; k < several; ++k) {
          pack_channel(pass, to, count, from + k, columns.data() + k * kernel * kBlock<A>);
        }
      }
    });
  }

  A* data() const {
    return packed_.data();
  }

 private:
  // columns [kernel][kBlock]: the weights between a channel of `from` and `count` of `to`.
  void pack_channel(
      const ConvPass& pass, int64_t to, int64_t count, int64_t from, const A* columns) const {
    const auto& live = pass.live;
    for (int64_t tap = 0; tap < live.taps(); ++tap) {
      A* target = data() + to * pass.terms() + (tap * pass.from_channels() + from) * kBlock<A>;
      const A* source = columns + live.index[tap] * kBlock<A>;
      std::copy_n(source, count, target);
      if (!live.whole(pass.args, tap)) {
        for (int64_t t = 0; t < count; ++t) {
          if (!live.on(pass.args, tap, pass.forward ? to + t : from, pass.forward ? from : to + t)) {
            target[t] = A(0);
          }
        }
      }
    }
  }

  Scratch<A> packed_;
};

// Terms that a tile adds up in registers alone.
constexpr int64_t kTermBlock = 256;

// What a pixel sums over in a region.
template <typename A>
std::vector<Run> tap_runs(const ConvPass& pass, const Region<A>& region) {
  const int64_t channels = pass.from_channels();
  std::vector<Run> runs;
  int64_t terms = 0;
  for (int64_t tap = 0; tap < pass.live.taps(); ++tap) {
    const int64_t offset = pass.pixel_offset(tap, region.pitch()) * kBlock<A>;
    for (int64_t c = 0; c < channels; c += kBlock<A>) {
      const int64_t plane = c / kBlock<A> * region.plane();
      const int64_t count = std::min<int64_t>(kBlock<A>, channels - c);
      terms += count;
      const bool whole = terms >= kTermBlock;
      runs.push_back({plane + offset, count, whole});
      terms = whole ? 0 : terms;
    }
  }
  return runs;
}

// Convolves rows of a region with packed weights, [block of out][tap][in][kBlock], into an image.
template <typename A>
class RowConvolution {
 public:
  using Weights = PackedWeight<A>;

  RowConvolution(const ConvPass& pass, const Region<A>& region, const Weights& weights, const A* bias)
      : runs_(tap_runs(pass, region)),
        weight_(weights.data()),
        bias_(bias),
        width_(pass.args.width),
        channels_(pass.to_channels()),
        pieces_(width_),
        row_(width_ * kBlock<A>) {
    for (const Run& run : runs_) {
      block_size_ += run.count * kBlock<A>;
    }
  }

  // Rows [begin, end) of image `n`, which lie in the region from `first_row` on.
  void run(
      const Region<A>& region,
      int64_t first_row,
      const ImageView& image,
      int64_t n,
      int64_t begin,
      int64_t end) {
    const A* in = region.at(first_row);
    const int64_t row_stride = region.row_stride();
    A* out = static_cast<A*>(image.data) + n * image.batch_stride;
    for (int64_t c = 0; c < channels_; c += kBlock<A>) {
      const A* weight = weight_ + c / kBlock<A> * block_size_;
      const int64_t columns = std::min<int64_t>(kBlock<A>, channels_ - c);
      for (int64_t row = begin; row < end; ++row) {
        const A* from = in + (row - begin) * row_stride;
        A* to = out + row * image.row_stride + c * image.channel_stride;
        const bool direct = image.channel_stride == 1;
        pieces_.each([&](int64_t column, int64_t length) {
          find_conv_tile<A>(length, columns)(
              from + column * kBlock<A>,
              runs_.data(),
              static_cast<int64_t>(runs_.size()),
              weight,
              bias_ + c,
              direct ? to + column * image.column_stride : row_.data() + column * kBlock<A>,
              direct ? image.column_stride : kBlock<A>,
              columns);
        });
        if (!direct) {
          transpose(row_.data(), kBlock<A>, to, image.channel_stride, width_, columns);
        }
      }
    }
  }

 private:
  std::vector<Run> runs_;
  int64_t block_size_ = 0; // of the weights of one block
  const A* weight_;
  const A* bias_;
  int64_t width_, channels_;
  Pieces pieces_;
  Scratch<A> row_;
};

// Sums of one part, [block of out][tap][in][kBlock].
struct SumsLayout {
  int64_t block, weight;

  template <typename A>
  static SumsLayout of(const MaskedConvArgs& args, const LiveGeometry& live) {
    const int64_t block = live.taps() * args.in_channels * kBlock<A>;
    const int64_t blocks = num_blocks(args.out_channels, kBlock<A>);
    return {block, blocks * block};
  }
};

// Sums over shares of rows: x^T times the gradient for every tap.
template <typename A>
class WeightSums {
 public:
  WeightSums(const MaskedConvArgs& args, const LiveGeometry& live)
      : args_(args), live_(live), layout_(SumsLayout::of<A>(args, live)) {}

  // The sums of another part.
  void start(A* sums) {
    sums_ = sums;
    std::fill_n(sums_, layout_.weight, A(0));
  }

  static int64_t size(const MaskedConvArgs& args, const LiveGeometry& live) {
    return SumsLayout::of<A>(args, live).weight;
  }

  // `rows` rows of the gradient's region from grad_row on; that of x begins as far above as taps reach.
  void add(const Region<A>& x, const Region<A>& grad, int64_t grad_row, int64_t rows) {
    // Rows of both operands that stay in the first-level cache while every tap passes over them.
    const int64_t step = std::max<int64_t>(1, kPixels / args_.width);
    for (int64_t o = 0; o < args_.out_channels; o += kBlock<A>) {
      const int64_t block = o / kBlock<A>;
      const int64_t columns = std::min<int64_t>(kBlock<A>, args_.out_channels - o);
      for (int64_t c = 0; c < args_.in_channels; c += kBlock<A>) {
        const Pieces pieces(std::min<int64_t>(kBlock<A>, args_.in_channels - c));
        for (int64_t row = 0; row < rows; row += step) {
          const int64_t count = std::min(step, rows - row);
          const A* g = grad.at(grad_row + row) + block * grad.plane();
          const A* above = x.at(row + live_.top) + c / kBlock<A> * x.plane();
          for (int64_t tap = 0; tap < live_.taps(); ++tap) {
            const A* from = above + live_.rows[tap] * x.row_stride() + live_.columns[tap] * kBlock<A>;
            A* to = sums_ + block * layout_.block + (tap * args_.in_channels + c) * kBlock<A>;
            pieces.each([&](int64_t first, int64_t length) {
              find_weight_tile<A>(length, columns)(
                  from + first,
                  x.row_stride(),
                  g,
                  grad.row_stride(),
                  count,
                  args_.width,
                  to + first * kBlock<A>);
            });
          }
        }
      }
    }
  }

  // The sums of all parts, `part_stride` numbers apart, as the weight's gradient.
  static void collect(const MaskedConvGradArgs& args, const LiveGeometry& live, int64_t part_stride) {
    const auto& in = args.in;
    const auto layout = SumsLayout::of<A>(in, live);
    const int64_t kernel = in.kernel_rows * in.kernel_columns;
    const int64_t blocks = num_blocks(in.out_channels, kBlock<A>);
    const int64_t work = live.taps() * args.parts * kBlock<A>;
    at::parallel_for(0, blocks * in.in_channels, grain_rows(work), [&](int64_t begin, int64_t end) {
      std::vector<A> total(kBlock<A>);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t block = i / in.in_channels, c = i % in.in_channels;
        const int64_t first = block * kBlock<A>;
        const int64_t count = std::min<int64_t>(kBlock<A>, in.out_channels - first);
        A* to = static_cast<A*>(args.grad_weight) + (first * in.in_channels + c) * kernel;
        const int64_t stride = in.in_channels * kernel;
        for (int64_t o = 0; o < count; ++o) {
          std::fill_n(to + o * stride, kernel, A(0));
        }
        for (int64_t tap = 0; tap < live.taps(); ++tap) {
          std::fill(total.begin(), total.end(), A(0));
          const A* from = static_cast<const A*>(args.sums) + block * layout.block +
              (tap * in.in_channels + c) * kBlock<A>;
          for (int64_t part = 0; part < args.parts; ++part, from += part_stride) {
            for (int64_t o = 0; o < kBlock<A>; ++o) {
              total[o] += from[o];
            }
          }
          for (int64_t o = 0; o < count; ++o) {
            if (live.on(in, tap, first + o, c)) {
              to[o * stride + live.index[tap]] = total[o];
            }
          }
        }
      }
    });
  }

 private:
  static constexpr int64_t kPixels = 128;

  const MaskedConvArgs& args_;
  const LiveGeometry& live_;
  SumsLayout layout_;
  A* sums_ = nullptr;
};

// Sums of the gradient over the pixels of a part, a number a channel.
template <typename A>
class BiasSums {
 public:
  explicit BiasSums(int64_t channels) : sums_(num_blocks(channels, kBlock<A>) * kBlock<A>) {}

  void add(const Region<A>& grad, int64_t first_row, int64_t rows, int64_t width) {
    for (size_t o = 0; o < sums_.size(); o += kLanes<A>) {
      const A* from = grad.at(first_row) + o / kBlock<A> * grad.plane() + o % kBlock<A>;
      for (int64_t row = 0; row < rows; ++row) {
        // Short runs in A, their sums in doubles.
        for (int64_t first = 0; first < width; first += kPixels) {
          const int64_t last = std::min(width, first + kPixels);
          Vec<A> sum(0);
          for (int64_t column = first; column < last; ++column) {
            sum = sum + Vec<A>::loadu(from + row * grad.row_stride() + column * kBlock<A>);
          }
          A lanes[kLanes<A>];
          sum.store(lanes);
          for (int i = 0; i < kLanes<A>; ++i) {
            sums_[o + i] += lanes[i];
          }
        }
      }
    }
  }

  void store(A* to) const {
    std::copy(sums_.begin(), sums_.end(), to);
  }

 private:
  static constexpr int64_t kPixels = 128;

  std::vector<double> sums_;
};

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
