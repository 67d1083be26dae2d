// Products with a weight under a staircase mask. The masked weight is never formed: blocks of zeros are skipped,
// and the blocks on the edge are copied without what the mask hides.
#pragma once

#include "cpu/masked_table.h"

#include <ATen/core/Tensor.h>

#include <vector>

namespace dgm_fast {

// A mask [rows, columns] whose rows, in ascending order of their ends, keep the columns before their end.
struct Staircase {
  int64_t columns = 0;
  std::vector<int64_t> ends; // ascending, one a row
  // The order of rows and columns in memory that makes it so; empty where it is theirs.
  std::vector<int64_t> row_order, column_order;

  // Entry (o, i) is kept where in_degrees[i] <= out_degrees[o], or < if strict. Integers of any type.
  static Staircase of_degrees(
      const at::Tensor& in_degrees, const at::Tensor& out_degrees, bool strict);
  static Staircase strictly_lower(int64_t size);

  int64_t rows() const {
    return static_cast<int64_t>(ends.size());
  }
  Selection selection() const {
    return {
        row_order.empty() ? nullptr : row_order.data(),
        column_order.empty() ? nullptr : column_order.data()};
  }
  // A copy of a contiguous matrix, with zeros where the mask has them.
  at::Tensor masked(const at::Tensor& matrix) const;
  // The same in place.
  void clear(at::Tensor& matrix) const;
  // The rows from this one on keep the column.
  int64_t first_row(int64_t column) const;
};

// Operands are contiguous matrices of one type, that of the block product (block_product.h); results are of `to`,
// that type or its sum's.

// x [batch, columns] times the masked weight [rows, columns] transposed, plus a bias [rows] of the sum's type
// (undefined: none).
at::Tensor staircase_product(
    const Staircase& stairs,
    const at::Tensor& x,
    const at::Tensor& weight,
    const at::Tensor& bias,
    at::ScalarType to);

// grad [batch, rows] times the masked weight.
at::Tensor staircase_input_gradient(
    const Staircase& stairs, const at::Tensor& grad, const at::Tensor& weight, at::ScalarType to);

// grad^T x, zero where the mask is.
at::Tensor staircase_weight_gradient(
    const Staircase& stairs, const at::Tensor& grad, const at::Tensor& x, at::ScalarType to);

} // namespace dgm_fast
