// Masked convolutions of float32 on the matrix units.
//
// Pixels of a share and their border are one run, so that tiles of 16 pixels need not end where rows do; what is computed
// for the border is left out. Floats are split into three bfloat16 once a share. Data that does not split (infinities,
// NaN, nothing but tiny numbers) goes through the vector units, share by share.

#include "amx.h"
#include "masked_conv_passes.h"

#include <atomic>

#if defined(DGM_FAST_AMX)

namespace dgm_fast {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kWide = 2 * kTileSide; // rows or columns of C that a product of two tiles gives
// Pixels past the end of a run that whole tiles and steps may read.
constexpr int64_t kOverrun = 64;
// Steps whose terms are summed up in the tile registers alone.
constexpr int64_t kMostSteps = 8;

int64_t round_up(int64_t n, int64_t multiple) {
  return num_blocks(n, multiple) * multiple;
}

// Padding to whole tiles must not eat up what tiles gain.
bool worthwhile(int64_t a, int64_t a_unit, int64_t b, int64_t b_unit) {
  return 5 * round_up(a, a_unit) * round_up(b, b_unit) <= 8 * a * b;
}

// Whether the pixels of a share fill tiles.
bool enough_pixels(const MaskedConvArgs& args) {
  const LiveGeometry live(args);
  return Shares(args, live).rows() * live.pitch(args.width) >= 4 * kTileSide;
}

void add_to(const float* from, int64_t from_stride, int64_t rows, int64_t columns, float* to, int64_t to_stride) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; column += 16) {
      float* p = to + row * to_stride + column;
      const float* q = from + row * from_stride + column;
      _mm512_storeu_ps(p, _mm512_add_ps(_mm512_loadu_ps(p), _mm512_loadu_ps(q)));
    }
  }
}

// Weights in parts, [block of 32 to][tap][32 from][part][16 to][pair of from][16][2].
class TileWeights {
 public:
  explicit TileWeights(const ConvPass& pass)
      : packed_(pass),
        steps_(pass.live.taps() * num_blocks(pass.from_channels(), kStepDepth)),
        parts_(0) {
    static_assert(kBlock<float> == kWide && kStepDepth == kWide);
    const int64_t blocks = num_blocks(pass.to_channels(), kWide);
    if (!worthwhile(pass.from_channels(), kStepDepth, pass.to_channels(), kTileSide) ||
        !enough_pixels(pass.args)) {
      return;
    }
    parts_ = Scratch<Part>(blocks * steps_ * kStepEntries);
    std::atomic<bool> fits = true;
    at::parallel_for(
        0, blocks * pass.live.taps(), grain_rows(pass.from_channels() * kWide), [&](int64_t begin, int64_t end) {
          uint32_t largest = 0;
          for (int64_t i = begin; i < end; ++i) {
            const uint32_t bits = split_tap(
                packed_.data() + i * pass.from_channels() * kWide,
                pass.from_channels(),
                parts_.data() + i * num_blocks(pass.from_channels(), kStepDepth) * kStepEntries);
            largest = std::max(largest, bits);
          }
          if (!splits(largest)) {
            fits = false;
          }
        });
    split_ = fits;
  }

  // Whether there are parts; else only what vectors use.
  bool split() const {
    return split_;
  }
  const PackedWeight<float>& packed() const {
    return packed_;
  }
  SplitPairs pairs(int64_t block, int64_t step) const {
    return {
        parts_.data() + (block * steps_ + step) * kStepEntries,
        kTileEntries,
        kStepEntries,
        2 * kTileEntries};
  }

 private:
  static constexpr int64_t kStepEntries = kParts * 2 * kTileEntries;

  static uint32_t split_tap(const float* rows, int64_t count, Part* to) {
    uint32_t largest = 0;
    alignas(64) float padded[kStepDepth * kWide];
    for (int64_t from = 0; from < count; from += kStepDepth, to += kStepEntries) {
      const float* source = rows + from * kWide;
      if (count - from < kStepDepth) {
        std::fill_n(std::copy_n(source, (count - from) * kWide, padded), (kStepDepth - count + from) * kWide, 0.0f);
        source = padded;
      }
      largest = std::max(
          largest, split_pairs(source, kWide, kStepDepth / 2, kWide, to, kTileEntries, 2 * kTileEntries));
    }
    return largest;
  }

  PackedWeight<float> packed_;
  int64_t steps_;
  Scratch<Part> parts_;
  bool split_ = false;
};

template <typename A>
class TileConvolution;

template <>
class TileConvolution<float> {
 public:
  using Weights = TileWeights;

  TileConvolution(
      const ConvPass& pass, const Region<float>& region, const Weights& weights, const float* bias)
      : vectors_(pass, region, weights.packed(), bias),
        weights_(weights),
        bias_(bias),
        width_(pass.args.width),
        channels_(pass.to_channels()),
        pixels_(weights.split() ? region.pixels() + kOverrun : 0),
        part_stride_(region.blocks() * pixels_ * kStepDepth),
        parts_(Scratch<Part>::zeros(kParts * part_stride_)),
        rows_(pixels_ * kWide) {
    for (int64_t tap = 0; tap < pass.live.taps(); ++tap) {
      const int64_t pixel = region.before() + pass.pixel_offset(tap, region.pitch());
      for (int64_t block = 0; block < region.blocks(); ++block) {
        offsets_.push_back((block * pixels_ + pixel) * kStepDepth);
      }
    }
  }

  void run(
      const Region<float>& region,
      int64_t first_row,
      const ImageView& image,
      int64_t n,
      int64_t begin,
      int64_t end) {
    if (!weights_.split() || !split(region)) {
      vectors_.run(region, first_row, image, n, begin, end);
      return;
    }
    const TileRegisters registers;
    const int64_t pitch = region.pitch(), count = (end - begin - 1) * pitch + width_;
    const Part* first = parts_.data() + first_row * pitch * kStepDepth;
    float* out = static_cast<float*>(image.data) + n * image.batch_stride;
    for (int64_t c = 0; c < channels_; c += kWide) {
      const int64_t columns = std::min(kWide, channels_ - c);
      multiply(first, c / kWide, count, num_blocks(columns, kTileSide));
      for (int64_t row = begin; row < end; ++row) {
        store_row(
            rows_.data() + (row - begin) * pitch * kWide,
            bias_ + c,
            out + row * image.row_stride + c * image.channel_stride,
            image,
            columns);
      }
    }
  }

 private:
  // Whether the region splits.
  bool split(const Region<float>& region) {
    uint32_t largest = 0;
    for (int64_t block = 0; block < region.blocks(); ++block) {
      const uint32_t bits = split_rows(
          region.block(block),
          kStepDepth,
          region.loaded_pixels(),
          parts_.data() + block * pixels_ * kStepDepth,
          part_stride_);
      largest = std::max(largest, bits);
    }
    return splits(largest);
  }

  // rows_ [count][32] = the sums of one block of channels.
  void multiply(const Part* first, int64_t block, int64_t count, int64_t tile_columns) {
    const auto steps = static_cast<int64_t>(offsets_.size());
    for (int64_t step = 0; step < steps; step += kMostSteps) {
      const int64_t some = std::min(kMostSteps, steps - step);
      const SplitPairs weights = weights_.pairs(block, step);
      for (int64_t pixel = 0; pixel < count; pixel += kWide) {
        const int64_t tile_rows = num_blocks(std::min(kWide, count - pixel), kTileSide);
        const SplitRows in{first + pixel * kStepDepth, kStepDepth, part_stride_};
        float* to = rows_.data() + pixel * kWide;
        float* target = step == 0 ? to : sums_;
        find_tile_product(tile_rows, tile_columns)(
            in, offsets_.data() + step, some, weights, target, kWide);
        if (step > 0) {
          add_to(sums_, kWide, tile_rows * kTileSide, tile_columns * kTileSide, to, kWide);
        }
      }
    }
  }

  void store_row(float* sums, const float* bias, float* to, const ImageView& image, int64_t columns) {
    const Vec<float> first = Vec<float>::loadu(bias), second = Vec<float>::loadu(bias + 16);
    const bool direct = image.channel_stride == 1;
    for (int64_t column = 0; column < width_; ++column) {
      float* from = sums + column * kWide;
      float* pixel = direct ? to + column * image.column_stride : from;
      const int64_t count = direct ? columns : kWide;
      vstore(pixel, Vec<float>::loadu(from) + first, std::min<int64_t>(16, count));
      if (count > 16) {
        vstore(pixel + 16, Vec<float>::loadu(from + 16) + second, count - 16);
      }
    }
    if (!direct) {
      transpose(sums, kWide, to, image.channel_stride, width_, columns);
    }
  }

  RowConvolution<float> vectors_;
  const Weights& weights_;
  const float* bias_;
  int64_t width_, channels_;
  int64_t pixels_, part_stride_; // of a block in parts_ [part][block][pixel][32]
  Scratch<Part> parts_;
  Scratch<float> rows_;
  std::vector<int64_t> offsets_; // of the steps, in entries
  alignas(64) float sums_[kWide * kWide];
};

template <typename A>
class TileSums;

// Sums [tap][out][in], both padded to 32: gradient^T, whose rows are runs of pixels, times pairs of pixels of x. Taps
// shift x by whole pixels, so that pairs are kept for either parity.
template <>
class TileSums<float> {
 public:
  TileSums(const MaskedConvArgs& args, const LiveGeometry& live) : args_(args), live_(live) {}

  void start(float* sums) {
    sums_ = sums;
    std::fill_n(sums_, size(args_, live_), 0.0f);
  }

  static int64_t size(const MaskedConvArgs& args, const LiveGeometry& live) {
    return live.taps() * round_up(args.out_channels, kWide) * round_up(args.in_channels, kWide);
  }

  void add(const Region<float>& x, const Region<float>& grad, int64_t grad_row, int64_t rows) {
    const int64_t used = rows * grad.pitch(), count = round_up(used, kStepDepth);
    if (!split_grad(grad, grad_row, used, count) || !split_x(x)) {
      add_by_vectors(x, grad, grad_row, rows);
      return;
    }
    const TileRegisters registers;
    for (int64_t o = 0; o < args_.out_channels; o += kWide) {
      for (int64_t c = 0; c < args_.in_channels; c += kWide) {
        for (int64_t pixel = 0; pixel < count; pixel += kMostPixels) {
          add_pixels(x, o, c, pixel, std::min(kMostPixels, count - pixel) / kStepDepth);
        }
      }
    }
  }

  static void collect(const MaskedConvGradArgs& args, const LiveGeometry& live, int64_t part_stride) {
    const auto& in = args.in;
    const int64_t kernel = in.kernel_rows * in.kernel_columns;
    const int64_t row = round_up(in.in_channels, kWide), plane = row * round_up(in.out_channels, kWide);
    const int64_t work = live.taps() * args.parts * row / 16;
    at::parallel_for(0, in.out_channels, grain_rows(work), [&](int64_t begin, int64_t end) {
      std::vector<float> total(row);
      for (int64_t o = begin; o < end; ++o) {
        float* to = static_cast<float*>(args.grad_weight) + o * in.in_channels * kernel;
        std::fill_n(to, in.in_channels * kernel, 0.0f);
        for (int64_t tap = 0; tap < live.taps(); ++tap) {
          const float* from = static_cast<const float*>(args.sums) + tap * plane + o * row;
          std::fill(total.begin(), total.end(), 0.0f);
          for (int64_t part = 0; part < args.parts; ++part, from += part_stride) {
            add_to(from, row, 1, row, total.data(), row);
          }
          for (int64_t c = 0; c < in.in_channels; ++c) {
            if (live.on(in, tap, o, c)) {
              to[c * kernel + live.index[tap]] = total[c];
            }
          }
        }
      }
    });
  }

 private:
  static constexpr int64_t kMostPixels = 256; // of a sum in the tile registers

  float* target(int64_t tap, int64_t o, int64_t c) const {
    const int64_t row = row_stride();
    return sums_ + (tap * round_up(args_.out_channels, kWide) + o) * row + c;
  }
  int64_t row_stride() const {
    return round_up(args_.in_channels, kWide);
  }

  // grad_ [part][out][count], rows grad_stride_ apart; what lies past the share's pixels is 0. Whether it splits.
  bool split_grad(const Region<float>& grad, int64_t grad_row, int64_t used, int64_t count) {
    const int64_t channels = grad.blocks() * kWide;
    // An odd number of cache lines, so that the rows of a tile lie in different sets.
    const int64_t stride = (num_blocks(count, 32) | 1) * 32;
    if (stride > grad_stride_) {
      grad_stride_ = stride;
      grad_ = Scratch<Part>(kParts * channels * stride);
      run_ = Scratch<float>(kWide * stride);
    }
    uint32_t largest = 0;
    for (int64_t block = 0; block < grad.blocks(); ++block) {
      transpose(
          grad.at(grad_row) + block * grad.plane(), kWide, run_.data(), grad_stride_, used, kWide);
      for (int64_t o = 0; o < kWide; ++o) {
        float* from = run_.data() + o * grad_stride_;
        std::fill_n(from + used, count - used, 0.0f);
        Part* to = grad_.data() + (block * kWide + o) * grad_stride_;
        largest = std::max(largest, split_run(from, count, to, channels * grad_stride_));
      }
    }
    grad_part_ = channels * grad_stride_;
    return splits(largest);
  }

  // x_ [parity][part][16 in][pair of pixels][16][2]
  bool split_x(const Region<float>& x) {
    const int64_t tiles = 2 * x.blocks();
    if (x_tile_ == 0) {
      // Whole steps from the last pixel on.
      x_tile_ = (x.pixels() + kOverrun) / 2 * kStepDepth;
      x_part_ = tiles * x_tile_;
      x_ = Scratch<Part>::zeros(2 * kParts * x_part_);
    }
    uint32_t largest = 0;
    for (int64_t parity = 0; parity < 2; ++parity) {
      if (!reads_parity(x, parity)) {
        continue;
      }
      for (int64_t block = 0; block < x.blocks(); ++block) {
        const uint32_t bits = split_pairs(
            x.block(block) + parity * kWide,
            kWide,
            (x.loaded_pixels() + 1 - parity) / 2,
            kWide,
            x_.data() + parity * kParts * x_part_ + 2 * block * x_tile_,
            x_tile_,
            x_part_);
        largest = std::max(largest, bits);
      }
    }
    return splits(largest);
  }

  // The pixel of x that a tap reads for the share's first one.
  int64_t first_pixel(const Region<float>& x, int64_t tap) const {
    return x.before() + (live_.top + live_.rows[tap]) * x.pitch() + live_.columns[tap];
  }

  bool reads_parity(const Region<float>& x, int64_t parity) const {
    for (int64_t tap = 0; tap < live_.taps(); ++tap) {
      if (first_pixel(x, tap) % 2 == parity) {
        return true;
      }
    }
    return false;
  }

  void add_pixels(const Region<float>& x, int64_t o, int64_t c, int64_t pixel, int64_t steps) {
    alignas(64) float product[kWide * kWide];
    static constexpr std::array<int64_t, kMostPixels / kStepDepth> kOffsets = {
        0, 32, 64, 96, 128, 160, 192, 224};
    const int64_t tile_rows = num_blocks(std::min(kWide, args_.out_channels - o), kTileSide);
    const int64_t tile_columns = num_blocks(std::min(kWide, args_.in_channels - c), kTileSide);
    const auto multiply = find_tile_product(tile_rows, tile_columns);
    const SplitRows grad{grad_.data() + o * grad_stride_ + pixel, grad_stride_, grad_part_};
    for (int64_t tap = 0; tap < live_.taps(); ++tap) {
      const int64_t from = first_pixel(x, tap) + pixel;
      const SplitPairs pairs{
          x_.data() + from % 2 * kParts * x_part_ + c / kTileSide * x_tile_ + from / 2 * kStepDepth,
          x_tile_,
          kTileEntries,
          x_part_};
      multiply(grad, kOffsets.data(), steps, pairs, product, kWide);
      add_to(
          product,
          kWide,
          tile_rows * kTileSide,
          tile_columns * kTileSide,
          target(tap, o, c),
          row_stride());
    }
  }

  void add_by_vectors(const Region<float>& x, const Region<float>& grad, int64_t grad_row, int64_t rows) {
    const auto layout = SumsLayout::of<float>(args_, live_);
    const Scratch<float> memory(layout.weight);
    WeightSums<float> sums(args_, live_);
    sums.start(memory.data());
    sums.add(x, grad, grad_row, rows);
    for (int64_t tap = 0; tap < live_.taps(); ++tap) {
      for (int64_t o = 0; o < args_.out_channels; ++o) {
        const float* from =
            memory.data() + o / kWide * layout.block + tap * args_.in_channels * kWide + o % kWide;
        for (int64_t c = 0; c < args_.in_channels; ++c) {
          target(tap, o, 0)[c] += from[c * kWide];
        }
      }
    }
  }

  const MaskedConvArgs& args_;
  const LiveGeometry& live_;
  float* sums_ = nullptr;
  int64_t grad_stride_ = 0, grad_part_ = 0, x_tile_ = 0, x_part_ = 0;
  Scratch<Part> grad_{0}, x_{0};
  Scratch<float> run_{0};
};

bool tile_sums(const MaskedConvArgs& args) {
  return args.dtype == Dtype::Float32 && enough_pixels(args) &&
      worthwhile(args.out_channels, kTileSide, args.in_channels, kTileSide);
}

void masked_conv_tiles(const MaskedConvArgs& args) {
  if (args.dtype == Dtype::Float32) {
    conv_forward<TileConvolution, float>(args);
  } else {
    conv_forward<RowConvolution, double>(args);
  }
}

void masked_conv_grad_tiles(const MaskedConvGradArgs& args) {
  if (tile_sums(args.in)) {
    conv_backward<TileConvolution, TileSums, float>(args);
  } else if (args.in.dtype == Dtype::Float32) {
    conv_backward<TileConvolution, WeightSums, float>(args);
  } else {
    conv_backward<RowConvolution, WeightSums, double>(args);
  }
}

int64_t masked_conv_sums_tiles(const MaskedConvArgs& args) {
  if (tile_sums(args)) {
    return part_size<TileSums, float>(args);
  }
  return args.dtype == Dtype::Float32 ? part_size<WeightSums, float>(args)
                                      : part_size<WeightSums, double>(args);
}

} // namespace
} // namespace CPU_CAPABILITY

void fill_amx(PixelKernels& kernels) {
  kernels.masked_conv = masked_conv_tiles;
  kernels.masked_conv_grad = masked_conv_grad_tiles;
  kernels.masked_conv_sums = masked_conv_sums_tiles;
}

} // namespace dgm_fast

#endif
