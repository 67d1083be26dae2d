// Kernels of the latent family: divergence, reparameterised samples, log-mean-exp.

#include "categorical.h"
#include "dispatch.h"
#include "sink.h"
#include "latent_table.h"

namespace dgm_fast {
inline namespace CPU_CAPABILITY {
namespace {

// One row of a prior in the sum's dtype: shared by all rows, read row by row, or absent (zeros).
template <typename T>
class PriorRow {
 public:
  using A = acc_t<T>;

  PriorRow(const Operand& operand, int64_t size) : operand_(operand), size_(size) {
    if (!operand.present()) {
      values_.assign(size, A(0));
    } else if (operand.rows.shared()) {
      values_ = shared_row<T>(operand, size);
    } else {
      values_.resize(size);
      per_row_ = true;
    }
  }

  // Move to row r; true if the values changed.
  bool seek(int64_t r) {
    if (!per_row_) {
      return false;
    }
    const T* p = row<T>(operand_, r);
    for (int64_t i = 0; i < size_; ++i) {
      values_[i] = static_cast<A>(p[i]);
    }
    return true;
  }

  const A* data() const {
    return values_.data();
  }

 private:
  const Operand& operand_;
  int64_t size_;
  bool per_row_ = false;
  std::vector<A> values_;
};

template <typename T>
struct Priors {
  using A = acc_t<T>;
  PriorRow<T> mean, log_var;
  std::vector<A> inverse_variance;

  Priors(const Operand& prior_mean, const Operand& prior_log_var, int64_t size)
      : mean(prior_mean, size), log_var(prior_log_var, size), inverse_variance(size) {
    invert();
  }

  void seek(int64_t r) {
    mean.seek(r);
    if (log_var.seek(r)) {
      invert();
    }
  }

 private:
  void invert() {
    const int64_t size = static_cast<int64_t>(inverse_variance.size());
    const A* from = log_var.data();
    for (int64_t i = 0; i < size; i += kLanes<A>) {
      const int64_t count = std::min<int64_t>(kLanes<A>, size - i);
      vstore(inverse_variance.data() + i, full_exp(vload(from + i, count).neg()), count);
    }
  }
};

// visit(i, count, diff, exp(d) - 1 and exp(d) - 1 - d, exp(-prior_log_var)) over [begin, end) of a row, where diff
// is mean - prior_mean and d = log_var - prior_log_var. Lanes past the end hold zeros.
template <typename T, typename F>
inline void visit_kl_row(
    const T* mean,
    const T* log_var,
    const Priors<T>& priors,
    int64_t begin,
    int64_t end,
    F&& visit) {
  using A = acc_t<T>;
  constexpr int step = kStep<T>;
  int64_t i = begin;
  for (; i + step <= end; i += step) {
    visit(
        i,
        step,
        vload(mean + i) - Vec<A>::loadu(priors.mean.data() + i),
        exp_minus(vload(log_var + i) - Vec<A>::loadu(priors.log_var.data() + i)),
        Vec<A>::loadu(priors.inverse_variance.data() + i));
  }
  if (i < end) {
    const int64_t rest = end - i;
    visit(
        i,
        rest,
        vload(mean + i, rest) - vload(priors.mean.data() + i, rest),
        exp_minus(vload(log_var + i, rest) - vload(priors.log_var.data() + i, rest)),
        vload(priors.inverse_variance.data() + i, rest));
  }
}

void gaussian_kl(const KlArgs& args) {
  with_floating(args.mean.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    using A = acc_t<T>;
    auto* out = static_cast<A*>(args.out);
    at::parallel_for(0, args.rows, grain_rows(args.size), [&](int64_t begin, int64_t end) {
      Priors<T> priors(args.prior_mean, args.prior_log_var, args.size);
      for (int64_t r = begin; r < end; ++r) {
        priors.seek(r);
        const T* mean = row<T>(args.mean, r);
        const T* log_var = row<T>(args.log_var, r);
        const auto block = [&](int64_t begin_i, int64_t count) {
          Vec<A> sum(0);
          visit_kl_row(
              mean,
              log_var,
              priors,
              begin_i,
              begin_i + count,
              [&](int64_t, int64_t, const auto& diff, const auto& exp_d, const auto& inverse) {
                // Not one term into the sum first: beside large squares it would be rounded away.
                sum = sum + at::vec::fmadd(diff * diff, inverse, exp_d.one_and_v);
              });
          return sum_lanes<A>(sum);
        };
        out[r] = static_cast<A>(0.5 * blocked_sum(args.size, block, kSumBlock / 2));
      }
    });
  });
}

void gaussian_kl_grad(const KlGradArgs& args) {
  with_floating(args.mean.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    using A = acc_t<T>;
    const auto* grad = static_cast<const A*>(args.grad);
    const int64_t size = args.size;
    at::parallel_for(0, args.chunks, 1, [&](int64_t first, int64_t last) {
      Priors<T> priors(args.prior_mean, args.prior_log_var, size);
      for (int64_t chunk = first; chunk < last; ++chunk) {
        GradSink<T> to_mean(args.grad_mean, args.mean.rows.shared(), size, chunk);
        GradSink<T> to_log_var(args.grad_log_var, args.log_var.rows.shared(), size, chunk);
        GradSink<T> to_prior_mean(
            args.grad_prior_mean, args.prior_mean.rows.shared(), size, chunk);
        GradSink<T> to_prior_log_var(
            args.grad_prior_log_var, args.prior_log_var.rows.shared(), size, chunk);
        const auto range = chunk_range(args.rows, args.chunks, chunk);
        for (int64_t r = range.begin; r < range.end; ++r) {
          priors.seek(r);
          const Vec<A> g(grad[r]);
          const Vec<A> half(grad[r] * A(0.5));
          const int64_t at = r * size;
          visit_kl_row(
              row<T>(args.mean, r),
              row<T>(args.log_var, r),
              priors,
              0,
              size,
              [&](int64_t i, int64_t count, const auto& diff, const auto& exp_d,
                  const auto& inverse) {
                const Vec<A> scaled = diff * inverse;
                to_mean.put(at, i, g * scaled, count);
                to_log_var.put(at, i, half * exp_d.one, count);
                to_prior_mean.put(at, i, (g * scaled).neg(), count);
                to_prior_log_var.put(
                    at, i, (half * at::vec::fmadd(diff, scaled, exp_d.one)).neg(), count);
              });
          next_row(to_mean, to_log_var, to_prior_mean, to_prior_log_var);
        }
        finish(to_mean, to_log_var, to_prior_mean, to_prior_log_var);
      }
    });
  });
}

// Vectors of one row that are in registers while its samples pass: memory is then read nearly in order.
constexpr int kRowVectors = 4;

// visit(integral_constant<N>, first, count of the last vector) for groups of N vectors that cover `size`.
template <typename T, typename F>
void each_row_group(int64_t size, F&& visit) {
  constexpr int64_t step = kStep<T>;
  for (int64_t i = 0; i < size; i += kRowVectors * step) {
    const int64_t rest = std::min(size - i, kRowVectors * step);
    const int64_t last = (rest - 1) % step + 1;
    switch ((rest - 1) / step) {
      case 0:
        visit(std::integral_constant<int, 1>{}, i, last);
        break;
      case 1:
        visit(std::integral_constant<int, 2>{}, i, last);
        break;
      case 2:
        visit(std::integral_constant<int, 3>{}, i, last);
        break;
      default:
        visit(std::integral_constant<int, kRowVectors>{}, i, last);
    }
  }
}

// Vector v of a group of N, of which only the last may have less than all lanes.
template <int N, typename T>
inline Vec<acc_t<T>> load_of_group(const T* p, int v, int64_t last) {
  return v + 1 < N || last == kStep<T> ? vload(p + v * kStep<T>) : vload(p + v * kStep<T>, last);
}

template <int N, typename T>
inline void store_of_group(T* p, int v, int64_t last, const Vec<acc_t<T>>& value) {
  if (v + 1 < N || last == kStep<T>) {
    vstore(p + v * kStep<T>, value);
  } else {
    vstore(p + v * kStep<T>, value, last);
  }
}

void reparameterize(const ReparameterizeArgs& args) {
  with_floating(args.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    using A = acc_t<T>;
    const auto* mean = static_cast<const T*>(args.mean);
    const auto* log_var = static_cast<const T*>(args.log_var);
    const auto* eps = static_cast<const T*>(args.eps);
    auto* z = static_cast<T*>(args.z);
    const int64_t grain = grain_rows(args.samples * args.size);
    at::parallel_for(0, args.batch, grain, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        each_row_group<T>(args.size, [&](auto vectors, int64_t i, int64_t last) {
          constexpr int N = decltype(vectors)::value;
          const int64_t row = b * args.size + i;
          Vec<A> m[N];
          Vec<A> std[N];
#pragma GCC unroll 4
          for (int v = 0; v < N; ++v) {
            m[v] = load_of_group<N>(mean + row, v, last);
            std[v] = full_exp(load_of_group<N>(log_var + row, v, last) * Vec<A>(0.5));
          }
          for (int64_t k = 0; k < args.samples; ++k) {
            const int64_t at = (b * args.samples + k) * args.size + i;
#pragma GCC unroll 4
            for (int v = 0; v < N; ++v) {
              const Vec<A> e = load_of_group<N>(eps + at, v, last);
              store_of_group<N>(z + at, v, last, at::vec::fmadd(std[v], e, m[v]));
            }
          }
        });
      }
    });
  });
}

// Samples summed before their sum joins that of the others.
inline constexpr int64_t kSampleBlock = 128;

void reparameterize_grad(const ReparameterizeGradArgs& args) {
  with_floating(args.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    using A = acc_t<T>;
    const auto* grad = static_cast<const T*>(args.grad);
    const auto* log_var = static_cast<const T*>(args.log_var);
    const auto* eps = static_cast<const T*>(args.eps);
    auto* grad_mean = static_cast<T*>(args.grad_mean);
    auto* grad_log_var = static_cast<T*>(args.grad_log_var);
    const int64_t grain = grain_rows(args.samples * args.size);
    at::parallel_for(0, args.batch, grain, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        each_row_group<T>(args.size, [&](auto vectors, int64_t i, int64_t last) {
          constexpr int N = decltype(vectors)::value;
          Vec<A> sum[N];
          Vec<A> sum_eps[N];
#pragma GCC unroll 4
          for (int v = 0; v < N; ++v) {
            sum[v] = Vec<A>(0);
            sum_eps[v] = Vec<A>(0);
          }
          for (int64_t k0 = 0; k0 < args.samples; k0 += kSampleBlock) {
            const int64_t k1 = std::min(args.samples, k0 + kSampleBlock);
            Vec<A> part[N];
            Vec<A> part_eps[N];
#pragma GCC unroll 4
            for (int v = 0; v < N; ++v) {
              part[v] = Vec<A>(0);
              part_eps[v] = Vec<A>(0);
            }
            for (int64_t k = k0; k < k1; ++k) {
              const int64_t at = (b * args.samples + k) * args.size + i;
#pragma GCC unroll 4
              for (int v = 0; v < N; ++v) {
                const Vec<A> g = load_of_group<N>(grad + at, v, last);
                part[v] = part[v] + g;
                part_eps[v] = at::vec::fmadd(g, load_of_group<N>(eps + at, v, last), part_eps[v]);
              }
            }
#pragma GCC unroll 4
            for (int v = 0; v < N; ++v) {
              sum[v] = sum[v] + part[v];
              sum_eps[v] = sum_eps[v] + part_eps[v];
            }
          }
          const int64_t row = b * args.size + i;
#pragma GCC unroll 4
          for (int v = 0; v < N; ++v) {
            if (grad_mean != nullptr) {
              store_of_group<N>(grad_mean + row, v, last, sum[v]);
            }
            if (grad_log_var != nullptr) {
              const Vec<A> half = load_of_group<N>(log_var + row, v, last) * Vec<A>(0.5);
              store_of_group<N>(
                  grad_log_var + row, v, last, Vec<A>(0.5) * full_exp(half) * sum_eps[v]);
            }
          }
        });
      }
    });
  });
}

// Where infinities turned a log-sum-exp into NaN: +inf if there is one and no NaN.
template <typename T>
acc_t<T> log_sum_limit(const T* log_w, int64_t count, int64_t stride) {
  using A = acc_t<T>;
  A limit = -std::numeric_limits<A>::infinity();
  for (int64_t k = 0; k < count; ++k) {
    const A value = static_cast<A>(log_w[k * stride]);
    if (std::isnan(value)) {
      return value;
    }
    limit = std::max(limit, value);
  }
  return limit;
}

void log_mean_exp(const LogMeanExpArgs& args) {
  with_floating(args.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    using A = acc_t<T>;
    const auto* log_w = static_cast<const T*>(args.log_w);
    auto* out = static_cast<A*>(args.out);
    const int64_t block = args.count * args.inner;
    at::parallel_for(0, args.outer, grain_rows(block), [&](int64_t begin, int64_t end) {
      ColumnSums<A> columns(args.inner);
      for (int64_t o = begin; o < end; ++o) {
        columns.reduce(log_w + o * block, args.count);
        // Of the mean: log(sum) - log(count) would cancel where all log-weights are alike.
        columns.take_logs(static_cast<A>(args.count));
        for (int64_t j = 0; j < args.inner; ++j) {
          A value = columns.highest[j] + columns.log_sum[j];
          if (std::isnan(value)) {
            value = log_sum_limit(log_w + o * block + j, args.count, args.inner);
          }
          out[o * args.inner + j] = value;
        }
      }
    });
  });
}

// The gradient of a column whose result is infinite: zero at -inf, shared by the infinite entries at +inf.
template <typename T>
void log_mean_exp_limit_grad(
    const T* log_w,
    T* grad_log_w,
    acc_t<T> out,
    acc_t<T> grad,
    int64_t count,
    int64_t stride) {
  using A = acc_t<T>;
  const A infinity = std::numeric_limits<A>::infinity();
  int64_t hot = 0;
  for (int64_t k = 0; k < count; ++k) {
    hot += out > 0 && static_cast<A>(log_w[k * stride]) == infinity;
  }
  for (int64_t k = 0; k < count; ++k) {
    const bool shares = hot > 0 && static_cast<A>(log_w[k * stride]) == infinity;
    grad_log_w[k * stride] = static_cast<T>(shares ? grad / static_cast<A>(hot) : A(0));
  }
}

void log_mean_exp_grad(const LogMeanExpGradArgs& args) {
  with_floating(args.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    using A = acc_t<T>;
    constexpr int step = kStep<T>;
    const auto* log_w = static_cast<const T*>(args.log_w);
    const auto* out = static_cast<const A*>(args.out);
    const auto* grad = static_cast<const A*>(args.grad);
    auto* grad_log_w = static_cast<T*>(args.grad_log_w);
    const int64_t inner = args.inner;
    const int64_t block = args.count * inner;
    at::parallel_for(0, args.outer, grain_rows(block), [&](int64_t begin, int64_t end) {
      ColumnSums<A> columns(inner);
      for (int64_t o = begin; o < end; ++o) {
        const T* from = log_w + o * block;
        T* to = grad_log_w + o * block;
        // The sums again, rather than exp(log_w - out): the rounding of out would be in every weight.
        columns.reduce(from, args.count);
        for (int64_t j = 0; j < inner; ++j) {
          columns.coefficient[j] = grad[o * inner + j] / columns.sum[j];
        }
        // Along the longer dimension: the reduced one for rows, the kept one for columns.
        const int64_t lines = inner == 1 ? 1 : args.count;
        const int64_t length = inner == 1 ? args.count : inner;
        const auto kept = [&](const std::vector<A>& values, int64_t i, int64_t count) {
          return inner == 1 ? Vec<A>(values[0]) : vload(values.data() + i, count);
        };
        for (int64_t line = 0; line < lines; ++line) {
          for (int64_t i = 0; i < length; i += step) {
            const int64_t count = std::min<int64_t>(step, length - i);
            const int64_t at = line * length + i;
            const Vec<A> shifted = vload(from + at, count) - kept(columns.highest, i, count);
            vstore(to + at, kept(columns.coefficient, i, count) * full_exp(shifted), count);
          }
        }
        for (int64_t j = 0; j < inner; ++j) {
          const A value = out[o * inner + j];
          if (std::isinf(value)) {
            log_mean_exp_limit_grad(from + j, to + j, value, grad[o * inner + j], args.count, inner);
          }
        }
      }
    });
  });
}

} // namespace
} // namespace CPU_CAPABILITY

void fill(LatentKernels& kernels) {
  kernels.gaussian_kl = gaussian_kl;
  kernels.gaussian_kl_grad = gaussian_kl_grad;
  kernels.reparameterize = reparameterize;
  kernels.reparameterize_grad = reparameterize_grad;
  kernels.log_mean_exp = log_mean_exp;
  kernels.log_mean_exp_grad = log_mean_exp_grad;
}

} // namespace dgm_fast
