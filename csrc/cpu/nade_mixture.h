// Mixtures of Gaussians or logistics in one dimension, a vector of them at a time.
#pragma once

#include "nade_state.h"
#include "rows.h"
#include "nade_table.h"

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

// -log_scale is capped here: its exponential squared is finite.
template <typename A>
inline constexpr A kMaxLogInverse = std::is_same_v<A, double> ? A(350) : A(43);

template <typename A>
class MixtureTile {
 public:
  static constexpr int lanes = kLanes<A>;

  MixtureTile(int64_t count, bool with_logits, Mixture mixture)
      : count_(count),
        with_logits_(with_logits),
        mixture_(mixture),
        joint_(count * lanes),
        distance_(count * lanes),
        weight_(count * lanes) {}

  // values: (logits,) means, log-scales, [count, lanes] each
  void evaluate(const A* values, const Vec<A>& x) {
    weigh(values);
    const A* means = values + (with_logits_ ? count_ * lanes : 0);
    const A* log_scales = means + count_ * lanes;
    highest_ = Vec<A>(std::numeric_limits<A>::lowest());
    for (int64_t m = 0; m < count_; ++m) {
      const int64_t at = m * lanes;
      const Vec<A> log_scale = Vec<A>::loadu(log_scales + at);
      const Vec<A> t = (x - Vec<A>::loadu(means + at)) * inverse_scale(log_scale);
      const Vec<A> joint = (log_weight(values, m) - log_scale) + log_kernel(t);
      t.store(distance_.data() + at);
      joint.store(joint_.data() + at);
      highest_ = max_ignoring_nan<A>(joint, highest_);
    }
    sum_ = Vec<A>(0);
    for (int64_t m = 0; m < count_; ++m) {
      const Vec<A> value = full_exp(Vec<A>::loadu(joint_.data() + m * lanes) - highest_);
      value.store(joint_.data() + m * lanes);
      sum_ = sum_ + value;
    }
  }

  Vec<A> log_prob() const {
    return highest_ + sum_.log();
  }

  // Replaces the values by their gradients and returns that of x. Lanes where no component reaches x get none.
  Vec<A> gradients(const Vec<A>& grad, A* values) const {
    A* means = values + (with_logits_ ? count_ * lanes : 0);
    A* log_scales = means + count_ * lanes;
    const auto none = equal(sum_, Vec<A>(0));
    const Vec<A> upstream = select(none, Vec<A>(0), grad);
    const Vec<A> share = upstream / select(none, Vec<A>(1), sum_);
    Vec<A> to_x(0);
    for (int64_t m = 0; m < count_; ++m) {
      const int64_t at = m * lanes;
      const Vec<A> responsibility = share * Vec<A>::loadu(joint_.data() + at);
      const Vec<A> log_scale = Vec<A>::loadu(log_scales + at);
      const Vec<A> t = Vec<A>::loadu(distance_.data() + at);
      // How fast the log-density falls with the distance, weighted first: the product with a large distance is 0 where
      // the responsibility is.
      const Vec<A> slope = responsibility * (mixture_ == Mixture::Gaussian ? t : tanh_half(t));
      const Vec<A> to_mean = slope * inverse_scale(log_scale);
      const auto capped = less(log_scale, Vec<A>(-kMaxLogInverse<A>));
      const Vec<A> stretch = select(capped, Vec<A>(0), slope * t);
      if (with_logits_) {
        const Vec<A> to_logit = responsibility - upstream * Vec<A>::loadu(weight_.data() + at);
        select(certain_, Vec<A>(0), to_logit).store(values + at);
      }
      to_mean.store(means + at);
      (stretch - responsibility).store(log_scales + at);
      to_x = to_x - to_mean;
    }
    return to_x;
  }

 private:
  static Vec<A> inverse_scale(const Vec<A>& log_scale) {
    return full_exp(at_most(log_scale.neg(), kMaxLogInverse<A>));
  }

  // The log-density of the standard distribution.
  Vec<A> log_kernel(const Vec<A>& t) const {
    if (mixture_ == Mixture::Gaussian) {
      return at::vec::fmsub(t * t, Vec<A>(-0.5), Vec<A>(A(0.5 * kLog2Pi)));
    }
    const Vec<A> far = t.abs().neg();
    return far - Vec<A>(2) * (Vec<A>(1) + exp_nonpositive(far)).log();
  }

  // tanh(t / 2) = 2 sigmoid(t) - 1 without cancellation at 0.
  static Vec<A> tanh_half(const Vec<A>& t) {
    const auto e = exp_minus(t.abs().neg());
    const Vec<A> size = e.one.neg() / (Vec<A>(2) + e.one);
    return select(less(t, Vec<A>(0)), size.neg(), size);
  }

  Vec<A> log_weight(const A* values, int64_t m) const {
    if (!with_logits_) {
      return Vec<A>(-std::log(A(count_)));
    }
    const Vec<A> logit = Vec<A>::loadu(values + m * lanes);
    const Vec<A> regular = (logit - top_) - log_total_;
    const Vec<A> infinity(std::numeric_limits<A>::infinity());
    // Entries of +inf share the whole weight.
    const Vec<A> hot = select(equal(logit, infinity), log_total_.neg(), infinity.neg());
    return select(certain_, select(empty_, infinity.neg(), hot), regular);
  }

  // Softmax of the logits, with its limits where some are infinite.
  void weigh(const A* logits) {
    if (!with_logits_) {
      return;
    }
    const Vec<A> infinity(std::numeric_limits<A>::infinity());
    top_ = infinity.neg();
    for (int64_t m = 0; m < count_; ++m) {
      top_ = max_ignoring_nan<A>(Vec<A>::loadu(logits + m * lanes), top_);
    }
    empty_ = equal(top_, infinity.neg());
    const auto hot = equal(top_, infinity);
    certain_ = empty_ | hot;
    Vec<A> total(0);
    for (int64_t m = 0; m < count_; ++m) {
      const Vec<A> logit = Vec<A>::loadu(logits + m * lanes);
      const Vec<A> one = select(equal(logit, infinity), Vec<A>(1), Vec<A>(0));
      const Vec<A> weight = select(certain_, one, full_exp(logit - top_));
      weight.store(weight_.data() + m * lanes);
      total = total + weight;
    }
    total = select(empty_, Vec<A>(1), total);
    log_total_ = total.log();
    for (int64_t m = 0; m < count_; ++m) {
      (Vec<A>::loadu(weight_.data() + m * lanes) / total).store(weight_.data() + m * lanes);
    }
  }

  int64_t count_;
  bool with_logits_;
  Mixture mixture_;
  Scratch<A> joint_, distance_, weight_; // [count, lanes]
  Vec<A> highest_{A(0)}, sum_{A(0)}, top_{A(0)}, log_total_{A(0)};
  Mask<A> empty_ = less(Vec<A>(0), Vec<A>(0));
  Mask<A> certain_ = less(Vec<A>(0), Vec<A>(0));
};

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
