#include "block_product.h"

#include <ATen/native/CPUBlas.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>

namespace dgm_fast {

namespace blas = at::native::cpublas;

at::ScalarType block_type(at::ScalarType type) {
  // bfloat16 pays where the processor has matrix units for it.
  const bool own = type == at::kDouble || (type == at::kBFloat16 && blas::could_pack(type));
  return own ? type : at::kFloat;
}

template <>
void block_product(
    int64_t rows,
    int64_t columns,
    int64_t depth,
    const float* a,
    int64_t a_stride,
    const float* b,
    int64_t b_stride,
    float* c,
    int64_t c_stride,
    bool add) {
  blas::brgemm(rows, columns, depth, a_stride, b_stride, c_stride, add, a, b, c);
}

template <>
void block_product(
    int64_t rows,
    int64_t columns,
    int64_t depth,
    const at::BFloat16* a,
    int64_t a_stride,
    const at::BFloat16* b,
    int64_t b_stride,
    float* c,
    int64_t c_stride,
    bool add) {
  blas::brgemm(rows, columns, depth, a_stride, b_stride, c_stride, add, a, b, c, true);
}

template <>
void block_product(
    int64_t rows,
    int64_t columns,
    int64_t depth,
    const double* a,
    int64_t a_stride,
    const double* b,
    int64_t b_stride,
    double* c,
    int64_t c_stride,
    bool add) {
  // The library has no such entry for double.
  const auto matrix = [](const double* p, int64_t m, int64_t n, int64_t stride) {
    return at::from_blob(const_cast<double*>(p), {m, n}, {stride, 1}, at::kDouble);
  };
  at::Tensor out = matrix(c, rows, columns, c_stride);
  const at::Tensor left = matrix(a, rows, depth, a_stride);
  const at::Tensor right = matrix(b, depth, columns, b_stride);
  if (add) {
    at::addmm_out(out, out, left, right);
  } else {
    at::mm_out(out, left, right);
  }
}

void end_block_products(at::ScalarType type) {
  if (type == at::kBFloat16) {
    blas::brgemm_release();
  }
}

} // namespace dgm_fast
