// Operands that all rows share, and where their gradients go.
#pragma once

#include "dispatch.h"
#include "sums.h"

#include <vector>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

// An operand that all rows share, once, in the sum's dtype.
template <typename T>
inline std::vector<acc_t<T>> shared_row(const Operand& operand, int64_t size) {
  const T* p = row<T>(operand, 0);
  return std::vector<acc_t<T>>(p, p + size);
}

// Where a row's gradient of one operand goes: its own dense row, or added into this chunk's partial row. next_row()
// follows each row, finish() the chunk.
template <typename T>
struct GradSink {
  using A = acc_t<T>;
  T* dense = nullptr;
  A* partial = nullptr;
  RowSums<A> sums;
  bool stream = false;

  GradSink(void* grad, bool shared, int64_t size, int64_t chunk, bool stream_in = false)
      : sums(grad != nullptr && shared ? size : 0), stream(stream_in) {
    if (grad == nullptr) {
      return;
    }
    if (shared) {
      partial = static_cast<A*>(grad) + chunk * size;
    } else {
      dense = static_cast<T*>(grad);
    }
  }

  bool wanted() const {
    return dense != nullptr || partial != nullptr;
  }

  void put(int64_t row_offset, int64_t i, const Vec<A>& value) {
    if (dense != nullptr) {
      vwrite(dense + row_offset + i, value, stream);
    } else if (partial != nullptr) {
      A* p = sums.data() + i;
      (Vec<A>::loadu(p) + value).store(p);
    }
  }

  void put(int64_t row_offset, int64_t i, const Vec<A>& value, int64_t count) {
    if (dense != nullptr) {
      vstore(dense + row_offset + i, value, count);
    } else if (partial != nullptr) {
      A* p = sums.data() + i;
      vstore(p, vload(p, count) + value, count);
    }
  }
};

template <typename... Sinks>
inline void next_row(Sinks&... sinks) {
  ((sinks.partial != nullptr ? sinks.sums.next() : void()), ...);
}

template <typename Sink>
inline void finish_one(Sink& sink) {
  if (sink.partial != nullptr) {
    const auto& sum = sink.sums.finish();
    std::copy(sum.begin(), sum.end(), sink.partial);
  }
}

template <typename... Sinks>
inline void finish(Sinks&... sinks) {
  (finish_one(sinks), ...);
}

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
