// Kernels of the variational bounds: decoder likelihood, prior and posterior terms in one pass.

#include "categorical.h"
#include "decoder.h"
#include "dispatch.h"
#include "bounds_table.h"

#include <atomic>
#include <vector>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {
namespace {

// Importance weights below exp(-60) of the largest are zero: their gradients would be denormal in float32
// and slow everything that touches them, and they are far below rounding.
inline constexpr double kNegligible = -60.0;

void iwae_bound(IwaeArgs& args) {
  std::atomic<bool> invalid{false};
  const auto& in = args.in;
  with_floating(in.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    using A = acc_t<T>;
    auto* log_w = static_cast<A*>(args.log_w);
    auto* bound = static_cast<A*>(args.bound);
    const auto* log_prior = static_cast<const A*>(in.log_prior);
    const auto* z = static_cast<const A*>(in.z);
    const int64_t row_work = in.size * std::max<int64_t>(1, in.classes) + in.latent;
    // Over (b, k) rows and not over b: evaluation runs a few data points with thousands of samples.
    const int64_t grain = grain_rows(row_work);
    at::parallel_for(0, in.batch * in.samples, grain, [&](int64_t begin, int64_t end) {
      Decoder<T> decoder(in);
      Posterior<A> posterior(in);
      int64_t checked = -1;
      bool row_valid = true;
      for (int64_t r = begin; r < end; ++r) {
        const int64_t b = r / in.samples;
        if (b != checked) {
          checked = b;
          row_valid = decoder.valid(b);
          if (!row_valid) {
            invalid.store(true, std::memory_order_relaxed);
          }
        }
        if (!row_valid) {
          log_w[r] = std::numeric_limits<A>::quiet_NaN();
          continue;
        }
        posterior.seek(b);
        log_w[r] = static_cast<A>(
            decoder.log_prob(b, r - b * in.samples) +
            posterior.log_ratio(z + r * in.latent, log_prior == nullptr) +
            (log_prior != nullptr ? log_prior[r] : A(0)));
      }
    });
    at::parallel_for(0, in.batch, grain_rows(in.samples), [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        const A* w = log_w + b * in.samples;
        const auto row = row_exp_sum(w, in.samples);
        // Of the mean: log(sum) - log(K) would cancel where all log-weights are alike.
        A value = row.highest + std::log(row.sum / static_cast<A>(in.samples));
        if (std::isnan(value)) {
          A highest = w[0];
          for (int64_t k = 1; k < in.samples; ++k) {
            highest = w[k] > highest || std::isnan(w[k]) ? w[k] : highest;
          }
          value = highest;
        }
        bound[b] = value;
      }
    });
  });
  args.invalid = invalid.load();
}

template <typename A>
A* offset(void* p, int64_t count) {
  return p == nullptr ? nullptr : static_cast<A*>(p) + count;
}

// The gradient of a log-variance that the samples of row b share: a row, or one number.
template <typename A>
void put_shared_log_var(const BoundArgs& in, const std::vector<A>& row, void* grad, int64_t b) {
  if (in.log_var_stride[2] != 0) {
    std::copy(row.begin(), row.end(), offset<A>(grad, b * in.size));
    return;
  }
  double total = 0;
  for (const A value : row) {
    total += value;
  }
  *offset<A>(grad, b) = static_cast<A>(total);
}

// A finished sum into its row of a gradient that may not be wanted.
template <typename A>
void put(RowSums<A>& sums, A* grad) {
  if (grad != nullptr) {
    const auto& row = sums.finish();
    std::copy(row.begin(), row.end(), grad);
  }
}

// The normalised weights of one batch row times its upstream gradient; +inf shares among its equals. Formed
// from the log-weights alone: through the rounded bound they would not add up to 1.
template <typename A>
void weights(const A* log_w, A bound, A grad, int64_t samples, A* out) {
  const A infinity = std::numeric_limits<A>::infinity();
  if (std::isinf(bound)) {
    int64_t hot = 0;
    for (int64_t k = 0; k < samples; ++k) {
      hot += log_w[k] == infinity;
    }
    for (int64_t k = 0; k < samples; ++k) {
      out[k] = log_w[k] == infinity ? grad / static_cast<A>(hot) : A(0);
    }
    return;
  }
  const auto row = row_exp_sum(log_w, samples);
  for (int64_t k = 0; k < samples; ++k) {
    const A relative = log_w[k] - row.highest;
    out[k] = relative < A(kNegligible) ? A(0) : grad * std::exp(relative) / row.sum;
  }
}

void iwae_bound_grad(const IwaeGradArgs& args) {
  const auto& in = args.in;
  with_floating(in.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    using A = acc_t<T>;
    const auto* grad = static_cast<const A*>(args.grad);
    const auto* bound = static_cast<const A*>(args.bound);
    const auto* log_w = static_cast<const A*>(args.log_w);
    const int64_t samples = in.samples;
    const int64_t size = in.size;
    const int64_t latent = in.latent;
    const int64_t row_work = size * std::max<int64_t>(1, in.classes) + latent;
    at::parallel_for(0, in.batch, grain_rows(samples * row_work), [&](int64_t begin, int64_t end) {
      Decoder<T> decoder(in);
      Posterior<A> posterior(in);
      std::vector<A> weight(samples);
      const bool own = args.grad_out_log_var != nullptr && decoder.own_variance();
      const bool shared = args.grad_out_log_var != nullptr && !own;
      RowSums<A> shared_log_var(shared ? size : 0);
      RowSums<A> x_sum(args.grad_x != nullptr ? size : 0);
      RowSums<A> mean_sum(latent);
      RowSums<A> log_var_sum(latent);
      const int64_t row_size = decoder.row_size();
      for (int64_t b = begin; b < end; ++b) {
        weights(log_w + b * samples, bound[b], grad[b], samples, weight.data());
        posterior.seek(b);
        for (auto* sums : {&shared_log_var, &x_sum, &mean_sum, &log_var_sum}) {
          sums->restart();
        }
        for (int64_t k = 0; k < samples; ++k) {
          const int64_t r = b * samples + k;
          const A w = weight[k];
          auto* grad_out = offset<T>(args.grad_out, r * row_size);
          auto* grad_own = own ? offset<T>(args.grad_out_log_var, r * size) : nullptr;
          auto* grad_z = offset<A>(args.grad_z, r * latent);
          if (args.grad_log_prior != nullptr) {
            *offset<A>(args.grad_log_prior, r) = w;
          }
          if (w == A(0)) {
            // Also keeps 0 * inf out of rows that the bound does not depend on.
            if (grad_out != nullptr) {
              std::fill_n(grad_out, row_size, T(0));
            }
            if (grad_own != nullptr) {
              std::fill_n(grad_own, size, T(0));
            }
            if (grad_z != nullptr) {
              std::fill_n(grad_z, latent, A(0));
            }
            continue;
          }
          decoder.grad(
              b,
              k,
              w,
              grad_out,
              grad_own,
              shared ? shared_log_var.data() : nullptr,
              args.grad_x != nullptr ? x_sum.data() : nullptr,
              args.stream);
          // d log w / d mean = -(z - mean) / var, d log w / d log_var = (1 - (z - mean)^2 / var) / 2.
          const A* z = static_cast<const A*>(in.z) + r * latent;
          const Vec<A> wv(w);
          for (int64_t i = 0; i < latent; i += kLanes<A>) {
            const int64_t count = std::min<int64_t>(kLanes<A>, latent - i);
            const Vec<A> zi = vload(z + i, count);
            const Vec<A> diff = zi - vload(posterior.mean + i, count);
            const Vec<A> scaled = diff * vload(posterior.inverse_variance.data() + i, count);
            if (grad_z != nullptr) {
              vstore(
                  grad_z + i, wv * (in.log_prior == nullptr ? scaled - zi : scaled), count);
            }
            if (!args.stop_score) {
              A* m = mean_sum.data() + i;
              A* v = log_var_sum.data() + i;
              vstore(m, vload(m, count) - wv * scaled, count);
              vstore(
                  v,
                  vload(v, count) +
                      wv * Vec<A>(0.5) * at::vec::fmadd(diff.neg(), scaled, Vec<A>(1)),
                  count);
            }
          }
          for (auto* sums : {&shared_log_var, &x_sum, &mean_sum, &log_var_sum}) {
            sums->next();
          }
        }
        put(x_sum, offset<A>(args.grad_x, b * size));
        put(mean_sum, offset<A>(args.grad_mean, b * latent));
        put(log_var_sum, offset<A>(args.grad_log_var, b * latent));
        if (shared) {
          put_shared_log_var(in, shared_log_var.finish(), args.grad_out_log_var, b);
        }
      }
      finish_streaming(args.stream);
    });
  });
}

void elbo(ElboArgs& args) {
  std::atomic<bool> invalid{false};
  const auto& in = args.in;
  with_floating(in.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    using A = acc_t<T>;
    auto* elbo = static_cast<A*>(args.elbo);
    const int64_t row_work = in.size * std::max<int64_t>(1, in.classes) + in.latent;
    at::parallel_for(0, in.batch, grain_rows(row_work), [&](int64_t begin, int64_t end) {
      Decoder<T> decoder(in);
      for (int64_t b = begin; b < end; ++b) {
        if (!decoder.valid(b)) {
          invalid.store(true, std::memory_order_relaxed);
          elbo[b] = std::numeric_limits<A>::quiet_NaN();
          continue;
        }
        const A* mean = static_cast<const A*>(in.mean) + b * in.latent;
        const A* log_var = static_cast<const A*>(in.log_var) + b * in.latent;
        const double kl = 0.5 * blocked_sum(in.latent, [&](int64_t first, int64_t length) {
          Vec<A> sum(0);
          for (int64_t i = first; i < first + length; i += kLanes<A>) {
            const int64_t count = std::min<int64_t>(kLanes<A>, first + length - i);
            const Vec<A> m = vload(mean + i, count);
            sum = sum + at::vec::fmadd(m, m, exp_minus(vload(log_var + i, count)).one_and_v);
          }
          return sum_lanes<A>(sum);
        });
        elbo[b] = static_cast<A>(decoder.log_prob(b, 0) - args.beta * kl);
      }
    });
  });
  args.invalid = invalid.load();
}

void elbo_grad(const ElboGradArgs& args) {
  const auto& in = args.in;
  with_floating(in.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    using A = acc_t<T>;
    const auto* grad = static_cast<const A*>(args.grad);
    const int64_t size = in.size;
    const int64_t row_work = size * std::max<int64_t>(1, in.classes) + in.latent;
    at::parallel_for(0, in.batch, grain_rows(row_work), [&](int64_t begin, int64_t end) {
      Decoder<T> decoder(in);
      std::vector<A> log_var_row(args.grad_out_log_var != nullptr ? size : 0);
      const bool own = args.grad_out_log_var != nullptr && decoder.own_variance();
      for (int64_t b = begin; b < end; ++b) {
        auto* grad_x = offset<A>(args.grad_x, b * size);
        if (grad_x != nullptr) {
          std::fill_n(grad_x, size, A(0));
        }
        std::fill(log_var_row.begin(), log_var_row.end(), A(0));
        decoder.grad(
            b,
            0,
            grad[b],
            offset<T>(args.grad_out, b * decoder.row_size()),
            own ? offset<T>(args.grad_out_log_var, b * size) : nullptr,
            own || args.grad_out_log_var == nullptr ? nullptr : log_var_row.data(),
            grad_x,
            args.stream);
        if (args.grad_out_log_var != nullptr && !own) {
          put_shared_log_var(in, log_var_row, args.grad_out_log_var, b);
        }
        const A* mean = static_cast<const A*>(in.mean) + b * in.latent;
        const A* log_var = static_cast<const A*>(in.log_var) + b * in.latent;
        auto* grad_mean = offset<A>(args.grad_mean, b * in.latent);
        auto* grad_log_var = offset<A>(args.grad_log_var, b * in.latent);
        const Vec<A> scale(-grad[b] * static_cast<A>(args.beta));
        for (int64_t i = 0; i < in.latent; i += kLanes<A>) {
          const int64_t count = std::min<int64_t>(kLanes<A>, in.latent - i);
          if (grad_mean != nullptr) {
            vstore(grad_mean + i, scale * vload(mean + i, count), count);
          }
          if (grad_log_var != nullptr) {
            vstore(
                grad_log_var + i,
                scale * Vec<A>(0.5) * exp_minus(vload(log_var + i, count)).one,
                count);
          }
        }
      }
      finish_streaming(args.stream);
    });
  });
}

} // namespace
} // namespace CPU_CAPABILITY

void fill(BoundsKernels& kernels) {
  kernels.elbo = elbo;
  kernels.elbo_grad = elbo_grad;
  kernels.iwae_bound = iwae_bound;
  kernels.iwae_bound_grad = iwae_bound_grad;
}

} // namespace dgm_fast
