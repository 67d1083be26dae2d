#include "kernels.h"

#include "cpu/kernel_table.h"

#include <c10/util/Exception.h>

namespace dgm_fast {
namespace {

const KernelTable* active = nullptr;

} // namespace

void use_kernel_table(const void* table, size_t size) {
  TORCH_CHECK_VALUE(
      size == sizeof(KernelTable), "the kernel library was built from another version; build again");
  active = static_cast<const KernelTable*>(table);
}

template <class Family>
const Family& kernels() {
  TORCH_CHECK(active != nullptr, "dgm_fast: no kernel library is loaded");
  return std::get<Family>(*active);
}

template const AdversarialKernels& kernels<AdversarialKernels>();
template const AutoregressiveKernels& kernels<AutoregressiveKernels>();
template const BoundsKernels& kernels<BoundsKernels>();
template const CouplingKernels& kernels<CouplingKernels>();
template const LatentKernels& kernels<LatentKernels>();
template const LikelihoodKernels& kernels<LikelihoodKernels>();
template const LstmKernels& kernels<LstmKernels>();
template const MaskedKernels& kernels<MaskedKernels>();
template const MixtureKernels& kernels<MixtureKernels>();
template const NadeKernels& kernels<NadeKernels>();
template const PixelKernels& kernels<PixelKernels>();
template const PixelSamplingKernels& kernels<PixelSamplingKernels>();
template const ProductKernels& kernels<ProductKernels>();
template const SplineKernels& kernels<SplineKernels>();

} // namespace dgm_fast
