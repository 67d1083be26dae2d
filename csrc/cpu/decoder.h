// The two sides of a bound for one thread: the decoder's likelihood and the posterior.
#pragma once

#include "categorical.h"
#include "rows.h"
#include "bounds_table.h"

#include <memory>
#include <vector>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

// The decoder side of one thread: log p(x | z) of a row, and its gradients.
template <typename T>
class Decoder {
 public:
  using A = acc_t<T>;

  explicit Decoder(const BoundArgs& args)
      : args_(args),
        columns_(args.likelihood == Likelihood::Categorical ? args.size : 0),
        inverse_variance_(args.out_log_var != nullptr ? args.size : 0) {}

  bool valid(int64_t b) const {
    if (args_.likelihood == Likelihood::Bernoulli) {
      return in_unit_interval(x(b), args_.size);
    }
    if (args_.likelihood == Likelihood::Categorical) {
      return all_classes(classes(b), args_.size);
    }
    return true;
  }

  double log_prob(int64_t b, int64_t k) {
    const T* out = row_of(args_.out, b, k);
    const int64_t size = args_.size;
    if (args_.likelihood == Likelihood::Bernoulli) {
      return bernoulli_row(out, x(b), size);
    }
    if (args_.likelihood == Likelihood::Gaussian) {
      const double constant = -0.5 * kLog2Pi * static_cast<double>(size);
      if (args_.out_log_var == nullptr) {
        const A* none = nullptr;
        return constant + gaussian_row<Variance::Unit>(x(b), out, none, size);
      }
      if (own_variance()) {
        return constant + gaussian_row<Variance::Log>(x(b), out, log_var_row(b, k), size);
      }
      const A* inverse = shared_inverse_variance(b, k);
      return constant - 0.5 * log_var_sum_ +
          gaussian_row<Variance::Inverse>(x(b), out, inverse, size);
    }
    columns_.reduce(out, args_.classes);
    columns_.take_logs();
    return columns_.log_prob(out, classes(b), 0, size);
  }

  // Write grad times the gradients of log_prob(b, k). Null pointers are not wanted; grad_log_var_sum and
  // grad_x add up over k.
  void grad(
      int64_t b,
      int64_t k,
      A grad,
      T* grad_out,
      T* grad_log_var,
      A* grad_log_var_sum,
      A* grad_x,
      bool stream) {
    const T* out = row_of(args_.out, b, k);
    const int64_t size = args_.size;
    if (args_.likelihood == Likelihood::Bernoulli) {
      bernoulli_row_grad(grad, out, x(b), grad_out, grad_x, size, stream);
    } else if (args_.likelihood == Likelihood::Gaussian) {
      gaussian_grads(b, k, grad, grad_out, grad_log_var, grad_log_var_sum, grad_x, stream);
    } else if (grad_out != nullptr) {
      if (!categorical_grad_) {
        categorical_grad_ = std::make_unique<CategoricalGrad<A>>(args_.classes, size);
      }
      std::fill(categorical_grad_->grad.begin(), categorical_grad_->grad.end(), grad);
      categorical_grad_->run(out, classes(b), grad_out, stream);
    }
  }

  // Elements of one row of decoder outputs.
  int64_t row_size() const {
    return args_.size * (args_.likelihood == Likelihood::Categorical ? args_.classes : 1);
  }

  bool own_variance() const {
    return args_.log_var_stride[1] != 0;
  }

 private:
  const T* row_of(const void* p, int64_t b, int64_t k) const {
    return static_cast<const T*>(p) + (b * args_.samples + k) * row_size();
  }

  const A* x(int64_t b) const {
    return static_cast<const A*>(args_.x) + b * args_.size;
  }

  const int32_t* classes(int64_t b) const {
    return static_cast<const int32_t*>(args_.x) + b * args_.size;
  }

  const T* log_var_row(int64_t b, int64_t k) const {
    return static_cast<const T*>(args_.out_log_var) + b * args_.log_var_stride[0] +
        k * args_.log_var_stride[1];
  }

  // exp(-log_var) of a row that the samples share, recomputed only where it changes.
  const A* shared_inverse_variance(int64_t b, int64_t k) {
    const T* source = log_var_row(b, k);
    if (source != inverted_) {
      inverted_ = source;
      log_var_sum_ = 0;
      for (int64_t j = 0; j < args_.size; ++j) {
        const A value = static_cast<A>(source[j * args_.log_var_stride[2]]);
        log_var_sum_ += value;
        inverse_variance_[j] = -value;
      }
      for (int64_t j = 0; j < args_.size; j += kLanes<A>) {
        const int64_t count = std::min<int64_t>(kLanes<A>, args_.size - j);
        A* p = inverse_variance_.data() + j;
        vstore(p, full_exp(vload(p, count)), count);
      }
    }
    return inverse_variance_.data();
  }

  void gaussian_grads(
      int64_t b,
      int64_t k,
      A grad,
      T* grad_mean,
      T* grad_log_var,
      A* grad_log_var_sum,
      A* grad_x,
      bool stream) {
    constexpr int step = kStep<T>;
    const T* mean = row_of(args_.out, b, k);
    const bool unit = args_.out_log_var == nullptr;
    const bool own = !unit && own_variance();
    const A* inverse = unit || own ? nullptr : shared_inverse_variance(b, k);
    const T* log_var = own ? log_var_row(b, k) : nullptr;
    const Vec<A> g(grad);
    const auto add = [](A* p, const Vec<A>& value, int64_t count) {
      vstore(p, vload(p, count) + value, count);
    };
    for (int64_t i = 0; i < args_.size; i += step) {
      const int64_t count = std::min<int64_t>(step, args_.size - i);
      Vec<A> scale(1);
      if (own) {
        scale = full_exp(vload(log_var + i, count).neg());
      } else if (!unit) {
        scale = vload(inverse + i, count);
      }
      const auto gradients =
          gaussian_grad<A>(vload(x(b) + i, count) - vload(mean + i, count), scale);
      if (grad_mean != nullptr) {
        vwrite(grad_mean + i, g * gradients.mean, stream, count);
      }
      if (grad_log_var != nullptr) {
        vwrite(grad_log_var + i, g * gradients.log_var, stream, count);
      }
      if (grad_log_var_sum != nullptr) {
        add(grad_log_var_sum + i, g * gradients.log_var, count);
      }
      if (grad_x != nullptr) {
        add(grad_x + i, (g * gradients.mean).neg(), count);
      }
    }
  }

  const BoundArgs& args_;
  ColumnSums<A> columns_;
  std::unique_ptr<CategoricalGrad<A>> categorical_grad_; // made when first needed
  std::vector<A> inverse_variance_;
  const T* inverted_ = nullptr;
  double log_var_sum_ = 0;
};

// The posterior of one batch row, in the sum's dtype.
template <typename A>
class Posterior {
 public:
  explicit Posterior(const BoundArgs& args) : inverse_variance(args.latent), args_(args) {}

  void seek(int64_t b) {
    if (b == row_) {
      return;
    }
    row_ = b;
    mean = static_cast<const A*>(args_.mean) + b * args_.latent;
    log_var = static_cast<const A*>(args_.log_var) + b * args_.latent;
    for (int64_t i = 0; i < args_.latent; i += kLanes<A>) {
      const int64_t count = std::min<int64_t>(kLanes<A>, args_.latent - i);
      vstore(inverse_variance.data() + i, full_exp(vload(log_var + i, count).neg()), count);
    }
    half_log_var_sum = 0;
    for (int64_t i = 0; i < args_.latent; ++i) {
      half_log_var_sum += 0.5 * log_var[i];
    }
  }

  // log p(z) - log q(z | x) for a standard normal prior, where 1/2 log 2 pi cancels; without one,
  // -log q(z | x).
  double log_ratio(const A* z, bool standard_prior) const {
    const double sum = blocked_sum(args_.latent, [&](int64_t first, int64_t length) {
      Vec<A> part(0);
      for (int64_t i = first; i < first + length; i += kLanes<A>) {
        const int64_t count = std::min<int64_t>(kLanes<A>, first + length - i);
        const Vec<A> zi = vload(z + i, count);
        const Vec<A> diff = zi - vload(mean + i, count);
        part = at::vec::fmadd(diff * diff, vload(inverse_variance.data() + i, count), part);
        if (standard_prior) {
          part = at::vec::fmadd(zi.neg(), zi, part);
        }
      }
      return sum_lanes<A>(part);
    });
    const double constant = standard_prior ? 0 : 0.5 * kLog2Pi * static_cast<double>(args_.latent);
    return 0.5 * sum + half_log_var_sum + constant;
  }

  const A* mean = nullptr;
  const A* log_var = nullptr;
  std::vector<A> inverse_variance;
  double half_log_var_sum = 0;

 private:
  const BoundArgs& args_;
  int64_t row_ = -1;
};

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
