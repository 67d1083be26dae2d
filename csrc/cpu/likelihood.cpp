// Kernels of the likelihood family.

#include "categorical.h"
#include "dispatch.h"
#include "rows.h"
#include "sink.h"
#include "likelihood_table.h"

#include <atomic>
#include <vector>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {
namespace {

void bernoulli(BernoulliArgs& args) {
  std::atomic<bool> invalid{false};
  with_floating(args.logits.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    with_data<T>(args.x.dtype, [&](auto u) {
      using X = typename decltype(u)::type;
      auto* out = static_cast<acc_t<T>*>(args.out);
      at::parallel_for(0, args.rows, grain_rows(args.size), [&](int64_t begin, int64_t end) {
        const X* checked = nullptr;
        for (int64_t r = begin; r < end; ++r) {
          const X* x = row<X>(args.x, r);
          if (x != checked) {
            if (!in_unit_interval(x, args.size)) {
              invalid.store(true, std::memory_order_relaxed);
            }
            checked = x;
          }
          out[r] = static_cast<acc_t<T>>(bernoulli_row(row<T>(args.logits, r), x, args.size));
        }
      });
    });
  });
  args.invalid = invalid.load();
}

void bernoulli_grad(const BernoulliGradArgs& args) {
  with_floating(args.logits.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    using A = acc_t<T>;
    with_data<T>(args.x.dtype, [&](auto u) {
      using X = typename decltype(u)::type;
      const auto* grad = static_cast<const A*>(args.grad);
      auto* grad_logits = static_cast<T*>(args.grad_logits);
      auto* grad_x = static_cast<A*>(args.grad_x);
      at::parallel_for(0, args.rows, grain_rows(args.size), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          const int64_t at = r * args.size;
          if (grad_x != nullptr) {
            std::fill_n(grad_x + at, args.size, A(0));
          }
          bernoulli_row_grad(
              grad[r],
              row<T>(args.logits, r),
              row<X>(args.x, r),
              grad_logits != nullptr ? grad_logits + at : nullptr,
              grad_x != nullptr ? grad_x + at : nullptr,
              args.size,
              args.stream);
        }
        finish_streaming(args.stream);
      });
    });
  });
}

// Rows of mean and variance, converted or inverted once where all rows share them.
template <typename T>
struct GaussianRows {
  using A = acc_t<T>;
  const Operand& mean;
  const Operand& log_var;
  std::vector<A> shared_mean, inverse_variance;
  double log_var_sum = 0;

  GaussianRows(const Operand& mean_in, const Operand& log_var_in, int64_t rows, int64_t size)
      : mean(mean_in), log_var(log_var_in) {
    if (mean.rows.shared()) {
      shared_mean = shared_row<T>(mean, size);
    }
    // One row has nothing to share.
    if (log_var.present() && log_var.rows.shared() && rows > 1) {
      inverse_variance = shared_row<T>(log_var, size);
      for (auto& value : inverse_variance) {
        log_var_sum += value;
        value = std::exp(-value);
      }
    }
  }

  // visit(mean row, variance tag, variance row, sum of log-variances already taken)
  template <typename F>
  void at(int64_t r, F&& visit) const {
    const auto with_mean = [&](const auto* m) {
      if (!log_var.present()) {
        visit(m, std::integral_constant<Variance, Variance::Unit>{}, static_cast<const A*>(nullptr));
      } else if (!inverse_variance.empty()) {
        visit(
            m,
            std::integral_constant<Variance, Variance::Inverse>{},
            static_cast<const A*>(inverse_variance.data()));
      } else {
        visit(m, std::integral_constant<Variance, Variance::Log>{}, row<T>(log_var, r));
      }
    };
    if (!shared_mean.empty()) {
      with_mean(static_cast<const A*>(shared_mean.data()));
    } else {
      with_mean(row<T>(mean, r));
    }
  }
};

void gaussian(const GaussianArgs& args) {
  with_floating(args.mean.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    using A = acc_t<T>;
    auto* out = static_cast<A*>(args.out);
    const GaussianRows<T> rows(args.mean, args.log_var, args.rows, args.size);
    const double constant =
        -0.5 * (kLog2Pi * static_cast<double>(args.size) + rows.log_var_sum);
    with_own_or_sum_type<T>(args.x.dtype, [&](auto data) {
      using X = typename decltype(data)::type;
      at::parallel_for(0, args.rows, grain_rows(args.size), [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          const X* x = row<X>(args.x, r);
          rows.at(r, [&](const auto* mean, auto variance, const auto* log_var) {
            out[r] = static_cast<A>(
                constant + gaussian_row<variance.value>(x, mean, log_var, args.size));
          });
        }
      });
    });
  });
}

template <typename T, typename X>
void gaussian_grad_rows_of(const GaussianGradArgs& args) {
  using A = acc_t<T>;
  const auto* grad = static_cast<const A*>(args.grad);
  const GaussianRows<T> rows(args.mean, args.log_var, args.rows, args.size);
  constexpr int step = kStep<T>;
  const int64_t size = args.size;
  at::parallel_for(0, args.chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk) {
      GradSink<X> to_x(args.grad_x, args.x.rows.shared(), size, chunk, args.stream);
      GradSink<T> to_mean(args.grad_mean, args.mean.rows.shared(), size, chunk, args.stream);
      GradSink<T> to_log_var(
          args.grad_log_var, args.log_var.rows.shared(), size, chunk, args.stream);
      const auto range = chunk_range(args.rows, args.chunks, chunk);
      for (int64_t r = range.begin; r < range.end; ++r) {
        const X* x = row<X>(args.x, r);
        const Vec<A> g(grad[r]);
        rows.at(r, [&](const auto* mean, auto variance, const auto* log_var) {
          constexpr Variance V = decltype(variance)::value;
          const auto inverse = [&](const Vec<A>& value) {
            if constexpr (V == Variance::Log) {
              return full_exp(value.neg());
            } else {
              return value;
            }
          };
          int64_t i = 0;
          for (; i + step <= size; i += step) {
            Vec<A> variance_row(1);
            if constexpr (V != Variance::Unit) {
              variance_row = inverse(load_as<A>(log_var + i));
            }
            const auto gradients =
                gaussian_grad<A>(load_as<A>(x + i) - load_as<A>(mean + i), variance_row);
            to_x.put(r * size, i, g.neg() * gradients.mean);
            to_mean.put(r * size, i, g * gradients.mean);
            to_log_var.put(r * size, i, g * gradients.log_var);
          }
          if (i < size) {
            const int64_t rest = size - i;
            Vec<A> variance_row(1);
            if constexpr (V != Variance::Unit) {
              variance_row = inverse(load_as<A>(log_var + i, rest));
            }
            const auto gradients = gaussian_grad<A>(
                load_as<A>(x + i, rest) - load_as<A>(mean + i, rest), variance_row);
            to_x.put(r * size, i, g.neg() * gradients.mean, rest);
            to_mean.put(r * size, i, g * gradients.mean, rest);
            to_log_var.put(r * size, i, g * gradients.log_var, rest);
          }
        });
        next_row(to_x, to_mean, to_log_var);
      }
      finish(to_x, to_mean, to_log_var);
    }
    finish_streaming(args.stream);
  });
}

void gaussian_grad_rows(const GaussianGradArgs& args) {
  with_floating(args.mean.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    with_own_or_sum_type<T>(args.x.dtype, [&](auto data) {
      gaussian_grad_rows_of<T, typename decltype(data)::type>(args);
    });
  });
}

void categorical(CategoricalArgs& args) {
  std::atomic<bool> invalid{false};
  with_floating(args.logits.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    using A = acc_t<T>;
    auto* out = static_cast<A*>(args.out);
    const int64_t sums = args.inner / args.event;
    const int64_t grain = grain_rows(args.classes * args.inner);
    at::parallel_for(0, args.outer, grain, [&](int64_t begin, int64_t end) {
      ColumnSums<A> columns(args.inner);
      for (int64_t o = begin; o < end; ++o) {
        const T* logits = row<T>(args.logits, o);
        const int32_t* x = row<int32_t>(args.x, o);
        columns.reduce(logits, args.classes);
        columns.take_logs();
        if (!all_classes(x, args.inner)) {
          invalid.store(true, std::memory_order_relaxed);
          continue;
        }
        for (int64_t s = 0; s < sums; ++s) {
          out[o * sums + s] = static_cast<A>(
              columns.log_prob(logits, x, s * args.event, (s + 1) * args.event));
        }
      }
    });
  });
  args.invalid = invalid.load();
}

void categorical_grad(const CategoricalGradArgs& args) {
  with_floating(args.logits.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    using A = acc_t<T>;
    const auto* grad = static_cast<const A*>(args.grad);
    auto* grad_logits = static_cast<T*>(args.grad_logits);
    const int64_t sums = args.inner / args.event;
    const int64_t block = args.classes * args.inner;
    at::parallel_for(0, args.outer, grain_rows(block), [&](int64_t begin, int64_t end) {
      CategoricalGrad<A> block_grad(args.classes, args.inner);
      for (int64_t o = begin; o < end; ++o) {
        for (int64_t s = 0; s < sums; ++s) {
          std::fill_n(block_grad.grad.data() + s * args.event, args.event, grad[o * sums + s]);
        }
        block_grad.run(row<T>(args.logits, o), row<int32_t>(args.x, o), grad_logits + o * block, args.stream);
      }
      finish_streaming(args.stream);
    });
  });
}

} // namespace
} // namespace CPU_CAPABILITY

void fill(LikelihoodKernels& kernels) {
  kernels.bernoulli = bernoulli;
  kernels.bernoulli_grad = bernoulli_grad;
  kernels.gaussian = gaussian;
  kernels.gaussian_grad = gaussian_grad_rows;
  kernels.categorical = categorical;
  kernels.categorical_grad = categorical_grad;
}

} // namespace dgm_fast
