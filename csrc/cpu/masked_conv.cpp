// Masked convolutions over their live taps alone, and both gradients.

#include "masked_conv_passes.h"

namespace dgm_fast {
inline namespace CPU_CAPABILITY {
namespace {

void masked_conv(const MaskedConvArgs& args) {
  with_sum_type(
      args.dtype, [&](auto t) { conv_forward<RowConvolution, typename decltype(t)::type>(args); });
}

void masked_conv_grad(const MaskedConvGradArgs& args) {
  with_sum_type(args.in.dtype, [&](auto t) {
    conv_backward<RowConvolution, WeightSums, typename decltype(t)::type>(args);
  });
}

int64_t masked_conv_sums(const MaskedConvArgs& args) {
  int64_t size = 0;
  with_sum_type(
      args.dtype, [&](auto t) { size = part_size<WeightSums, typename decltype(t)::type>(args); });
  return size;
}

} // namespace
} // namespace CPU_CAPABILITY

void fill_masked_conv(PixelKernels& kernels) {
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  kernels.masked_conv = masked_conv;
  kernels.masked_conv_grad = masked_conv_grad;
  kernels.masked_conv_sums = masked_conv_sums;
#else
  // Emulated vectors do not reach the library's rate.
  kernels.masked_conv = nullptr;
  kernels.masked_conv_grad = nullptr;
  kernels.masked_conv_sums = nullptr;
#endif
}

} // namespace dgm_fast
