#include "layout.h"

#include "output_pool.h"

#include <ATen/Context.h>
#include <ATen/Dispatch.h>
#include <ATen/EmptyTensor.h>
#include <ATen/ExpandUtils.h>
#include <ATen/Parallel.h>
#include <ATen/native/TensorFactories.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <cmath>

namespace dgm_fast {

Dtype dtype_code(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return Dtype::Float32;
    case at::kDouble:
      return Dtype::Float64;
    case at::kBFloat16:
      return Dtype::BFloat16;
    case at::kHalf:
      return Dtype::Float16;
    case at::kByte:
    case at::kBool:
      return Dtype::UInt8;
    case at::kInt:
      return Dtype::Int32;
    case at::kLong:
      return Dtype::Int64;
    default:
      TORCH_CHECK_TYPE(false, "dgm_fast kernels do not take ", type);
  }
}

at::ScalarType sum_dtype(const at::Tensor& t) {
  return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

at::Tensor empty_output(at::IntArrayRef sizes, at::ScalarType dtype) {
  const auto bytes = c10::multiply_integers(sizes) * c10::elementSize(dtype);
  if (static_cast<size_t>(bytes) < kPooledBytes) {
    return at::empty(sizes, at::TensorOptions().dtype(dtype));
  }
  at::Tensor result = at::detail::empty_generic(
      sizes, output_pool(), c10::DispatchKeySet(c10::DispatchKey::CPU), dtype, std::nullopt);
  auto& context = at::globalContext();
  if (context.deterministicAlgorithms() && context.deterministicFillUninitializedMemory()) {
    at::native::fill_empty_deterministic_(result);
  }
  return result;
}

bool worth_streaming(const at::Tensor& output) {
  constexpr size_t kCacheShare = 16 << 20;
  return output.defined() && output.nbytes() >= kCacheShare;
}

RowMap row_map(const at::Tensor& t, at::IntArrayRef batch, int64_t event_ndim) {
  RowMap map;
  const int64_t own = t.dim() - event_ndim;
  const int64_t missing = static_cast<int64_t>(batch.size()) - own;
  for (int64_t d = 0; d < static_cast<int64_t>(batch.size()); ++d) {
    if (batch[d] == 1) {
      continue;
    }
    const bool repeated = d < missing || t.size(d - missing) == 1;
    const int64_t stride = repeated ? 0 : t.stride(d - missing);
    const int last = map.ndim - 1;
    if (last >= 0 && map.stride[last] == stride * batch[d]) {
      map.size[last] *= batch[d];
      map.stride[last] = stride;
      continue;
    }
    TORCH_CHECK(map.ndim < RowMap::kMaxDims, "dgm_fast: too many batch dimensions");
    map.size[map.ndim] = batch[d];
    map.stride[map.ndim] = stride;
    ++map.ndim;
  }
  return map;
}

namespace {

bool event_contiguous(const at::Tensor& t, int64_t event_ndim) {
  int64_t expected = 1;
  for (int64_t d = t.dim() - 1; d >= t.dim() - event_ndim; --d) {
    if (t.size(d) != 1 && t.stride(d) != expected) {
      return false;
    }
    expected *= t.size(d);
  }
  return true;
}

} // namespace

Rows make_rows(const at::Tensor& t, at::IntArrayRef batch, at::IntArrayRef event) {
  Rows rows;
  rows.tensor = t;
  const int64_t event_ndim = static_cast<int64_t>(event.size());
  const bool whole =
      t.dim() >= event_ndim && t.sizes().slice(t.dim() - event_ndim) == event;
  if (!whole) {
    c10::SmallVector<int64_t, 8> shape;
    for (int64_t d = 0; d < t.dim() - event_ndim; ++d) {
      shape.push_back(t.size(d));
    }
    shape.append(event.begin(), event.end());
    rows.tensor = t.expand(shape).contiguous();
  } else if (!event_contiguous(t, event_ndim)) {
    rows.tensor = t.contiguous();
  }
  rows.operand.data = rows.tensor.const_data_ptr();
  rows.operand.dtype = dtype_code(rows.tensor.scalar_type());
  rows.operand.rows = row_map(rows.tensor, batch, event_ndim);
  return rows;
}

Rows make_rows(const std::optional<at::Tensor>& t, at::IntArrayRef batch, at::IntArrayRef event) {
  return t.has_value() ? make_rows(*t, batch, event) : Rows();
}

int64_t num_chunks(int64_t rows, int64_t size) {
  constexpr int64_t kChunkElements = 65536;
  return std::min<int64_t>(16, std::max<int64_t>(1, std::min(rows, rows * size / kChunkElements)));
}

GradBuffer::GradBuffer(
    bool wanted,
    const std::optional<at::Tensor>& argument,
    const Rows& rows,
    at::IntArrayRef batch,
    at::IntArrayRef event,
    int64_t chunks) {
  if (!wanted || !argument.has_value()) {
    return;
  }
  shape_.append(argument->sizes().begin(), argument->sizes().end());
  dtype_ = argument->scalar_type();
  partial_ = rows.operand.rows.shared();
  full_.append(batch.begin(), batch.end());
  full_.append(event.begin(), event.end());
  if (partial_) {
    c10::SmallVector<int64_t, 8> sizes{chunks};
    sizes.append(event.begin(), event.end());
    buffer_ = empty_output(sizes, sum_dtype(*argument));
  } else {
    buffer_ = empty_output(full_, dtype_);
  }
}

at::Tensor GradBuffer::finish(const at::Tensor& like) const {
  if (!buffer_.defined()) {
    return at::empty({0}, like.options());
  }
  at::Tensor gradient = buffer_;
  if (partial_) {
    gradient = gradient.size(0) == 1 ? gradient.squeeze(0) : gradient.sum(0);
    if (gradient.sizes() != at::IntArrayRef(shape_)) {
      // A parameter of fewer entries than its event, or with batch dimensions of size 1.
      const int64_t target = static_cast<int64_t>(shape_.size());
      while (gradient.dim() < target) {
        gradient = gradient.unsqueeze(0);
      }
      gradient = at::sum_to(gradient, shape_);
    }
  } else if (at::IntArrayRef(full_) != at::IntArrayRef(shape_)) {
    gradient = at::sum_to(gradient, shape_);
  }
  return gradient.to(dtype_).contiguous();
}

at::Tensor class_indices(const at::Tensor& x, int64_t classes) {
  const at::Tensor source = x.contiguous();
  at::Tensor result = at::empty(x.sizes(), x.options().dtype(at::kInt));
  auto* to = result.mutable_data_ptr<int32_t>();
  AT_DISPATCH_ALL_TYPES_AND3(
      at::kBool, at::kHalf, at::kBFloat16, x.scalar_type(), "class_indices", [&] {
        const auto* from = source.const_data_ptr<scalar_t>();
        at::parallel_for(0, source.numel(), 65536, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            if constexpr (std::is_integral_v<scalar_t>) {
              const auto value = static_cast<int64_t>(from[i]);
              to[i] = value >= 0 && value < classes ? static_cast<int32_t>(value) : -1;
            } else {
              const auto value = static_cast<double>(from[i]);
              const bool valid =
                  value >= 0 && value < static_cast<double>(classes) && value == std::floor(value);
              to[i] = valid ? static_cast<int32_t>(value) : -1;
            }
          }
        });
      });
  return result;
}

at::Tensor bernoulli_data(const at::Tensor& x, at::ScalarType type) {
  const auto own = x.scalar_type();
  const auto sum = type == at::kDouble ? at::kDouble : at::kFloat;
  if (own == type || own == sum || own == at::kByte || own == at::kBool) {
    return x;
  }
  return x.to(sum);
}

Split split_shape(at::IntArrayRef shape, int64_t event_ndim) {
  Split split;
  const int64_t batch_ndim = static_cast<int64_t>(shape.size()) - event_ndim;
  for (int64_t d = 0; d < static_cast<int64_t>(shape.size()); ++d) {
    (d < batch_ndim ? split.batch : split.event).push_back(shape[d]);
    (d < batch_ndim ? split.rows : split.size) *= shape[d];
  }
  return split;
}

} // namespace dgm_fast
