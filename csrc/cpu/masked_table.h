// What a kernel library offers for products under a staircase mask: blocks of the weight and of the data as the
// block product (block_product.h) reads them, and blocks of results back to where they belong.
#pragma once

#include "operand.h"

namespace dgm_fast {

// Rows and columns of a matrix in an order of their own; null is the order of memory.
struct Selection {
  const int64_t *rows, *columns;
};

// to [rows, columns] = a block of a matrix from (first_row, first_column) on. Columns from ends[row] on (of the
// whole matrix; null: none) are zero, whatever the matrix holds there, and so are rows up to fill_rows and columns
// up to fill_columns.
struct BlockArgs {
  Dtype dtype; // float, double or bfloat16, of both sides
  const void* from;
  int64_t from_stride;
  Selection selection;
  const int64_t* ends;
  int64_t first_row, first_column, rows, columns, fill_rows, fill_columns;
  void* to;
  int64_t to_stride;
  bool paired; // rows 2 i and 2 i + 1 interleaved, as a right factor of bfloat16 is read; fill_rows even
};

// to [columns, rows] = columns first_column.. of `from` [rows, ...]; rows up to fill_rows and columns up to
// fill_columns are zero. Paired: columns 2 i and 2 i + 1 interleaved; fill_columns even.
struct TransposeArgs {
  Dtype dtype;
  const void* from;
  int64_t from_stride;
  const int64_t* selected; // columns; null is the order of memory
  int64_t first_column, rows, columns, fill_rows, fill_columns;
  void* to;
  int64_t to_stride;
  bool paired;
};

// Results [rows, columns] of the sum's type to rows and columns of a matrix from (first_row, first_column) on.
// Columns from ends[row] on are zero. `from` may be null where all are.
struct StoreArgs {
  Dtype dtype; // of the matrix
  const void* from;
  int64_t from_stride;
  Selection selection;
  const int64_t* ends;
  int64_t first_row, first_column, rows, columns;
  void* to;
  int64_t to_stride;
  bool stream;
};

// Results [columns, rows] of the sum's type, plus a bias a column, to `to` [rows, ...] from column first_column on.
struct StoreTransposedArgs {
  Dtype dtype; // of the matrix
  const void* from;
  int64_t from_stride;
  const int64_t* selected;
  int64_t first_column, rows, columns;
  const void* bias; // sum's type, in the order of memory; null where there is none
  void* to;
  int64_t to_stride;
};

struct MaskedKernels {
  void (*block)(const BlockArgs&);
  void (*transpose)(const TransposeArgs&);
  void (*store)(const StoreArgs&);
  void (*store_transposed)(const StoreTransposedArgs&);
};

void fill(MaskedKernels& kernels);

} // namespace dgm_fast
