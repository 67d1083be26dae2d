#include "product.h"

#include "cpu/product_table.h"
#include "kernels.h"
#include "layout.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>

namespace dgm_fast {

Factor::Factor(const at::Tensor& matrix) : matrix_(matrix) {
  const auto& table = kernels<ProductKernels>();
  if (table.product == nullptr) {
    return;
  }
  const auto dtype = dtype_code(matrix.scalar_type());
  const auto depth = matrix.size(0);
  const auto columns = matrix.size(1);
  packed_ = at::empty({table.product_packed_size(dtype, depth, columns)}, matrix.options());
  table.product_pack(
      {dtype,
       depth,
       columns,
       matrix.const_data_ptr(),
       matrix.stride(0),
       matrix.stride(1),
       packed_.mutable_data_ptr()});
}

void Factor::multiply(const at::Tensor& to, const at::Tensor& a, bool add) const {
  run(to, a, add, {}, {});
}

void Factor::multiply_with_bias(
    const at::Tensor& to,
    const at::Tensor& a,
    const at::Tensor& row_bias,
    const at::Tensor& column_bias) const {
  run(to, a, false, row_bias, column_bias);
}

void Factor::multiply(
    void* to, int64_t to_stride, const void* a, int64_t a_stride, int64_t rows) const {
  const auto depth = matrix_.size(0);
  const auto columns = matrix_.size(1);
  if (packed_.defined()) {
    kernels<ProductKernels>().product(
        {dtype_code(matrix_.scalar_type()),
         rows,
         depth,
         columns,
         a,
         a_stride,
         1,
         packed_.const_data_ptr(),
         to,
         to_stride,
         false,
         nullptr,
         nullptr});
    return;
  }
  const auto options = matrix_.options();
  at::Tensor out = at::from_blob(to, {rows, columns}, {to_stride, 1}, options);
  at::mm_out(out, at::from_blob(const_cast<void*>(a), {rows, depth}, {a_stride, 1}, options), matrix_);
}

void Factor::run(
    const at::Tensor& to,
    const at::Tensor& a,
    bool add,
    const at::Tensor& row_bias,
    const at::Tensor& column_bias) const {
  if (packed_.defined()) {
    const auto data = [](const at::Tensor& t) {
      return t.defined() ? t.const_data_ptr() : nullptr;
    };
    kernels<ProductKernels>().product(
        {dtype_code(matrix_.scalar_type()),
         a.size(0),
         matrix_.size(0),
         matrix_.size(1),
         a.const_data_ptr(),
         a.stride(0),
         a.stride(1),
         packed_.const_data_ptr(),
         to.mutable_data_ptr(),
         to.stride(0),
         add,
         data(row_bias),
         data(column_bias)});
    return;
  }
  at::Tensor out = to;
  if (add) {
    at::addmm_out(out, out, a, matrix_);
  } else if (row_bias.defined()) {
    at::addmm_out(out, row_bias.unsqueeze(1), a, matrix_);
  } else if (column_bias.defined()) {
    at::addmm_out(out, column_bias, a, matrix_);
  } else {
    at::mm_out(out, a, matrix_);
  }
}

} // namespace dgm_fast
