// Between rows of parameters in memory, one row an element, and columns: parameter k of lane l at [k * lanes + l].
#pragma once

#include "operand.h"
#include "transpose.h"
#include "vec.h"

#include <vector>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

// Where the rows of a vector of elements begin. Lanes past the last element repeat it.
template <int lanes>
struct LaneOffsets {
  int64_t at[lanes];
  bool uniform = true; // `step` apart
  int64_t step = 0;

  LaneOffsets(const RowMap& map, int64_t first, int64_t count) {
    int64_t digit[RowMap::kMaxDims] = {};
    int64_t rest = first + map.first;
    int64_t offset = 0;
    for (int d = map.ndim - 1; d >= 0; --d) {
      const int64_t quotient = d > 0 ? rest / map.size[d] : 0;
      digit[d] = rest - quotient * map.size[d];
      offset += digit[d] * map.stride[d];
      rest = quotient;
    }
    const int inner = map.ndim - 1;
    if (inner <= 0 || digit[inner] + count <= map.size[inner]) {
      step = inner < 0 ? 0 : map.stride[inner];
      for (int64_t l = 0; l < lanes; ++l) {
        at[l] = offset + std::min(l, count - 1) * step;
      }
      return;
    }
    uniform = false;
    for (int64_t l = 0; l < lanes; ++l) {
      at[l] = offset;
      if (l + 1 >= count) {
        continue;
      }
      for (int d = inner; d >= 0; --d) {
        offset += map.stride[d];
        if (++digit[d] < map.size[d] || d == 0) {
          break;
        }
        digit[d] = 0;
        offset -= map.size[d] * map.stride[d];
      }
    }
  }
};

// Rows of `size` parameters, `stride` apart within a row, into columns. `buffer` has room for them once more.
template <typename T>
inline void load_columns(
    const T* data,
    const LaneOffsets<kStep<T>>& offsets,
    int64_t stride,
    int64_t size,
    int64_t count,
    acc_t<T>* columns,
    acc_t<T>* buffer) {
  using A = acc_t<T>;
  constexpr int lanes = kStep<T>;
  if (offsets.uniform && offsets.step == 1 && count == lanes) {
    for (int64_t k = 0; k < size; ++k) {
      vload(data + offsets.at[0] + k * stride).store(columns + k * lanes);
    }
    return;
  }
  if constexpr (std::is_same_v<T, A>) {
    if (offsets.uniform && stride == 1) {
      transpose(data + offsets.at[0], offsets.step, columns, int64_t{lanes}, count, size);
      return;
    }
  }
  for (int64_t l = 0; l < count; ++l) {
    const T* row = data + offsets.at[l];
    A* to = buffer + l * size;
    if (stride == 1) {
      for (int64_t k = 0; k < size; k += lanes) {
        vstore(to + k, vload(row + k, size - k), size - k);
      }
    } else {
      for (int64_t k = 0; k < size; ++k) {
        to[k] = static_cast<A>(row[k * stride]);
      }
    }
  }
  transpose(buffer, size, columns, int64_t{lanes}, count, size);
}

// Columns into dense rows.
template <typename T>
inline void store_columns(
    const acc_t<T>* columns, int64_t size, int64_t count, T* rows, acc_t<T>* buffer) {
  constexpr int lanes = kStep<T>;
  if constexpr (std::is_same_v<T, acc_t<T>>) {
    transpose(columns, int64_t{lanes}, rows, size, size, count);
  } else {
    transpose(columns, int64_t{lanes}, buffer, size, size, count);
    for (int64_t i = 0; i < count * size; i += lanes) {
      vstore(rows + i, vload(buffer + i, count * size - i), count * size - i);
    }
  }
}

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
