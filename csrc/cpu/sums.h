// Long sums in two levels, so that their rounding does not grow with their length: PyTorch adds pairwise, and the
// error rule is measured against that.
#pragma once

#include "vec.h"

#include <algorithm>
#include <vector>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

// Elements before vector accumulators end in a double. With two of them each takes 32 additions, which even equal
// terms, all rounded the same way, survive; with one of them half a block does.
inline constexpr int64_t kSumBlock = 64 * kLanes<float>;

// Rows of a sum over rows before it ends in doubles.
inline constexpr int64_t kRowBlock = 32;

// The sum over blocks of [0, size) of part(begin, count).
template <typename F>
inline double blocked_sum(int64_t size, F&& part, int64_t block = kSumBlock) {
  double sum = 0;
  int64_t begin = 0;
  do {
    const int64_t count = std::min(block, size - begin);
    sum += part(begin, count);
    begin += count;
  } while (begin < size);
  return sum;
}

// The element-wise sum of rows of `size` entries: each is added into data(), followed by next(). Where terms of both
// signs nearly cancel, a smaller block keeps the rounding of the sums on the way small.
template <typename A>
class RowSums {
 public:
  explicit RowSums(int64_t size, int64_t block = kRowBlock) : recent_(size), block_(block) {}

  A* data() {
    return recent_.data();
  }

  void restart() {
    std::fill(recent_.begin(), recent_.end(), A(0));
    std::fill(total_.begin(), total_.end(), 0.0);
    folded_ = false;
    count_ = 0;
  }

  void next() {
    if (++count_ == block_) {
      fold();
    }
  }

  const std::vector<A>& finish() {
    if (folded_) {
      fold();
      std::copy(total_.begin(), total_.end(), recent_.begin());
    }
    return recent_;
  }

 private:
  void fold() {
    count_ = 0;
    folded_ = true;
    total_.resize(recent_.size(), 0.0);
    for (size_t i = 0; i < recent_.size(); ++i) {
      total_[i] += recent_[i];
      recent_[i] = A(0);
    }
  }

  std::vector<A> recent_;
  std::vector<double> total_;
  int64_t block_;
  int64_t count_ = 0;
  bool folded_ = false;
};

// A sum with the rounding errors of its additions beside it. Float alone would drift by the size of the largest
// pre-activation, where a cumulative sum of PyTorch keeps its sums in double.
template <typename A>
struct CompensatedSum {
  Vec<A> sum, error;

  static CompensatedSum load(const A* sum, const A* error) {
    return {Vec<A>::loadu(sum), Vec<A>::loadu(error)};
  }

  void store(A* to_sum, A* to_error) const {
    sum.store(to_sum);
    error.store(to_error);
  }

  Vec<A> value() const {
    if constexpr (std::is_same_v<A, double>) {
      return sum;
    } else {
      return sum + error;
    }
  }

  // Knuth's two-sum: exact for any order of magnitudes.
  void add(const Vec<A>& term) {
    if constexpr (std::is_same_v<A, double>) {
      sum = sum + term;
    } else {
      const Vec<A> total = sum + term;
      const Vec<A> used = total - sum;
      error = error + ((sum - (total - used)) + (term - used));
      sum = total;
    }
  }

  void add_product(const Vec<A>& x, const Vec<A>& w) {
    if constexpr (std::is_same_v<A, double>) {
      sum = at::vec::fmadd(x, w, sum);
    } else {
      const Vec<A> product = x * w;
      error = error + at::vec::fmsub(x, w, product);
      add(product);
    }
  }
};

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
