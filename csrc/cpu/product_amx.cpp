// Products over tiles of float32 on the matrix units.

#include "amx.h"
#include "dispatch.h"
#include "product_table.h"
#include "scratch.h"
#include "transpose.h"

#include <ATen/Parallel.h>

#include <array>
#include <atomic>
#include <vector>

#if defined(DGM_FAST_AMX)

namespace dgm_fast {
inline namespace CPU_CAPABILITY {
namespace {

// What takes double, and floats that do not split.
ProductKernels vectors;

// A packed factor begins with one line that says in which form it is.
constexpr int64_t kHeader = 16;
constexpr float kSplit = 1.0f, kWhole = 0.0f;
constexpr int64_t kPanel = 2 * kTileSide;
constexpr int64_t kStepEntries = kParts * kPanel * kStepDepth;
// Steps that the tile registers add up.
constexpr int64_t kMostSteps = 8;

int64_t blocks(int64_t n, int64_t size) {
  return (n + size - 1) / size;
}

Part* parts_of(float* packed) {
  return reinterpret_cast<Part*>(packed + kHeader);
}

int64_t packed_size(Dtype dtype, int64_t depth, int64_t columns) {
  const int64_t whole = vectors.product_packed_size(dtype, depth, columns);
  if (dtype != Dtype::Float32) {
    return whole;
  }
  const int64_t entries = blocks(columns, kPanel) * blocks(depth, kStepDepth) * kStepEntries;
  return kHeader + std::max(whole, entries / 2);
}

// to [32][32] = rows by columns of a matrix, the rest 0.
void copy_block(
    const float* from, int64_t row_stride, int64_t column_stride, int64_t rows, int64_t columns, float* to) {
  if (rows < kStepDepth || columns < kPanel) {
    std::fill_n(to, kStepDepth * kPanel, 0.0f);
  }
  if (column_stride == 1) {
    for (int64_t row = 0; row < rows; ++row) {
      std::copy_n(from + row * row_stride, columns, to + row * kPanel);
    }
  } else if (row_stride == 1) {
    transpose(from, column_stride, to, kPanel, columns, rows);
  } else {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < columns; ++column) {
        to[row * kPanel + column] = from[row * row_stride + column * column_stride];
      }
    }
  }
}

bool worth_tiles(int64_t depth, int64_t columns) {
  return 5 * blocks(depth, kStepDepth) * kStepDepth * blocks(columns, kTileSide) * kTileSide <= 8 * depth * columns;
}

// [panel][step][part][16 columns][pair of terms][16][2]; whether all of it splits.
bool pack_parts(const ProductPackArgs& args, Part* to) {
  const auto* from = static_cast<const float*>(args.b);
  const int64_t steps = blocks(args.depth, kStepDepth);
  std::atomic<bool> fits = true;
  at::parallel_for(0, blocks(args.columns, kPanel), grain_rows(args.depth * kPanel), [&](int64_t begin, int64_t end) {
    alignas(64) float block[kStepDepth * kPanel];
    uint32_t largest = 0;
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t column = panel * kPanel;
      for (int64_t step = 0; step < steps; ++step) {
        const int64_t k = step * kStepDepth;
        copy_block(
            from + k * args.row_stride + column * args.column_stride,
            args.row_stride,
            args.column_stride,
            std::min(kStepDepth, args.depth - k),
            std::min(kPanel, args.columns - column),
            block);
        const uint32_t bits = split_pairs(
            block,
            kPanel,
            kStepDepth / 2,
            kPanel,
            to + (panel * steps + step) * kStepEntries,
            kTileEntries,
            2 * kTileEntries);
        largest = std::max(largest, bits);
      }
    }
    if (!splits(largest)) {
      fits = false;
    }
  });
  return fits;
}

void pack(const ProductPackArgs& args) {
  if (args.dtype != Dtype::Float32) {
    vectors.product_pack(args);
    return;
  }
  auto* packed = static_cast<float*>(args.packed);
  if (worth_tiles(args.depth, args.columns) && pack_parts(args, parts_of(packed))) {
    packed[0] = kSplit;
    return;
  }
  packed[0] = kWhole;
  ProductPackArgs whole = args;
  whole.packed = packed + kHeader;
  vectors.product_pack(whole);
}

// The factor again, in the vectors' form: the three parts add up to the floats.
std::vector<float> whole_factor(const ProductArgs& args, const Part* parts) {
  const int64_t steps = blocks(args.depth, kStepDepth);
  std::vector<float> matrix(args.depth * args.columns);
  for (int64_t k = 0; k < args.depth; ++k) {
    for (int64_t column = 0; column < args.columns; ++column) {
      const Part* entry = parts + (column / kPanel * steps + k / kStepDepth) * kStepEntries +
          column % kPanel / kTileSide * kTileEntries + k % kStepDepth / 2 * kStepDepth +
          column % kTileSide * 2 + k % 2;
      float sum = 0;
      for (int64_t p = kParts - 1; p >= 0; --p) {
        sum += c10::detail::f32_from_bits(entry[p * 2 * kTileEntries]);
      }
      matrix[k * args.columns + column] = sum;
    }
  }
  std::vector<float> packed(vectors.product_packed_size(args.dtype, args.depth, args.columns));
  vectors.product_pack({args.dtype, args.depth, args.columns, matrix.data(), args.columns, 1, packed.data()});
  return packed;
}

// c = sums (+ bias), or += them.
void store_sums(
    const ProductArgs& args, const float* sums, int64_t row, int64_t rows, int64_t column, int64_t columns, bool add) {
  const auto* row_bias = static_cast<const float*>(args.row_bias);
  const auto* column_bias = static_cast<const float*>(args.column_bias);
  for (int64_t c = 0; c < columns; c += kTileSide) {
    const int64_t count = std::min(kTileSide, columns - c);
    const Vec<float> shared = !add && column_bias != nullptr ? vload(column_bias + column + c, count) : Vec<float>(0);
    for (int64_t r = 0; r < rows; ++r) {
      float* to = static_cast<float*>(args.c) + (row + r) * args.c_stride + column + c;
      Vec<float> value = Vec<float>::loadu(sums + r * kPanel + c);
      if (add) {
        value = value + vload(to, count);
      } else {
        value = value + (row_bias == nullptr ? shared : Vec<float>(row_bias[row + r]));
      }
      vstore(to, value, count);
    }
  }
}

// Two tiles' rows of A in parts, [part][row][depth to whole steps].
class LeftRows {
 public:
  explicit LeftRows(const ProductArgs& args)
      : args_(args),
        depth_(blocks(args.depth, kStepDepth) * kStepDepth),
        // An odd number of cache lines, so that the rows of a tile lie in different sets.
        stride_((depth_ / 32 | 1) * 32),
        parts_(Scratch<Part>::zeros(kParts * kPanel * stride_)) {}

  // Whether rows [row, row + rows) split. Rows past them keep what they had: of C they give nothing that is stored.
  bool load(int64_t row, int64_t rows) {
    const auto* a = static_cast<const float*>(args_.a) + row * args_.a_row_stride;
    const int64_t whole = args_.a_column_stride == 1 ? args_.depth / kStepDepth * kStepDepth : 0;
    uint32_t largest = 0;
    for (int64_t r = 0; r < rows && whole > 0; ++r) {
      largest = std::max(
          largest, split_run(a + r * args_.a_row_stride, whole, row_parts(r), kPanel * stride_));
    }
    alignas(64) float block[kPanel * kStepDepth];
    for (int64_t k = whole; k < depth_; k += kStepDepth) {
      copy_block(
          a + k * args_.a_column_stride,
          args_.a_row_stride,
          args_.a_column_stride,
          rows,
          std::min(kStepDepth, args_.depth - k),
          block);
      for (int64_t r = 0; r < rows; ++r) {
        largest = std::max(
            largest, split_run(block + r * kStepDepth, kStepDepth, row_parts(r) + k, kPanel * stride_));
      }
    }
    return splits(largest);
  }

  SplitRows from(int64_t step) const {
    return {parts_.data() + step * kStepDepth, stride_, kPanel * stride_};
  }

 private:
  Part* row_parts(int64_t row) const {
    return parts_.data() + row * stride_;
  }

  const ProductArgs& args_;
  int64_t depth_, stride_;
  Scratch<Part> parts_;
};

void product(const ProductArgs& args) {
  auto* packed = const_cast<float*>(static_cast<const float*>(args.packed));
  ProductArgs whole = args;
  if (args.dtype != Dtype::Float32 || packed[0] == kWhole) {
    if (args.dtype == Dtype::Float32) {
      whole.packed = packed + kHeader;
    }
    vectors.product(whole);
    return;
  }
  static constexpr std::array<int64_t, kMostSteps> kOffsets = {0, 32, 64, 96, 128, 160, 192, 224};
  alignas(64) float sums[kPanel * kPanel];
  const Part* parts = parts_of(packed);
  const int64_t steps = blocks(args.depth, kStepDepth);
  std::vector<float> factor;
  LeftRows left(args);
  const TileRegisters registers;
  for (int64_t row = 0; row < args.rows; row += kPanel) {
    const int64_t rows = std::min(kPanel, args.rows - row);
    if (!left.load(row, rows)) {
      if (factor.empty()) {
        factor = whole_factor(args, parts);
        whole.packed = factor.data();
      }
      whole.rows = rows;
      whole.a = static_cast<const float*>(args.a) + row * args.a_row_stride;
      whole.c = static_cast<float*>(args.c) + row * args.c_stride;
      whole.row_bias = args.row_bias == nullptr ? nullptr : static_cast<const float*>(args.row_bias) + row;
      vectors.product(whole);
      continue;
    }
    for (int64_t column = 0; column < args.columns; column += kPanel) {
      const int64_t columns = std::min(kPanel, args.columns - column);
      const auto multiply = find_tile_product(blocks(rows, kTileSide), blocks(columns, kTileSide));
      for (int64_t step = 0; step < steps; step += kMostSteps) {
        const Part* right = parts + (column / kPanel * steps + step) * kStepEntries;
        multiply(
            left.from(step),
            kOffsets.data(),
            std::min(kMostSteps, steps - step),
            {right, kTileEntries, kStepEntries, 2 * kTileEntries},
            sums,
            kPanel);
        store_sums(args, sums, row, rows, column, columns, args.add || step > 0);
      }
    }
  }
}

} // namespace
} // namespace CPU_CAPABILITY

void fill_amx(ProductKernels& kernels) {
  vectors = kernels;
  kernels.product_packed_size = packed_size;
  kernels.product_pack = pack;
  kernels.product = product;
}

} // namespace dgm_fast

#endif
