// Interpolated samples, norms of gradients, and the direction that their penalty pulls in.

#include "adversarial_table.h"
#include "dispatch.h"
#include "masked.h"
#include "sums.h"

namespace dgm_fast {
inline namespace CPU_CAPABILITY {
namespace {

void interpolate(const InterpolateArgs& args) {
  with_floating(args.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    using A = acc_t<T>;
    const auto* eps = static_cast<const A*>(args.eps);
    at::parallel_for(0, args.rows, grain_rows(args.size), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const auto* real = static_cast<const T*>(args.real) + r * args.size;
        const auto* fake = static_cast<const T*>(args.fake) + r * args.size;
        auto* out = static_cast<T*>(args.out) + r * args.size;
        const Vec<A> e(eps[r]);
        const Vec<A> rest(A(1) - eps[r]);
        each_vector<A>(args.size, [&](int64_t i, int64_t count) {
          vstore(
              out + i,
              at::vec::fmadd(e, vload(real + i, count), rest * vload(fake + i, count)),
              count);
        });
      }
    });
  });
}

template <typename T>
double square_sum(const T* p, int64_t size) {
  using A = acc_t<T>;
  constexpr int64_t step = kStep<T>;
  return blocked_sum(size, [&](int64_t begin, int64_t count) {
    Vec<A> sum0(0), sum1(0);
    int64_t i = begin;
    const int64_t end = begin + count;
    for (; i + 2 * step <= end; i += 2 * step) {
      const Vec<A> a = vload(p + i);
      const Vec<A> b = vload(p + i + step);
      sum0 = at::vec::fmadd(a, a, sum0);
      sum1 = at::vec::fmadd(b, b, sum1);
    }
    for (; i < end; i += step) {
      const Vec<A> a = vload(p + i, end - i);
      sum0 = at::vec::fmadd(a, a, sum0);
    }
    return sum_lanes<A>(sum0 + sum1);
  });
}

void norm_penalty(NormPenaltyArgs& args) {
  with_floating(args.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    using A = acc_t<T>;
    auto* norms = static_cast<A*>(args.norms);
    const auto* scales = static_cast<const A*>(args.grad_scale);
    std::vector<double> terms(args.rows);
    at::parallel_for(0, args.rows, grain_rows(args.size), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const double factor = scales == nullptr ? 1.0 : scales[r];
        const double square = factor * factor *
            square_sum(static_cast<const T*>(args.grad) + r * args.size, args.size);
        const double norm = std::sqrt(square);
        const double excess = norm - args.center;
        norms[r] = static_cast<A>(norm);
        terms[r] = args.center == 0 ? square
            : args.one_sided && excess < 0 ? 0.0
                                           : excess * excess;
      }
    });
    double sum = 0;
    for (const double term : terms) {
      sum += term;
    }
    args.sum = sum;
  });
}

// The derivative of (norm - center)^2 in the gradient, as a multiple of it.
template <typename A>
A penalty_coefficient(A norm, const PenaltyDirectionArgs& args) {
  const double n = norm;
  if (args.center == 0) {
    return static_cast<A>(2 * args.scale);
  }
  const double excess = n - args.center;
  // The subgradient at norm 0 is 0; NaN stays.
  if (n == 0 || (args.one_sided && excess <= 0)) {
    return A(0);
  }
  return static_cast<A>(2 * args.scale * excess / n);
}

void penalty_direction(const PenaltyDirectionArgs& args) {
  with_floating(args.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    using A = acc_t<T>;
    const auto* norms = static_cast<const A*>(args.norms);
    const auto* factors = static_cast<const A*>(args.grad_scale);
    const auto* scales = static_cast<const A*>(args.row_scale);
    at::parallel_for(0, args.rows, grain_rows(args.size), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const A s = factors == nullptr ? A(1) : factors[r];
        const Vec<A> factor(s * s * penalty_coefficient(norms[r], args));
        const auto* grad = static_cast<const T*>(args.grad) + r * args.size;
        auto* out = static_cast<T*>(args.direction) + r * args.size;
        if (args.x == nullptr) {
          each_vector<A>(args.size, [&](int64_t i, int64_t count) {
            vstore(out + i, factor * vload(grad + i, count), count);
          });
        } else {
          const auto* x = static_cast<const T*>(args.x) + r * args.size;
          const Vec<A> scale(scales[r]);
          each_vector<A>(args.size, [&](int64_t i, int64_t count) {
            vstore(
                out + i,
                at::vec::fmadd(factor, vload(grad + i, count), scale * vload(x + i, count)),
                count);
          });
        }
      }
    });
  });
}

} // namespace
} // namespace CPU_CAPABILITY

void fill_penalty(AdversarialKernels& kernels) {
  kernels.interpolate = interpolate;
  kernels.norm_penalty = norm_penalty;
  kernels.penalty_direction = penalty_direction;
}

} // namespace dgm_fast
