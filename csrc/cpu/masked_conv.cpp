// Masked convolutions over their live taps alone, and both gradients.
//
// A share of rows at a time is copied to blocks of channels with zeros around it (the tiles' layout), so that taps
// need no test for the border and any memory format is read the same way; the copy stays in the second-level cache.

#include "masked_conv_geometry.h"
#include "masked_conv_tiles.h"
#include "pixel_table.h"
#include "transpose.h"

#include <optional>
#include <vector>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {
namespace {

// Rows of an image with zeros around them, [block of channels][row][column][kBlock]. Rows and columns of the border
// stay zero from one share of rows to the next; rows outside of the image are cleared.
template <typename A>
class Region {
 public:
  Region(int64_t channels, int64_t rows, int64_t width, int64_t before, int64_t columns)
      : channels_(channels),
        width_(width),
        before_(before),
        row_stride_(columns * kBlock<A>),
        plane_(rows * row_stride_),
        memory_(num_blocks(channels, kBlock<A>) * plane_) {}

  int64_t row_stride() const {
    return row_stride_;
  }
  int64_t plane() const {
    return plane_;
  }

  // The first pixel of the image's column 0 in row `row` of the region, block 0.
  const A* at(int64_t row) const {
    return memory_.data() + row * row_stride_ + before_ * kBlock<A>;
  }

  // Rows [begin, end) of image `n`, whose rows are [0, height).
  void load(const ImageView& image, int64_t n, int64_t begin, int64_t end, int64_t height) {
    const int64_t first = std::max<int64_t>(begin, 0), last = std::min(end, height);
    const A* source = static_cast<const A*>(image.data) + n * image.batch_stride;
    for (int64_t c = 0; c < channels_; c += kBlock<A>) {
      A* plane = memory_.data() + c / kBlock<A> * plane_ + before_ * kBlock<A>;
      const int64_t count = std::min<int64_t>(kBlock<A>, channels_ - c);
      clear(plane, 0, first - begin);
      clear(plane, last - begin, end - begin);
      const A* from = source + c * image.channel_stride;
      for (int64_t row = first; row < last; ++row) {
        load_row(image, from + row * image.row_stride, plane + (row - begin) * row_stride_, count);
      }
    }
  }

 private:
  void clear(A* plane, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      std::fill_n(plane + row * row_stride_, width_ * kBlock<A>, A(0));
    }
  }

  void load_row(const ImageView& image, const A* from, A* to, int64_t count) const {
    constexpr int lanes = kLanes<A>;
    if (image.channel_stride == 1) {
      for (int64_t column = 0; column < width_; ++column) {
        const A* pixel = from + column * image.column_stride;
        A* target = to + column * kBlock<A>;
        if (count == kBlock<A>) {
          Vec<A>::loadu(pixel).store(target);
          Vec<A>::loadu(pixel + lanes).store(target + lanes);
        } else {
          std::copy_n(pixel, count, target);
        }
      }
    } else if (image.column_stride == 1) {
      transpose(from, image.channel_stride, to, kBlock<A>, count, width_);
    } else {
      for (int64_t column = 0; column < width_; ++column) {
        for (int64_t c = 0; c < count; ++c) {
          to[column * kBlock<A> + c] = from[c * image.channel_stride + column * image.column_stride];
        }
      }
    }
  }

  int64_t channels_, width_, before_, row_stride_, plane_;
  Scratch<A> memory_;
};

// Convolves rows of a region with packed weights, [block of out][tap][in][kBlock], into an image.
template <typename A>
class RowConvolution {
 public:
  RowConvolution(
      std::vector<Run> runs, const A* weight, const A* bias, int64_t width, int64_t channels)
      : runs_(std::move(runs)),
        weight_(weight),
        bias_(bias),
        width_(width),
        channels_(channels),
        pieces_(width),
        row_(width * kBlock<A>) {
    for (const Run& run : runs_) {
      block_size_ += run.count * kBlock<A>;
    }
  }

  // Rows [begin, end) of image `n`; their pixels lie in the region from `in` on, row_stride apart.
  void run(
      const A* in, int64_t row_stride, const ImageView& image, int64_t n, int64_t begin, int64_t end) {
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

// Weights as tiles take them, [block of to][tap][from][kBlock], where `to` are the output channels of the pass and
// `from` those it sums over; dead pairs at the centre are 0. Forward: to = out. Input gradient: to = in.
template <typename A>
Scratch<A> pack_weight(const MaskedConvArgs& args, const LiveGeometry& live, bool forward) {
  const int64_t to_channels = forward ? args.out_channels : args.in_channels;
  const int64_t from_channels = forward ? args.in_channels : args.out_channels;
  const int64_t taps = live.taps();
  const int64_t kernel = args.kernel_rows * args.kernel_columns;
  const int64_t blocks = num_blocks(to_channels, kBlock<A>);
  const auto* weight = static_cast<const A*>(args.weight);
  Scratch<A> packed(blocks * taps * from_channels * kBlock<A>);
  at::parallel_for(0, to_channels, grain_rows(taps * from_channels), [&](int64_t begin, int64_t end) {
    for (int64_t to = begin; to < end; ++to) {
      A* target = packed.data() + to / kBlock<A> * taps * from_channels * kBlock<A> + to % kBlock<A>;
      for (int64_t from = 0; from < from_channels; ++from) {
        const int64_t out = forward ? to : from, in = forward ? from : to;
        const A* source = weight + (out * args.in_channels + in) * kernel;
        const bool centre = args.mask.centre(out, args.out_channels, in, args.in_channels);
        for (int64_t tap = 0; tap < taps; ++tap) {
          const bool on = live.index[tap] != live.centre || centre;
          target[(tap * from_channels + from) * kBlock<A>] = on ? source[live.index[tap]] : A(0);
        }
      }
    }
  });
  return packed;
}

// Terms that a tile adds up in registers alone.
constexpr int64_t kTermBlock = 256;

// What a pixel sums over in a region of `channels`: all taps from an output pixel, mirrored from an input pixel.
template <typename A>
std::vector<Run> tap_runs(
    const LiveGeometry& live, const Region<A>& region, int64_t channels, bool mirrored) {
  std::vector<Run> runs;
  int64_t terms = 0;
  for (int64_t tap = 0; tap < live.taps(); ++tap) {
    const int64_t offset = live.rows[tap] * region.row_stride() + live.columns[tap] * kBlock<A>;
    for (int64_t c = 0; c < channels; c += kBlock<A>) {
      const int64_t plane = c / kBlock<A> * region.plane();
      const int64_t count = std::min<int64_t>(kBlock<A>, channels - c);
      terms += count;
      const bool whole = terms >= kTermBlock;
      runs.push_back({plane + (mirrored ? -offset : offset), count, whole});
      terms = whole ? 0 : terms;
    }
  }
  return runs;
}

template <typename A>
void conv_forward(const MaskedConvArgs& args) {
  const LiveGeometry live(args);
  const Shares shares(args, live);
  const auto weight = pack_weight<A>(args, live, true);
  Scratch<A> bias(num_blocks(args.out_channels, kBlock<A>) * kBlock<A>);
  if (args.bias != nullptr) {
    std::copy_n(static_cast<const A*>(args.bias), args.out_channels, bias.data());
  }
  at::parallel_for(0, shares.count(), 1, [&](int64_t begin, int64_t end) {
    Region<A> region(
        args.in_channels, shares.rows() + live.top, args.width, live.left, args.width + live.sides());
    RowConvolution<A> convolution(
        tap_runs(live, region, args.in_channels, false),
        weight.data(),
        bias.data(),
        args.width,
        args.out_channels);
    for (int64_t i = begin; i < end; ++i) {
      const auto share = shares[i];
      region.load(args.x, share.image, share.begin - live.top, share.end, args.height);
      convolution.run(
          region.at(live.top), region.row_stride(), args.out, share.image, share.begin, share.end);
    }
  });
}

// Sums of one part: gradients of the weight [block of out][tap][in][kBlock], then of the bias.
struct SumsLayout {
  int64_t block, weight, total;

  template <typename A>
  static SumsLayout of(const MaskedConvArgs& args, const LiveGeometry& live) {
    const int64_t block = live.taps() * args.in_channels * kBlock<A>;
    const int64_t blocks = num_blocks(args.out_channels, kBlock<A>);
    return {block, blocks * block, blocks * (block + kBlock<A>)};
  }
};

// Sums over a share of rows; regions hold the share of x with the rows above it, and that of the gradient.
template <typename A>
class WeightSums {
 public:
  WeightSums(const MaskedConvArgs& args, const LiveGeometry& live, A* sums)
      : args_(args),
        live_(live),
        layout_(SumsLayout::of<A>(args, live)),
        sums_(sums),
        bias_(num_blocks(args.out_channels, kBlock<A>) * kBlock<A>) {
    std::fill_n(sums_, layout_.weight, A(0));
  }

  void add(const Region<A>& x, const Region<A>& grad, int64_t rows) {
    // Rows of both operands that stay in the first-level cache while every tap passes over them.
    const int64_t step = std::max<int64_t>(1, kPixels / args_.width);
    for (int64_t o = 0; o < args_.out_channels; o += kBlock<A>) {
      const int64_t block = o / kBlock<A>;
      const int64_t columns = std::min<int64_t>(kBlock<A>, args_.out_channels - o);
      for (int64_t c = 0; c < args_.in_channels; c += kBlock<A>) {
        const Pieces pieces(std::min<int64_t>(kBlock<A>, args_.in_channels - c));
        for (int64_t row = 0; row < rows; row += step) {
          const int64_t count = std::min(step, rows - row);
          const A* g = grad.at(row) + block * grad.plane();
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

  void add_bias(const Region<A>& grad, int64_t rows) {
    for (int64_t o = 0; o < args_.out_channels; o += kLanes<A>) {
      const A* from = grad.at(0) + o / kBlock<A> * grad.plane() + o % kBlock<A>;
      for (int64_t row = 0; row < rows; ++row) {
        // Short runs in A, their sums in doubles.
        for (int64_t first = 0; first < args_.width; first += kPixels) {
          const int64_t last = std::min(args_.width, first + kPixels);
          Vec<A> sum(0);
          for (int64_t column = first; column < last; ++column) {
            sum = sum + Vec<A>::loadu(from + row * grad.row_stride() + column * kBlock<A>);
          }
          A lanes[kLanes<A>];
          sum.store(lanes);
          for (int i = 0; i < kLanes<A>; ++i) {
            bias_[o + i] += lanes[i];
          }
        }
      }
    }
  }

  void finish() {
    std::copy(bias_.begin(), bias_.end(), sums_ + layout_.weight);
  }

 private:
  static constexpr int64_t kPixels = 128;

  const MaskedConvArgs& args_;
  const LiveGeometry& live_;
  SumsLayout layout_;
  A* sums_;
  std::vector<double> bias_;
};

// The sums of all parts, as gradients of weight and bias.
template <typename A>
void finish_sums(const MaskedConvGradArgs& args, const LiveGeometry& live) {
  const auto& in = args.in;
  const auto layout = SumsLayout::of<A>(in, live);
  const auto* sums = static_cast<const A*>(args.sums);
  if (args.grad_bias != nullptr) {
    for (int64_t o = 0; o < in.out_channels; ++o) {
      double sum = 0;
      for (int64_t part = 0; part < args.parts; ++part) {
        sum += sums[part * layout.total + layout.weight + o];
      }
      static_cast<A*>(args.grad_bias)[o] = static_cast<A>(sum);
    }
  }
  if (args.grad_weight == nullptr) {
    return;
  }
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
        const A* from = sums + block * layout.block + (tap * in.in_channels + c) * kBlock<A>;
        for (int64_t part = 0; part < args.parts; ++part, from += layout.total) {
          for (int64_t o = 0; o < kBlock<A>; ++o) {
            total[o] += from[o];
          }
        }
        const bool centre = live.index[tap] == live.centre;
        for (int64_t o = 0; o < count; ++o) {
          if (!centre || in.mask.centre(first + o, in.out_channels, c, in.in_channels)) {
            to[o * stride + live.index[tap]] = total[o];
          }
        }
      }
    }
  });
}

template <typename A>
void conv_backward(const MaskedConvGradArgs& args) {
  const auto& in = args.in;
  const LiveGeometry live(in);
  const Shares shares(in, live);
  const bool with_x = args.grad_x.data != nullptr;
  const bool with_weight = args.grad_weight != nullptr;
  const bool with_bias = args.grad_bias != nullptr;
  const int64_t columns = in.width + live.sides();
  const auto weight = with_x ? pack_weight<A>(in, live, false) : Scratch<A>(0);
  const Scratch<A> no_bias(num_blocks(in.in_channels, kBlock<A>) * kBlock<A>);
  const int64_t total = SumsLayout::of<A>(in, live).total;
  const int64_t parts = args.sums == nullptr ? shares.count() : args.parts;
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    Region<A> x(with_weight ? in.in_channels : 0, shares.rows() + live.top, in.width, live.left, columns);
    Region<A> grad(in.out_channels, shares.rows() + live.top, in.width, live.right, columns);
    RowConvolution<A> convolution(
        tap_runs(live, grad, in.out_channels, true),
        weight.data(),
        no_bias.data(),
        in.width,
        in.in_channels);
    for (int64_t part = begin; part < end; ++part) {
      std::optional<WeightSums<A>> sums;
      if (args.sums != nullptr) {
        sums.emplace(in, live, static_cast<A*>(args.sums) + part * total);
      }
      // In proportion, so that no part stays empty while others hold several shares.
      const int64_t last = shares.count() * (part + 1) / parts;
      for (int64_t i = shares.count() * part / parts; i < last; ++i) {
        const auto share = shares[i];
        const int64_t rows = share.end - share.begin;
        grad.load(
            args.grad,
            share.image,
            share.begin,
            share.end + (with_x ? live.top : 0),
            in.height);
        if (with_x) {
          convolution.run(
              grad.at(0), grad.row_stride(), args.grad_x, share.image, share.begin, share.end);
        }
        if (with_weight) {
          x.load(in.x, share.image, share.begin - live.top, share.end, in.height);
          sums->add(x, grad, rows);
        }
        if (with_bias) {
          sums->add_bias(grad, rows);
        }
      }
      if (sums) {
        sums->finish();
      }
    }
  });
  if (args.sums != nullptr) {
    finish_sums<A>(args, live);
  }
}

void masked_conv(const MaskedConvArgs& args) {
  with_sum_type(args.dtype, [&](auto t) { conv_forward<typename decltype(t)::type>(args); });
}

void masked_conv_grad(const MaskedConvGradArgs& args) {
  with_sum_type(args.in.dtype, [&](auto t) { conv_backward<typename decltype(t)::type>(args); });
}

int64_t masked_conv_sums(const MaskedConvArgs& args) {
  int64_t size = 0;
  with_sum_type(args.dtype, [&](auto t) {
    size = SumsLayout::of<typename decltype(t)::type>(args, LiveGeometry(args)).total;
  });
  return size;
}

} // namespace
} // namespace CPU_CAPABILITY

void fill_masked_conv(PixelKernels& kernels) {
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  kernels.masked_conv = masked_conv;
  kernels.masked_conv_grad = masked_conv_grad;
  kernels.masked_conv_sums = masked_conv_sums;
#else
  // Emulated vectors do not reach the library's rate.
  kernels.masked_conv = nullptr;
  kernels.masked_conv_grad = nullptr;
  kernels.masked_conv_sums = nullptr;
#endif
}

} // namespace dgm_fast
