// From tensors to the operands of kernels, and gradients back to the shapes of their arguments.
#pragma once

#include "cpu/operand.h"

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

namespace dgm_fast {

Dtype dtype_code(at::ScalarType type);

// The dtype of sums: float64 for float64, else float32.
at::ScalarType sum_dtype(const at::Tensor& t);

// An output tensor; the memory of large ones is used again (output_pool.h).
at::Tensor empty_output(at::IntArrayRef sizes, at::ScalarType dtype);

// Whether a gradient of this size is written past the caches: larger than what of them is likely ours.
bool worth_streaming(const at::Tensor& output);

// The offsets of rows of `t`, its last `event_ndim` dimensions, broadcast to `batch`.
RowMap row_map(const at::Tensor& t, at::IntArrayRef batch, int64_t event_ndim);

// An argument as rows: event entries contiguous, any strides over the batch.
struct Rows {
  at::Tensor tensor; // keeps the memory of a converted argument
  Operand operand;
};

// `t` broadcast to batch + event.
Rows make_rows(const at::Tensor& t, at::IntArrayRef batch, at::IntArrayRef event);
Rows make_rows(const std::optional<at::Tensor>& t, at::IntArrayRef batch, at::IntArrayRef event);

// Room for the gradient of one operand, and its way back to the argument's shape.
class GradBuffer {
 public:
  GradBuffer(
      bool wanted,
      const std::optional<at::Tensor>& argument,
      const Rows& rows,
      at::IntArrayRef batch,
      at::IntArrayRef event,
      int64_t chunks);

  void* data() const {
    return buffer_.defined() ? buffer_.mutable_data_ptr() : nullptr;
  }

  bool streams() const {
    return !partial_ && buffer_.defined() && worth_streaming(buffer_);
  }

  // The gradient in shape and dtype of the argument; an empty tensor where not wanted.
  at::Tensor finish(const at::Tensor& like) const;

 private:
  at::Tensor buffer_;
  c10::SmallVector<int64_t, 8> shape_, full_;
  at::ScalarType dtype_ = at::kFloat;
  bool partial_ = false;
};

// Parts that partial gradients are summed over: by size alone, so that results do not depend on threads.
int64_t num_chunks(int64_t rows, int64_t size);

// Class indices as int32, contiguous; -1 marks what is no class.
at::Tensor class_indices(const at::Tensor& x, int64_t classes);

// Data of a Bernoulli likelihood beside logits of `type`: as it is where kernels read it, else converted.
at::Tensor bernoulli_data(const at::Tensor& x, at::ScalarType type);

// sizes of a tensor's leading (batch) and trailing (event) dimensions.
struct Split {
  c10::SmallVector<int64_t, 8> batch, event;
  int64_t rows = 1, size = 1;
};

Split split_shape(at::IntArrayRef shape, int64_t event_ndim);

inline constexpr const char* kUnitIntervalError =
    "x must hold values in [0, 1] for the Bernoulli likelihood";
inline constexpr const char* kClassError = "x must hold class indices between 0 and ";

} // namespace dgm_fast
