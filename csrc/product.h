// Matrix products over tiles, on the calling thread.
#pragma once

#include <ATen/core/Tensor.h>

namespace dgm_fast {

// The right factor [depth, columns] of a product, float or double, packed for the kernel where there is one.
class Factor {
 public:
  explicit Factor(const at::Tensor& matrix);

  // to = a [rows, depth] times this factor, or to += that. `to` has contiguous rows and this factor's dtype; `a`
  // may have any strides. A bias adds to every row (row_bias [rows]) or column (column_bias [columns]).
  void multiply(const at::Tensor& to, const at::Tensor& a, bool add = false) const;
  // The same of memory: `to` [rows, columns] and `a` [rows, depth], rows to_stride and a_stride entries apart.
  void multiply(void* to, int64_t to_stride, const void* a, int64_t a_stride, int64_t rows) const;
  void multiply_with_bias(
      const at::Tensor& to,
      const at::Tensor& a,
      const at::Tensor& row_bias,
      const at::Tensor& column_bias) const;

 private:
  void run(
      const at::Tensor& to,
      const at::Tensor& a,
      bool add,
      const at::Tensor& row_bias,
      const at::Tensor& column_bias) const;

  at::Tensor matrix_, packed_;
};

} // namespace dgm_fast
