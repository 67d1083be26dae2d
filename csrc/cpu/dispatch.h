// From run-time dtypes to template arguments, and work division.
#pragma once

#include "operand.h"
#include "vec.h"

#include <ATen/Parallel.h>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

template <typename T>
struct Type {
  using type = T;
};

// visit(Type<T>{}) for the floating type T behind dtype.
template <typename F>
inline void with_floating(Dtype dtype, F&& visit) {
  switch (dtype) {
    case Dtype::Float32:
      return visit(Type<float>{});
    case Dtype::Float64:
      return visit(Type<double>{});
    case Dtype::BFloat16:
      return visit(Type<c10::BFloat16>{});
    default:
      return visit(Type<c10::Half>{});
  }
}

// visit(Type<A>{}) for operands that come in the sum's dtype.
template <typename F>
inline void with_sum_type(Dtype dtype, F&& visit) {
  if (dtype == Dtype::Float64) {
    return visit(Type<double>{});
  }
  return visit(Type<float>{});
}

// visit(Type<X>{}) for data beside parameters of type T: T itself, its sum's type, or uint8. The caller has
// converted everything else.
template <typename T, typename F>
inline void with_data(Dtype dtype, F&& visit) {
  if (dtype == Dtype::UInt8) {
    return visit(Type<uint8_t>{});
  }
  if constexpr (!std::is_same_v<T, acc_t<T>>) {
    if (dtype == Dtype::Float32) {
      return visit(Type<acc_t<T>>{});
    }
  }
  return visit(Type<T>{});
}

// visit(Type<X>{}) for data beside parameters of type T that is of type T itself or of its sum's.
template <typename T, typename F>
inline void with_own_or_sum_type(Dtype dtype, F&& visit) {
  if constexpr (!std::is_same_v<T, acc_t<T>>) {
    if (dtype == Dtype::Float32) {
      return visit(Type<acc_t<T>>{});
    }
  }
  return visit(Type<T>{});
}

// Below this many elements of transcendental work a second thread costs more than it brings.
inline constexpr int64_t kGrainElements = 16384;

inline int64_t grain_rows(int64_t row_elements) {
  return std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, row_elements));
}

// Row range of one of `chunks` equal parts.
struct Range {
  int64_t begin, end;
};

inline Range chunk_range(int64_t rows, int64_t chunks, int64_t chunk) {
  const int64_t per = (rows + chunks - 1) / chunks;
  return {std::min(rows, chunk * per), std::min(rows, (chunk + 1) * per)};
}

template <typename T>
inline const T* row(const Operand& operand, int64_t index) {
  return static_cast<const T*>(operand.data) + operand.rows(index);
}

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
