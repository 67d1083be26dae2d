// Blocks under a staircase mask: into the layouts of the block product, and results back. No product is formed
// here: these passes touch each number once or twice where the product uses it tens of times.

#include "dispatch.h"
#include "masked_table.h"

namespace dgm_fast {
inline namespace CPU_CAPABILITY {
namespace {

using c10::BFloat16;

int64_t selected(const int64_t* order, int64_t index) {
  return order == nullptr ? index : order[index];
}

// visit(Type<T>{}) for the types of the block product.
template <typename F>
void with_block_type(Dtype dtype, F&& visit) {
  switch (dtype) {
    case Dtype::Float64:
      return visit(Type<double>{});
    case Dtype::BFloat16:
      return visit(Type<BFloat16>{});
    default:
      return visit(Type<float>{});
  }
}

// One row of a block: `count` numbers of `row` from the selected columns, then zeros.
template <typename T>
void copy_row(const T* row, const int64_t* columns, int64_t first, int64_t count, int64_t fill, T* to) {
  if (columns == nullptr) {
    if constexpr (std::is_same_v<T, acc_t<T>>) {
      // Rows are short: a call for each costs as much as the copy.
      constexpr int64_t lanes = kLanes<T>;
      int64_t j = 0;
      for (; j + lanes <= count; j += lanes) {
        vstore(to + j, vload(row + first + j));
      }
      if (j < count) {
        vstore(to + j, vload(row + first + j, count - j), std::min(lanes, fill - j));
        j += lanes;
      }
      for (; j < fill; j += lanes) {
        vstore(to + j, Vec<T>(0), std::min(lanes, fill - j));
      }
      return;
    }
    std::copy_n(row + first, count, to);
  } else {
    for (int64_t j = 0; j < count; ++j) {
      to[j] = row[columns[first + j]];
    }
  }
  std::fill_n(to + count, fill - count, T(0));
}

// Two rows of numbers of 16 bits, interleaved.
void interleave(const uint16_t* a, const uint16_t* b, int64_t count, uint32_t* to) {
  for (int64_t j = 0; j < count; ++j) {
    to[j] = a[j] | static_cast<uint32_t>(b[j]) << 16;
  }
}

void block(const BlockArgs& args) {
  with_block_type(args.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    const auto* from = static_cast<const T*>(args.from);
    auto* to = static_cast<T*>(args.to);
    const auto row_into = [&](int64_t r, T* out) {
      const bool inside = r < args.rows;
      int64_t count = inside ? args.columns : 0;
      if (inside && args.ends != nullptr) {
        count = std::clamp<int64_t>(
            args.ends[args.first_row + r] - args.first_column, 0, args.columns);
      }
      const T* row = inside
          ? from + selected(args.selection.rows, args.first_row + r) * args.from_stride
          : from;
      copy_row(row, args.selection.columns, args.first_column, count, args.fill_columns, out);
    };
    if constexpr (std::is_same_v<T, BFloat16>) {
      if (args.paired) {
        // Rows that are no whole rows of memory go through a buffer in the first-level cache.
        constexpr int64_t kMaxColumns = 128;
        BFloat16 rows[2][kMaxColumns];
        for (int64_t r = 0; r < args.fill_rows; r += 2) {
          const uint16_t* pair[2];
          for (int i = 0; i < 2; ++i) {
            const bool whole = args.selection.columns == nullptr && args.fill_columns == args.columns &&
                r + i < args.rows &&
                (args.ends == nullptr ||
                 args.ends[args.first_row + r + i] >= args.first_column + args.columns);
            if (!whole) {
              row_into(r + i, rows[i]);
            }
            pair[i] = reinterpret_cast<const uint16_t*>(
                whole ? from +
                        selected(args.selection.rows, args.first_row + r + i) * args.from_stride +
                        args.first_column
                      : rows[i]);
          }
          interleave(
              pair[0],
              pair[1],
              args.fill_columns,
              reinterpret_cast<uint32_t*>(to + r * args.to_stride));
        }
        return;
      }
    }
    for (int64_t r = 0; r < args.fill_rows; ++r) {
      row_into(r, to + r * args.to_stride);
    }
  });
}

template <typename T>
void transpose_rows(
    const T* from, int64_t from_stride, int64_t rows, int64_t columns, T* to, int64_t to_stride) {
  constexpr int kTile = sizeof(T) == 2 ? 32 : 16;
  for (int64_t c = 0; c < columns; c += kTile) {
    for (int64_t r = 0; r < rows; r += kTile) {
      at::vec::transpose_mxn<T>(
          from + r * from_stride + c,
          from_stride,
          to + c * to_stride + r,
          to_stride,
          static_cast<int>(std::min<int64_t>(kTile, rows - r)),
          static_cast<int>(std::min<int64_t>(kTile, columns - c)));
    }
  }
}

void transpose_paired(const TransposeArgs& args) {
  const auto* from = static_cast<const BFloat16*>(args.from);
  auto* to = static_cast<BFloat16*>(args.to);
  int64_t done = 0;
  if (args.selected == nullptr && args.from_stride % 2 == 0) {
    // A pair of columns is one word of 32 bits, moved as a float.
    done = args.columns / 2 * 2;
    transpose_rows(
        reinterpret_cast<const float*>(from + args.first_column),
        args.from_stride / 2,
        args.rows,
        done / 2,
        reinterpret_cast<float*>(to),
        args.to_stride);
  }
  for (int64_t c = done; c < args.columns; ++c) {
    const BFloat16* column = from + selected(args.selected, args.first_column + c);
    BFloat16* out = to + c / 2 * 2 * args.to_stride + c % 2;
    for (int64_t r = 0; r < args.rows; ++r) {
      out[2 * r] = column[r * args.from_stride];
    }
  }
  for (int64_t c = 0; c < args.fill_columns; ++c) {
    BFloat16* out = to + c / 2 * 2 * args.to_stride + c % 2;
    for (int64_t r = c < args.columns ? args.rows : 0; r < args.fill_rows; ++r) {
      out[2 * r] = BFloat16(0);
    }
  }
}

void transpose(const TransposeArgs& args) {
  if (args.paired) {
    return transpose_paired(args);
  }
  with_block_type(args.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    const auto* from = static_cast<const T*>(args.from);
    auto* to = static_cast<T*>(args.to);
    if (args.selected == nullptr) {
      transpose_rows(
          from + args.first_column, args.from_stride, args.rows, args.columns, to, args.to_stride);
    } else {
      for (int64_t c = 0; c < args.columns; ++c) {
        const T* column = from + args.selected[args.first_column + c];
        for (int64_t r = 0; r < args.rows; ++r) {
          to[c * args.to_stride + r] = column[r * args.from_stride];
        }
      }
    }
    for (int64_t c = 0; c < args.fill_columns; ++c) {
      const int64_t used = c < args.columns ? args.rows : 0;
      std::fill_n(to + c * args.to_stride + used, args.fill_rows - used, T(0));
    }
  });
}

void store(const StoreArgs& args) {
  with_block_type(args.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    using A = acc_t<T>;
    constexpr int64_t lanes = kLanes<A>;
    const auto* from = static_cast<const A*>(args.from);
    for (int64_t r = 0; r < args.rows; ++r) {
      int64_t used = from == nullptr ? 0 : args.columns;
      if (from != nullptr && args.ends != nullptr) {
        used = std::clamp<int64_t>(
            args.ends[args.first_row + r] - args.first_column, 0, args.columns);
      }
      const A* row = from + r * args.from_stride;
      T* out = static_cast<T*>(args.to) +
          selected(args.selection.rows, args.first_row + r) * args.to_stride;
      if (args.selection.columns != nullptr) {
        const int64_t* columns = args.selection.columns + args.first_column;
        for (int64_t j = 0; j < args.columns; ++j) {
          out[columns[j]] = static_cast<T>(j < used ? row[j] : A(0));
        }
        continue;
      }
      out += args.first_column;
      for (int64_t j = 0; j < args.columns; j += lanes) {
        const Vec<A> value = j < used ? vload(row + j, used - j) : Vec<A>(0);
        vwrite(out + j, value, args.stream, args.columns - j);
      }
    }
    finish_streaming(args.stream);
  });
}

void store_transposed(const StoreTransposedArgs& args) {
  with_block_type(args.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    using A = acc_t<T>;
    constexpr int64_t kTile = 16;
    const auto* from = static_cast<const A*>(args.from);
    const auto* bias = static_cast<const A*>(args.bias);
    auto* to = static_cast<T*>(args.to);
    A tile[kTile * kTile], offset[kTile];
    for (int64_t c = 0; c < args.columns; c += kTile) {
      const int64_t columns = std::min(kTile, args.columns - c);
      const int64_t first = args.first_column + c;
      for (int64_t j = 0; j < kTile; ++j) {
        offset[j] = bias != nullptr && j < columns ? bias[selected(args.selected, first + j)] : A(0);
      }
      for (int64_t r = 0; r < args.rows; r += kTile) {
        const int64_t rows = std::min(kTile, args.rows - r);
        transpose_rows(
            from + c * args.from_stride + r, args.from_stride, columns, rows, tile, kTile);
        for (int64_t i = 0; i < rows; ++i) {
          T* out = to + (r + i) * args.to_stride;
          if (args.selected == nullptr) {
            for (int64_t j = 0; j < columns; j += kLanes<A>) {
              const Vec<A> value =
                  Vec<A>::loadu(tile + i * kTile + j) + Vec<A>::loadu(offset + j);
              vstore(out + first + j, value, columns - j);
            }
          } else {
            for (int64_t j = 0; j < columns; ++j) {
              out[args.selected[first + j]] = static_cast<T>(tile[i * kTile + j] + offset[j]);
            }
          }
        }
      }
    }
  });
}

} // namespace
} // namespace CPU_CAPABILITY

void fill(MaskedKernels& kernels) {
  kernels.block = block;
  kernels.transpose = transpose;
  kernels.store = store;
  kernels.store_transposed = store_transposed;
}

} // namespace dgm_fast
