// How kernels see tensors: raw pointers with row offsets. No torch headers, so that kernels compile fast.
#pragma once

#include <cstdint>

namespace dgm_fast {

enum class Dtype : int32_t { Float32, Float64, BFloat16, Float16, UInt8, Int32, Int64 };

// The offset of row r of a tensor whose batch dimensions may be broadcast (stride 0) or strided:
// the mixed-radix digits of r times the strides, in elements.
struct RowMap {
  static constexpr int kMaxDims = 12;
  int ndim = 0;
  int64_t size[kMaxDims] = {};
  int64_t stride[kMaxDims] = {};
  // Counted from this row: a tile of a larger tensor.
  int64_t first = 0;

  int64_t operator()(int64_t row) const {
    row += first;
    int64_t offset = 0;
    for (int d = ndim - 1; d > 0; --d) {
      const int64_t quotient = row / size[d];
      offset += (row - quotient * size[d]) * stride[d];
      row = quotient;
    }
    return ndim > 0 ? offset + row * stride[0] : 0;
  }

  // Every row is the same one.
  bool shared() const {
    for (int d = 0; d < ndim; ++d) {
      if (stride[d] != 0 && size[d] != 1) {
        return false;
      }
    }
    return true;
  }
};

// A tensor as rows of contiguous events. data is null for an absent argument.
struct Operand {
  const void* data = nullptr;
  Dtype dtype = Dtype::Float32;
  RowMap rows;

  bool present() const {
    return data != nullptr;
  }
};

} // namespace dgm_fast
