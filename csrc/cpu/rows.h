// One event at a time: log-probabilities of a row, and their gradients. Shared by the likelihood ops and
// the bounds that fuse them.
#pragma once

#include "sums.h"
#include "vec.h"

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

inline constexpr double kLog2Pi = 1.8378770664093454836;

// Whether every entry is in [0, 1].
template <typename X>
inline bool in_unit_interval(const X* x, int64_t size) {
  if constexpr (std::is_same_v<X, uint8_t>) {
    uint8_t highest = 0;
    for (int64_t i = 0; i < size; ++i) {
      highest = std::max(highest, x[i]);
    }
    return highest <= 1;
  } else {
    // x (1 - x) >= 0 inside only; the comparison also fails on NaN.
    using A = acc_t<X>;
    int outside = 0;
    for (int64_t i = 0; i < size; ++i) {
      const A value = static_cast<A>(x[i]);
      outside |= !(value * (A(1) - value) >= A(0));
    }
    return outside == 0;
  }
}

// sum_d x l - log(1 + exp(l)) = sum_d (x l - max(l, 0)) - log(1 + exp(-|l|)).
//
// Each difference is formed before it enters the sum: where the prediction is sure and right it is 0, and the sum
// meets no large terms that cancel.
template <typename T, typename X>
inline acc_t<T> bernoulli_block(const T* logits, const X* x, int64_t size) {
  using A = acc_t<T>;
  constexpr int step = kStep<T>;
  constexpr int kUnroll = 4;
  Vec<A> linear[kUnroll];
  Vec<A> product[kUnroll];
#pragma GCC unroll 4
  for (int u = 0; u < kUnroll; ++u) {
    linear[u] = Vec<A>(0);
    product[u] = Vec<A>(1);
  }
  const auto add_linear = [&](const Vec<A>& l, const Vec<A>& target, Vec<A>& sum) {
    sum = sum + at::vec::fmsub(target, l, at_least(l, A(0)));
  };
  const auto add_factor = [](const Vec<A>& l, Vec<A>& factors) {
    factors = at::vec::fmadd(factors, exp_nonpositive(l.abs().neg()), factors);
  };
  const auto visit = [&](const Vec<A>& l, const Vec<A>& target, Vec<A>& sum, Vec<A>& factors) {
    add_linear(l, target, sum);
    add_factor(l, factors);
  };
  const auto merged = [&] { return (product[0] * product[1]) * (product[2] * product[3]); };
  Vec<A> log_sum(0);
  int64_t i = 0;
  int64_t run = 0;
  for (; i + kUnroll * step <= size; i += kUnroll * step) {
#pragma GCC unroll 4
    for (int u = 0; u < kUnroll; ++u) {
      visit(vload(logits + i + u * step), load_as<A>(x + i + u * step), linear[u], product[u]);
    }
    if (++run == kLogRun / kUnroll) {
      run = 0;
      log_sum = log_sum + merged().log();
#pragma GCC unroll 4
      for (int u = 0; u < kUnroll; ++u) {
        product[u] = Vec<A>(1);
      }
    }
  }
  for (; i + step <= size; i += step) {
    visit(vload(logits + i), load_as<A>(x + i), linear[0], product[1]);
  }
  if (i < size) {
    // Lanes past the end must leave both sums alone: a logit of 0 the linear one, a large one the factors.
    const int64_t rest = size - i;
    add_linear(vload(logits + i, rest), load_as<A>(x + i, rest), linear[1]);
    add_factor(vload(logits + i, rest, A(1e4)), product[2]);
  }
  const Vec<A> total = (linear[0] + linear[1]) + (linear[2] + linear[3]);
  return sum_lanes<A>(total - (log_sum + merged().log()));
}

template <typename T, typename X>
inline double bernoulli_row(const T* logits, const X* x, int64_t size) {
  return blocked_sum(size, [&](int64_t begin, int64_t count) {
    return bernoulli_block(logits + begin, x + begin, count);
  });
}

// grad (x - sigmoid(l)) into grad_logits, grad l added to grad_x; either may be null.
template <typename T, typename X>
inline void bernoulli_row_grad(
    acc_t<T> grad,
    const T* logits,
    const X* x,
    T* grad_logits,
    acc_t<T>* grad_x,
    int64_t size,
    bool stream) {
  using A = acc_t<T>;
  constexpr int step = kStep<T>;
  const Vec<A> g(grad);
  if (grad_logits != nullptr) {
    int64_t i = 0;
    for (; i + step <= size; i += step) {
      vwrite(grad_logits + i, g * (load_as<A>(x + i) - sigmoid(vload(logits + i))), stream);
    }
    if (i < size) {
      vstore(
          grad_logits + i,
          g * (load_as<A>(x + i, size - i) - sigmoid(vload(logits + i, size - i))),
          size - i);
    }
  }
  if (grad_x != nullptr) {
    int64_t i = 0;
    for (; i + step <= size; i += step) {
      at::vec::fmadd(g, vload(logits + i), Vec<A>::loadu(grad_x + i)).store(grad_x + i);
    }
    for (; i < size; ++i) {
      grad_x[i] += grad * static_cast<A>(logits[i]);
    }
  }
}

// How a Gaussian row gets its variance.
enum class Variance {
  Unit, // none
  Log, // a row of log-variances
  Inverse, // a row of exp(-log_var) in the sum's dtype; their log-variances are summed by the caller
};

// -1/2 sum_d [log_var + (x - mean)^2 exp(-log_var)], without the constant log 2 pi.
template <Variance V, typename X, typename M, typename L>
inline acc_t<M> gaussian_block(const X* x, const M* mean, const L* log_var, int64_t size) {
  using A = acc_t<M>;
  constexpr int step = kStep<M>;
  const auto term = [](const Vec<A>& diff, const Vec<A>& lv, const Vec<A>& sum) {
    const Vec<A> square = diff * diff;
    if constexpr (V == Variance::Unit) {
      return sum + square;
    } else if constexpr (V == Variance::Log) {
      // Not lv into the sum first: beside large squares each would be rounded away.
      return sum + at::vec::fmadd(square, full_exp(lv.neg()), lv);
    } else {
      return at::vec::fmadd(square, lv, sum);
    }
  };
  const auto variance = [&](int64_t i) {
    if constexpr (V == Variance::Unit) {
      return Vec<A>(0);
    } else {
      return load_as<A>(log_var + i);
    }
  };
  Vec<A> sum0(0);
  Vec<A> sum1(0);
  int64_t i = 0;
  for (; i + 2 * step <= size; i += 2 * step) {
    sum0 = term(load_as<A>(x + i) - load_as<A>(mean + i), variance(i), sum0);
    sum1 = term(
        load_as<A>(x + i + step) - load_as<A>(mean + i + step), variance(i + step), sum1);
  }
  for (; i + step <= size; i += step) {
    sum0 = term(load_as<A>(x + i) - load_as<A>(mean + i), variance(i), sum0);
  }
  if (i < size) {
    const int64_t rest = size - i;
    Vec<A> lv(0);
    if constexpr (V != Variance::Unit) {
      lv = load_as<A>(log_var + i, rest);
    }
    sum1 = term(load_as<A>(x + i, rest) - load_as<A>(mean + i, rest), lv, sum1);
  }
  return A(-0.5) * sum_lanes<A>(sum0 + sum1);
}

template <Variance V, typename X, typename M, typename L>
inline double gaussian_row(const X* x, const M* mean, const L* log_var, int64_t size) {
  return blocked_sum(size, [&](int64_t begin, int64_t count) {
    // No pointer arithmetic on the null of an absent variance.
    const L* variance = V == Variance::Unit ? log_var : log_var + begin;
    return gaussian_block<V>(x + begin, mean + begin, variance, count);
  });
}

// Lane-wise gradients of the Gaussian log-density for a unit upstream gradient.
template <typename A>
struct GaussianGrad {
  Vec<A> mean; // (x - mean) exp(-log_var); x receives its negative
  Vec<A> log_var; // 1/2 [(x - mean)^2 exp(-log_var) - 1]
};

template <typename A>
inline GaussianGrad<A> gaussian_grad(const Vec<A>& diff, const Vec<A>& inverse_variance) {
  const Vec<A> scaled = diff * inverse_variance;
  return {scaled, at::vec::fmadd(diff, scaled, Vec<A>(-1)) * Vec<A>(0.5)};
}

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
