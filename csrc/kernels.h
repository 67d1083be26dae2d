// The kernels in use, chosen at import among the instruction-set levels.
#pragma once

#include <cstddef>

namespace dgm_fast {

// The functions of one family: kernels<NadeKernels>().nade(...).
template <class Family>
const Family& kernels();

// Route every op to this table of `size` bytes; refused where the size shows another version's layout.
void use_kernel_table(const void* table, size_t size);

} // namespace dgm_fast
