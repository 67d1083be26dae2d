// Matrix products of one thread over tiles: C = A B (+ bias), or C += A B, float or double.
//
// The library's product is tuned for the processors of one maker and reaches half the rate on others. B is packed
// once into panels of kColumns columns that stay in the first-level cache; A is read where it lies, whatever its
// strides, since an entry of A enters as a broadcast load.

#include "dispatch.h"
#include "product_table.h"

namespace dgm_fast {
inline namespace CPU_CAPABILITY {
namespace {

// Accumulators kRows x kVectors, the vectors of B and a broadcast fill the registers.
#if defined(CPU_CAPABILITY_AVX512)
constexpr int kRows = 8;
#else
constexpr int kRows = 4;
#endif
constexpr int kVectors = 3;
// Depth of a panel of B: with 48 floats a row, 36 KiB.
constexpr int64_t kDepth = 192;

template <typename A>
inline constexpr int64_t kColumns = kVectors * kLanes<A>;

int64_t panels(int64_t columns, int64_t width) {
  return (columns + width - 1) / width;
}

int64_t product_packed_size(Dtype dtype, int64_t depth, int64_t columns) {
  const int64_t width = dtype == Dtype::Float64 ? kColumns<double> : kColumns<float>;
  return panels(columns, width) * width * depth;
}

// [panel][depth][kColumns], columns past the end 0.
void product_pack(const ProductPackArgs& args) {
  with_sum_type(args.dtype, [&](auto t) {
    using A = typename decltype(t)::type;
    constexpr int64_t width = kColumns<A>;
    const auto* from = static_cast<const A*>(args.b);
    auto* to = static_cast<A*>(args.packed);
    const int64_t count = panels(args.columns, width);
    at::parallel_for(0, count, grain_rows(args.depth * width), [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; panel < end; ++panel) {
        const int64_t first = panel * width;
        const int64_t used = std::min(width, args.columns - first);
        A* out = to + panel * width * args.depth;
        if (args.column_stride == 1) {
          for (int64_t k = 0; k < args.depth; ++k) {
            const A* row = from + k * args.row_stride + first;
            std::copy_n(row, used, out + k * width);
            std::fill_n(out + k * width + used, width - used, A(0));
          }
        } else {
          // A few rows of the panel at a time: they stay in the cache while its columns are read.
          constexpr int64_t kBlock = 16;
          for (int64_t k0 = 0; k0 < args.depth; k0 += kBlock) {
            const int64_t k1 = std::min(args.depth, k0 + kBlock);
            for (int64_t n = 0; n < width; ++n) {
              const A* column = from + (first + std::min(n, used - 1)) * args.column_stride;
              for (int64_t k = k0; k < k1; ++k) {
                out[k * width + n] = n < used ? column[k * args.row_stride] : A(0);
              }
            }
          }
        }
      }
    });
  });
}

// kRows rows of A times one panel of B, from `start` (or the bias) on. Rows past `rows` repeat the last one and
// are not stored.
template <typename A>
inline void tile(
    const A* a,
    int64_t row_stride,
    int64_t depth_stride,
    int64_t rows,
    const A* panel,
    int64_t depth,
    A* c,
    int64_t c_stride,
    int64_t columns,
    bool add,
    const A* row_bias,
    const A* column_bias) {
  constexpr int lanes = kLanes<A>;
  Vec<A> sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) {
      sum[r][v] = Vec<A>(0);
    }
  }
  const A* row[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    row[r] = a + std::min<int64_t>(r, rows - 1) * row_stride;
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec<A> b[kVectors];
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) {
      b[v] = Vec<A>::loadu(panel + k * kColumns<A> + v * lanes);
    }
    const int64_t at = k * depth_stride;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec<A> broadcast(row[r][at]);
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) {
        sum[r][v] = at::vec::fmadd(broadcast, b[v], sum[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    if (r >= rows) {
      break;
    }
    A* out = c + r * c_stride;
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) {
      const int64_t count = std::min<int64_t>(lanes, columns - v * lanes);
      if (count <= 0) {
        break;
      }
      Vec<A> value = sum[r][v];
      if (add) {
        value = value + vload(out + v * lanes, count);
      } else if (row_bias != nullptr) {
        value = value + Vec<A>(row_bias[r]);
      } else if (column_bias != nullptr) {
        value = value + vload(column_bias + v * lanes, count);
      }
      vstore(out + v * lanes, value, count);
    }
  }
}

void product(const ProductArgs& args) {
  with_sum_type(args.dtype, [&](auto t) {
    using A = typename decltype(t)::type;
    constexpr int64_t width = kColumns<A>;
    const auto* a = static_cast<const A*>(args.a);
    const auto* packed = static_cast<const A*>(args.packed);
    const auto* row_bias = static_cast<const A*>(args.row_bias);
    const auto* column_bias = static_cast<const A*>(args.column_bias);
    auto* c = static_cast<A*>(args.c);
    // A product without depth still has its bias (or zeros) to write.
    for (int64_t k = 0; k == 0 || k < args.depth; k += kDepth) {
      const int64_t depth = std::min(kDepth, args.depth - k);
      const bool add = args.add || k > 0;
      for (int64_t n = 0; n < args.columns; n += width) {
        const A* panel = packed + n * args.depth + k * width;
        for (int64_t m = 0; m < args.rows; m += kRows) {
          tile<A>(
              a + m * args.a_row_stride + k * args.a_column_stride,
              args.a_row_stride,
              args.a_column_stride,
              std::min<int64_t>(kRows, args.rows - m),
              panel,
              depth,
              c + m * args.c_stride + n,
              args.c_stride,
              std::min(width, args.columns - n),
              add,
              row_bias == nullptr ? nullptr : row_bias + m,
              column_bias == nullptr ? nullptr : column_bias + n);
        }
      }
    }
  });
}

} // namespace
} // namespace CPU_CAPABILITY

void fill(ProductKernels& kernels) {
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  kernels.product_packed_size = product_packed_size;
  kernels.product_pack = product_pack;
  kernels.product = product;
#else
  // Emulated vectors do not reach the library's rate.
  kernels.product_packed_size = nullptr;
  kernels.product_pack = nullptr;
  kernels.product = nullptr;
#endif
}

} // namespace dgm_fast
