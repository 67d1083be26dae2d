// Products of small blocks, on the calling thread: the library's kernels for blocks that lie in the caches.
#pragma once

#include <ATen/core/Tensor.h>

namespace dgm_fast {

// The type that blocks of `type` are multiplied in: itself where there is a kernel for it, else float.
at::ScalarType block_type(at::ScalarType type);

// c [rows, columns] = a [rows, depth] b [depth, columns], or c += that; rows are contiguous, strides in numbers.
// bfloat16: sums are float, the depth is even, and rows 2 i and 2 i + 1 of b are interleaved, b_stride columns a
// row, of which there are 16, 32, 48 or 64.
template <typename T, typename Sum>
void block_product(
    int64_t rows,
    int64_t columns,
    int64_t depth,
    const T* a,
    int64_t a_stride,
    const T* b,
    int64_t b_stride,
    Sum* c,
    int64_t c_stride,
    bool add);

// After a thread's last product of a region: a processor's tile registers go back to what they were.
void end_block_products(at::ScalarType type);

} // namespace dgm_fast
