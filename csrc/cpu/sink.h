// Operands that all rows share, and where their gradients go.
#pragma once

#include "dispatch.h"

#include <vector>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

// An operand that all rows share, once, in the sum's dtype.
template <typename T>
inline std::vector<acc_t<T>> shared_row(const Operand& operand, int64_t size) {
  const T* p = row<T>(operand, 0);
  return std::vector<acc_t<T>>(p, p + size);
}

// Where a row's gradient of one operand goes: its own dense row, or added into this chunk's partial row.
template <typename T>
struct GradSink {
  using A = acc_t<T>;
  T* dense = nullptr;
  A* partial = nullptr;
  bool stream = false;

  GradSink(void* grad, bool shared, int64_t size, int64_t chunk, bool stream_in = false)
      : stream(stream_in) {
    if (grad == nullptr) {
      return;
    }
    if (shared) {
      partial = static_cast<A*>(grad) + chunk * size;
      std::fill_n(partial, size, A(0));
    } else {
      dense = static_cast<T*>(grad);
    }
  }

  bool wanted() const {
    return dense != nullptr || partial != nullptr;
  }

  void put(int64_t row_offset, int64_t i, const Vec<A>& value) const {
    if (dense != nullptr) {
      vwrite(dense + row_offset + i, value, stream);
    } else if (partial != nullptr) {
      (Vec<A>::loadu(partial + i) + value).store(partial + i);
    }
  }

  void put(int64_t row_offset, int64_t i, const Vec<A>& value, int64_t count) const {
    if (dense != nullptr) {
      vstore(dense + row_offset + i, value, count);
    } else if (partial != nullptr) {
      vstore(partial + i, vload(partial + i, count) + value, count);
    }
  }
};

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
