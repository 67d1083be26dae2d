// The kernel table in use, chosen at import among the instruction-set levels.
#pragma once

namespace dgm_fast {

struct KernelTable;
const KernelTable& kernels();

} // namespace dgm_fast
