// What a kernel library offers for matrix products over tiles.
#pragma once

#include "operand.h"

namespace dgm_fast {

// B [depth, columns] of any strides, into the panels that `product` reads.
struct ProductPackArgs {
  Dtype dtype; // float or double
  int64_t depth, columns;
  const void* b;
  int64_t row_stride, column_stride;
  void* packed;
};

// c [rows, columns], rows contiguous, = a [rows, depth] times packed B, plus a bias by row or by column, or += it.
struct ProductArgs {
  Dtype dtype;
  int64_t rows, depth, columns;
  const void* a;
  int64_t a_row_stride, a_column_stride;
  const void* packed;
  void* c;
  int64_t c_stride;
  bool add;
  const void *row_bias, *column_bias; // null where there is none
};

struct ProductKernels {
  // Null at levels where the library's product is the better one.
  int64_t (*product_packed_size)(Dtype dtype, int64_t depth, int64_t columns);
  void (*product_pack)(const ProductPackArgs&);
  void (*product)(const ProductArgs&);
};

void fill(ProductKernels& kernels);
#if defined(DGM_FAST_AMX)
void fill_amx(ProductKernels& kernels);
#endif

} // namespace dgm_fast
