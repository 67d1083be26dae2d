// Sums of loss terms over outputs, with the gradient in the same pass.

#include "adversarial_loss.h"

#include "adversarial_table.h"
#include "dispatch.h"
#include "sums.h"

namespace dgm_fast {
inline namespace CPU_CAPABILITY {
namespace {

// Outputs are converted to the sum's dtype a block at a time: the terms are compiled for two dtypes only.
constexpr int64_t kBlock = 1024;

template <typename A, typename F>
double term_block(
    const F& term,
    const LossOptions<A>& options,
    const A* v,
    int64_t count,
    A scale,
    A* grad) {
  constexpr int64_t lanes = kLanes<A>;
  const Vec<A> factor(scale);
  return blocked_sum(count, [&](int64_t begin, int64_t size) {
    Vec<A> sum(0);
    for (int64_t i = begin; i < begin + size; i += lanes) {
      const int64_t here = std::min(lanes, begin + size - i);
      const auto result = term(vload(v + i, here), options);
      sum = sum + (here == lanes ? result.value : Vec<A>::set(Vec<A>(0), result.value, here));
      if (grad != nullptr) {
        vstore(grad + i, result.slope * factor, here);
      }
    }
    return sum_lanes<A>(sum);
  });
}

template <typename T, typename F>
double term_sum(const LossTermArgs& args, const F& term) {
  using A = acc_t<T>;
  const auto* v = static_cast<const T*>(args.v);
  auto* grad = static_cast<A*>(args.grad);
  const LossOptions<A> options{static_cast<A>(args.alpha), static_cast<A>(args.pi)};
  const int64_t blocks = (args.size + kBlock - 1) / kBlock;
  std::vector<double> sums(blocks);
  at::parallel_for(0, blocks, kGrainElements / kBlock, [&](int64_t first, int64_t last) {
    A converted[kBlock];
    for (int64_t block = first; block < last; ++block) {
      const int64_t begin = block * kBlock;
      const int64_t count = std::min(kBlock, args.size - begin);
      const A* from = converted;
      if constexpr (std::is_same_v<T, A>) {
        from = v + begin;
      } else {
        for (int64_t i = 0; i < count; ++i) {
          converted[i] = static_cast<A>(v[begin + i]);
        }
      }
      sums[block] = term_block<A>(
          term,
          options,
          from,
          count,
          static_cast<A>(args.scale),
          grad == nullptr ? nullptr : grad + begin);
    }
  });
  double sum = 0;
  for (const double part : sums) {
    sum += part;
  }
  return sum;
}

void loss_term(LossTermArgs& args) {
  with_sum_type(args.dtype, [&](auto a) {
    using A = typename decltype(a)::type;
    with_term<A>(args.term, [&](const auto& term) {
      if constexpr (std::is_same_v<A, double>) {
        args.sum = term_sum<double>(args, term);
      } else {
        switch (args.dtype) {
          case Dtype::Float32:
            args.sum = term_sum<float>(args, term);
            break;
          case Dtype::BFloat16:
            args.sum = term_sum<c10::BFloat16>(args, term);
            break;
          default:
            args.sum = term_sum<c10::Half>(args, term);
        }
      }
    });
  });
}

} // namespace
} // namespace CPU_CAPABILITY

void fill_losses(AdversarialKernels& kernels) {
  kernels.loss_term = loss_term;
}

} // namespace dgm_fast
