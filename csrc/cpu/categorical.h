// Log-softmax picks over a [classes, inner] block, without storing the log-softmax.
//
// Sums of exponentials stay split into highest and sum, log sum_c exp(l_c) = highest + log(sum): adding them
// up first would round to the size of the logits what then cancels against a logit.
#pragma once

#include "sums.h"
#include "vec.h"

#include <vector>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

// Classes read together: their maximum is known before their exponentials, so that a running sum is
// rescaled once a block and not once a class. Very many classes take longer blocks, for the rounding of the sum
// over blocks; 256 vectors still fit the first-level cache.
inline int64_t class_block(int64_t classes) {
  return classes > 4096 ? 256 : 32;
}

// For `width` columns of rows `stride` apart: highest[j] = max_c logits[c, j] and sum[j] = sum_c exp(logits[c, j] - highest[j]).
template <typename T>
inline void column_exp_sums(
    const T* logits,
    int64_t classes,
    int64_t stride,
    int64_t width,
    acc_t<T>* highest,
    acc_t<T>* sum) {
  using A = acc_t<T>;
  constexpr int step = kStep<T>;
  // A floor in place of -inf: exp(-inf - floor) is 0, where exp(-inf + inf) would be NaN.
  const A floor = std::numeric_limits<A>::lowest();
  const auto column = [&](int64_t c0, int64_t c1, int64_t j, auto read, auto accumulate) {
    const bool first = c0 == 0;
    Vec<A> top(floor);
    for (int64_t c = c0; c < c1; ++c) {
      top = max_ignoring_nan<A>(read(logits + c * stride + j), top);
    }
    Vec<A> earlier(0);
    if (!first) {
      const Vec<A> before = accumulate(highest + j);
      top = max_ignoring_nan<A>(before, top);
      earlier = accumulate(sum + j) * exp_nonpositive(before - top);
    }
    Vec<A> total(0);
    for (int64_t c = c0; c < c1; ++c) {
      total = total + exp_to_zero(read(logits + c * stride + j) - top);
    }
    return std::pair<Vec<A>, Vec<A>>(top, earlier + total);
  };
  const int64_t block = class_block(classes);
  for (int64_t c0 = 0; c0 < classes; c0 += block) {
    const int64_t c1 = std::min(classes, c0 + block);
    int64_t j = 0;
    for (; j + step <= width; j += step) {
      const auto [top, total] = column(
          c0, c1, j, [](const T* p) { return vload(p); }, [](A* p) { return Vec<A>::loadu(p); });
      top.store(highest + j);
      total.store(sum + j);
    }
    if (j < width) {
      const int64_t rest = width - j;
      const auto [top, total] = column(
          c0,
          c1,
          j,
          [rest](const T* p) { return vload(p, rest); },
          [rest](A* p) { return vload(p, rest); });
      vstore(highest + j, top, rest);
      vstore(sum + j, total, rest);
    }
  }
}

template <typename A>
struct ExpSum {
  A highest, sum;
};

// The same for one contiguous row.
template <typename T>
inline ExpSum<acc_t<T>> row_exp_sum(const T* logits, int64_t classes) {
  using A = acc_t<T>;
  constexpr int step = kStep<T>;
  const A floor = std::numeric_limits<A>::lowest();
  Vec<A> top(floor);
  int64_t c = 0;
  for (; c + step <= classes; c += step) {
    top = max_ignoring_nan<A>(vload(logits + c), top);
  }
  if (c < classes) {
    top = max_ignoring_nan<A>(vload(logits + c, classes - c, floor), top);
  }
  const A highest = max_lanes<A>(top);
  const auto block = [&](int64_t begin, int64_t count) {
    const T* from = logits + begin;
    Vec<A> total(0);
    int64_t i = 0;
    for (; i + step <= count; i += step) {
      total = total + exp_to_zero(vload(from + i) - Vec<A>(highest));
    }
    if (i < count) {
      const A outside = -std::numeric_limits<A>::infinity();
      total = total + exp_to_zero(vload(from + i, count - i, outside) - Vec<A>(highest));
    }
    return sum_lanes<A>(total);
  };
  return {highest, static_cast<A>(blocked_sum(classes, block))};
}

// The sums of one block of columns, and room for two more rows.
template <typename A>
struct ColumnSums {
  std::vector<A> highest, sum, log_sum, coefficient;

  explicit ColumnSums(int64_t inner)
      : highest(inner), sum(inner), log_sum(inner), coefficient(inner) {}

  template <typename T>
  void reduce(const T* logits, int64_t classes) {
    if (highest.size() == 1) {
      const auto row = row_exp_sum(logits, classes);
      highest[0] = row.highest;
      sum[0] = row.sum;
    } else {
      const int64_t inner = static_cast<int64_t>(highest.size());
      column_exp_sums(logits, classes, inner, inner, highest.data(), sum.data());
    }
  }

  // log_sum = log(sum / divisor).
  void take_logs(A divisor = 1) {
    const int64_t inner = static_cast<int64_t>(sum.size());
    for (int64_t j = 0; j < inner; j += kLanes<A>) {
      const int64_t count = std::min<int64_t>(kLanes<A>, inner - j);
      const Vec<A> quotient = vload(sum.data() + j, count, A(1)) / Vec<A>(divisor);
      vstore(log_sum.data() + j, quotient.log(), count);
    }
  }

  // sum over columns [begin, end) of the log-softmax at the classes x; after take_logs().
  template <typename T>
  double log_prob(const T* logits, const int32_t* x, int64_t begin, int64_t end) const {
    const int64_t inner = static_cast<int64_t>(sum.size());
    const auto block = [&](int64_t first, int64_t length) {
      Vec<A> total(0);
      const int64_t last = begin + first + length;
      for (int64_t j = begin + first; j < last; j += kLanes<A>) {
        const int64_t count = std::min<int64_t>(kLanes<A>, last - j);
        A picked[kLanes<A>];
        for (int64_t i = 0; i < count; ++i) {
          picked[i] = static_cast<A>(logits[x[j + i] * inner + j + i]);
        }
        const Vec<A> shifted = vload(picked, count) - vload(highest.data() + j, count);
        total = total + (shifted - vload(log_sum.data() + j, count));
      }
      return sum_lanes<A>(total);
    };
    return blocked_sum(end - begin, block, kSumBlock / 2);
  }
};

// Whether all of x are classes; class_indices() has marked what is none by -1.
inline bool all_classes(const int32_t* x, int64_t count) {
  int32_t lowest = 0;
  for (int64_t j = 0; j < count; ++j) {
    lowest = std::min(lowest, x[j]);
  }
  return lowest >= 0;
}

// Gradients of one block, grad[j] (1{c = x_j} - softmax[c, j]), with the upstream gradients of the columns in
// `grad`. A strip of columns at a time, so that its logits are still in the second-level cache when their sums
// are known.
template <typename A>
class CategoricalGrad {
 public:
  explicit CategoricalGrad(int64_t classes, int64_t inner)
      : classes_(classes),
        inner_(inner),
        width_(std::min(inner, std::max<int64_t>(kLanes<A>, kStripEntries / classes))),
        highest_(width_),
        sum_(width_),
        scale_(width_),
        grad(inner) {
    if (width_ < inner) {
      width_ = width_ / kLanes<A> * kLanes<A>;
    }
  }

  template <typename T>
  void run(const T* logits, const int32_t* x, T* grad_logits, bool stream) {
    if (inner_ == 1) {
      row(logits, x[0], grad_logits);
      return;
    }
    for (int64_t j0 = 0; j0 < inner_; j0 += width_) {
      const int64_t count = std::min(width_, inner_ - j0);
      strip(logits, grad_logits, j0, count, stream);
      picks(logits, x, grad_logits, j0, count);
    }
  }

 private:
  // Entries of a strip: 256 KiB of float, of a second-level cache of 1 MiB or more.
  static constexpr int64_t kStripEntries = 65536;

  template <typename T>
  void strip(const T* logits, T* grad_logits, int64_t j0, int64_t width, bool stream) {
    constexpr int step = kStep<T>;
    // Copies: vector stores may alias anything, so that members would be read again after each.
    const int64_t inner = inner_;
    A* const highest = highest_.data();
    A* const scale = scale_.data();
    column_exp_sums(logits + j0, classes_, inner, width, highest, sum_.data());
    for (int64_t j = 0; j < width; j += step) {
      const int64_t count = std::min<int64_t>(step, width - j);
      const Vec<A> sum = vload(sum_.data() + j, count, A(1));
      vstore(scale + j, vload(grad.data() + j0 + j, count).neg() / sum, count);
    }
    const int64_t whole = width / step * step;
    for (int64_t c = 0; c < classes_; ++c) {
      const T* const from = logits + c * inner + j0;
      T* const to = grad_logits + c * inner + j0;
      for (int64_t j = 0; j < whole; j += step) {
        const Vec<A> e = exp_to_zero(vload(from + j) - Vec<A>::loadu(highest + j));
        vwrite(to + j, Vec<A>::loadu(scale + j) * e, stream);
      }
      if (whole < width) {
        const int64_t rest = width - whole;
        const Vec<A> e = exp_to_zero(vload(from + whole, rest) - vload(highest + whole, rest));
        vstore(to + whole, vload(scale + whole, rest) * e, rest);
      }
    }
  }

  // The entries of the observed classes, from the logits and not from what was just written: 1 - p of a
  // rounded p would cancel.
  template <typename T>
  void picks(const T* logits, const int32_t* x, T* grad_logits, int64_t j0, int64_t width) {
    constexpr int step = kStep<T>;
    for (int64_t j = 0; j < width; j += step) {
      const int64_t count = std::min<int64_t>(step, width - j);
      A picked[kLanes<A>];
      for (int64_t i = 0; i < count; ++i) {
        const int64_t column = j0 + j + i;
        picked[i] = static_cast<A>(logits[x[column] * inner_ + column]);
      }
      const Vec<A> shifted = vload(picked, count) - vload(highest_.data() + j, count);
      const Vec<A> softmax = exp_to_zero(shifted) * vload(scale_.data() + j, count);
      vstore(picked, vload(grad.data() + j0 + j, count) + softmax, count);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t column = j0 + j + i;
        grad_logits[x[column] * inner_ + column] = static_cast<T>(picked[i]);
      }
    }
  }

  // Classes in one contiguous row.
  template <typename T>
  void row(const T* logits, int32_t x, T* grad_logits) {
    constexpr int step = kStep<T>;
    const auto sums = row_exp_sum(logits, classes_);
    const Vec<A> scale(-grad[0] / sums.sum);
    const Vec<A> shift(sums.highest);
    for (int64_t c = 0; c < classes_; c += step) {
      const int64_t count = std::min<int64_t>(step, classes_ - c);
      vstore(grad_logits + c, scale * exp_to_zero(vload(logits + c, count) - shift), count);
    }
    const A softmax = std::exp(static_cast<A>(logits[x]) - sums.highest) / sums.sum;
    grad_logits[x] = static_cast<T>(grad[0] * (A(1) - softmax));
  }

  int64_t classes_, inner_, width_;
  std::vector<A> highest_, sum_, scale_;

 public:
  // Upstream gradients of the columns, for the caller to fill.
  std::vector<A> grad;
};

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
