// CDFs of mixtures of logistics (Flow++), a vector of elements at a time, and their inverse.
//
// With a = (x - mean) / s, E = exp(-|a|) and h = 1 / (1 + E), a component's CDF is h or E h, and its density
// E h^2 / s: one exponential for both.

#include "columns.h"
#include "dispatch.h"
#include "spline_table.h"

#include <atomic>
#include <vector>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kGroup = 256;
constexpr int kMaxSteps = 200;

// |a| up to here keeps products with it finite.
template <typename A>
inline constexpr A kFarthest = std::is_same_v<A, double> ? A(1e100) : A(1e15);

template <typename A>
inline constexpr A kFarthestOffset = std::is_same_v<A, double> ? A(1e200) : A(1e30);

// The logit of F to this precision is one more Newton step from the root's.
template <typename A>
inline constexpr A kNear = std::is_same_v<A, double> ? A(1e-10) : A(1e-4);

// Components of a vector of elements, in columns.
template <typename T>
class Components {
 public:
  using A = acc_t<T>;
  static constexpr int lanes = kStep<T>;
  enum Column { kLogits, kMeans, kLogScales, kWeight, kInverse, kA, kE, kH, kShare, kColumns, kCdf = kE, kTurn = kH };

  explicit Components(int64_t number)
      : number_(number), memory_((kColumns + 1) * number * lanes, A(0)) {}

  int64_t number() const {
    return number_;
  }
  A* column(int which, int64_t k) {
    return memory_.data() + (which * number_ + k) * lanes;
  }
  A* columns(int which) {
    return column(which, 0);
  }
  Vec<A> get(Column which, int64_t k) {
    return Vec<A>::loadu(column(which, k));
  }
  void set(Column which, int64_t k, const Vec<A>& v) {
    v.store(column(which, k));
  }
  A* buffer() {
    return columns(kColumns);
  }

  // Weights and inverse scales of elements [first, first + count).
  void load(const LogisticCdfArgs& args, int64_t first, int64_t count) {
    const auto read = [&](const ParameterRows& p, Column which) {
      load_columns(
          static_cast<const T*>(p.data),
          LaneOffsets<lanes>(p.rows, first, count),
          p.stride,
          number_,
          count,
          columns(which),
          buffer());
    };
    read(args.logits, kLogits);
    read(args.means, kMeans);
    read(args.log_scales, kLogScales);
    Vec<A> highest = get(kLogits, 0);
    for (int64_t k = 1; k < number_; ++k) {
      highest = max_ignoring_nan(get(kLogits, k), highest);
    }
    Vec<A> sum(0);
    for (int64_t k = 0; k < number_; ++k) {
      const Vec<A> e = full_exp(get(kLogits, k) - highest);
      set(kWeight, k, e);
      sum = sum + e;
      set(kInverse, k, fast_exp(get(kLogScales, k).neg()));
    }
    const Vec<A> normaliser = reciprocal(sum);
    log_normaliser = highest + sum.log();
    for (int64_t k = 0; k < number_; ++k) {
      set(kWeight, k, get(kWeight, k) * normaliser);
    }
  }

  Vec<A> distance(const Vec<A>& x, int64_t k) {
    const Vec<A> a = (x - get(kMeans, k)) * get(kInverse, k);
    return at_most(at_least(a, -kFarthest<A>), kFarthest<A>);
  }

  Vec<A> log_normaliser{A(0)};

 private:
  int64_t number_;
  std::vector<A> memory_;
};

template <typename A>
struct Density {
  Vec<A> below, above; // F and 1 - F
  Vec<A> highest, sum; // log density = highest + log(sum)

  Vec<A> log() const {
    return highest + sum.log();
  }
};

// A sum of densities in here has lost nothing to underflow or overflow.
template <typename A>
inline constexpr A kLargestDensity = std::is_same_v<A, double> ? A(1e250) : A(1e30);

// The densities of the components, from their logarithms: relative to the largest where all are tiny or huge.
template <typename T>
void rescale(Components<T>& components, Density<acc_t<T>>& result) {
  using A = acc_t<T>;
  using C = Components<T>;
  result.highest = Vec<A>(-std::numeric_limits<A>::infinity());
  result.sum = Vec<A>(0);
  for (int64_t k = 0; k < components.number(); ++k) {
    const Vec<A> joint = components.get(C::kLogits, k) - components.log_normaliser -
        components.get(C::kLogScales, k) - components.get(C::kA, k).abs();
    components.set(C::kShare, k, joint);
    result.highest = max_ignoring_nan(joint, result.highest);
  }
  for (int64_t k = 0; k < components.number(); ++k) {
    const Vec<A> h = components.get(C::kH, k);
    const Vec<A> share = full_exp(components.get(C::kShare, k) - result.highest) * h * h;
    components.set(C::kShare, k, share);
    result.sum = result.sum + share;
  }
}

// At x; leaves a, E, h and each component's share of the density in its columns.
template <typename T>
Density<acc_t<T>> density(Components<T>& components, const Vec<acc_t<T>>& x) {
  using A = acc_t<T>;
  using C = Components<T>;
  const Vec<A> one(1);
  Density<A> result{Vec<A>(0), Vec<A>(0), Vec<A>(0), Vec<A>(0)};
  for (int64_t k = 0; k < components.number(); ++k) {
    const Vec<A> a = components.distance(x, k);
    const Vec<A> e = full_exp(a.abs().neg());
    const Vec<A> h = reciprocal(one + e);
    const auto left = less(a, Vec<A>(0));
    const Vec<A> near = components.get(C::kWeight, k) * h;
    const Vec<A> far = near * e;
    const Vec<A> share = far * h * components.get(C::kInverse, k);
    result.below = result.below + select(left, far, near);
    result.above = result.above + select(left, near, far);
    result.sum = result.sum + share;
    components.set(C::kA, k, a);
    components.set(C::kE, k, e);
    components.set(C::kH, k, h);
    components.set(C::kShare, k, share);
  }
  const Vec<A> largest(kLargestDensity<A>);
  if (!(less(one / largest, result.sum) & less(result.sum, largest)).all()) {
    rescale(components, result);
  }
  return result;
}

// x with F(x) = z in (0, 1): Newton's method on logit F, which is nearly straight, kept within a bracket that shrinks
// by halves where its steps do not (Press et al., "Numerical Recipes", section 9.4). The quantiles of the components
// are the first bracket.
template <typename T>
Vec<acc_t<T>> quantile(Components<T>& components, const Vec<acc_t<T>>& z) {
  using A = acc_t<T>;
  using C = Components<T>;
  const Vec<A> zero(0);
  const Vec<A> one(1);
  const Vec<A> half(A(0.5));
  const Vec<A> logit = (z / (one - z)).log();
  Vec<A> low(std::numeric_limits<A>::max());
  Vec<A> high(std::numeric_limits<A>::lowest());
  Vec<A> x(0);
  for (int64_t k = 0; k < components.number(); ++k) {
    const Vec<A> weight = components.get(C::kWeight, k);
    const Vec<A> own = components.get(C::kMeans, k) + logit / components.get(C::kInverse, k);
    const auto absent = less_equal(weight, zero);
    low = select(absent, low, at::vec::minimum(low, own));
    high = select(absent, high, at::vec::maximum(high, own));
    x = x + select(absent, zero, weight * own);
  }
  x = at::vec::minimum(at::vec::maximum(x, low), high);
  Vec<A> last = high - low;
  auto done = less(zero, zero);
  const Vec<A> resolution(std::numeric_limits<A>::epsilon());
  for (int step = 0; step < kMaxSteps; ++step) {
    Vec<A> below(0);
    Vec<A> above(0);
    Vec<A> slope(0);
    for (int64_t k = 0; k < components.number(); ++k) {
      const Vec<A> a = components.distance(x, k);
      const Vec<A> e = fast_exp(a.abs().neg());
      const Vec<A> h = reciprocal(one + e);
      const Vec<A> near = components.get(C::kWeight, k) * h;
      const Vec<A> far = near * e;
      const auto left = less(a, zero);
      below = below + select(left, far, near);
      above = above + select(left, near, far);
      slope = at::vec::fmadd(far * h, components.get(C::kInverse, k), slope);
    }
    const Vec<A> excess = (below / above).log() - logit;
    const auto short_of = less(excess, zero);
    low = select(short_of, x, low);
    high = select(short_of, high, x);
    // d logit F / d x = slope / (F (1 - F)).
    const Vec<A> newton = excess * below * above / slope;
    const Vec<A> target = x - newton;
    const auto trusted = less_equal(low, target) & less_equal(target, high) &
        less_equal(newton.abs() + newton.abs(), last);
    const Vec<A> next = select(trusted, target, half * (low + high));
    const Vec<A> moved = (next - x).abs();
    const auto arrived = (trusted & less(excess.abs(), Vec<A>(kNear<A>))) |
        less_equal(moved, resolution * next.abs());
    // A lane that is there stays: while others move on, its own rounding would send it back to bisection.
    x = select(done, x, next);
    last = moved;
    done = done | arrived;
    if (done.all()) {
      break;
    }
  }
  return x;
}

void logistic_cdf(LogisticCdfArgs& args) {
  std::atomic<bool> invalid{false};
  with_floating(args.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    using A = acc_t<T>;
    constexpr int lanes = kStep<T>;
    const A infinity = std::numeric_limits<A>::infinity();
    const Vec<A> zero(0);
    const Vec<A> one(1);
    const auto* x = static_cast<const T*>(args.x);
    auto* y = static_cast<T*>(args.y);
    auto* log_det = static_cast<A*>(args.log_det);
    const int64_t groups = (args.count + kGroup - 1) / kGroup;
    at::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
      Components<T> components(args.components);
      for (int64_t i = begin * kGroup; i < std::min(args.count, end * kGroup); i += lanes) {
        const int64_t count = std::min<int64_t>(lanes, args.count - i);
        components.load(args, i, count);
        const Vec<A> at = vload(x + i, count, A(0.5));
        if (!args.inverse) {
          const auto value = density(components, at);
          vstore(y + i, at_most(value.below, A(1)), count);
          vstore(log_det + i, value.log(), count);
          continue;
        }
        if (!(less_equal(zero, at) & less_equal(at, one)).all()) {
          invalid.store(true, std::memory_order_relaxed);
        }
        // The ends of the real line are their own case.
        const A least = std::numeric_limits<A>::min();
        const Vec<A> inside =
            at_most(at_least(at, least), A(1) - std::numeric_limits<A>::epsilon() / 2);
        Vec<A> root = quantile(components, inside);
        Vec<A> log = density(components, root).log().neg();
        const auto at_zero = less_equal(at, zero);
        const auto at_one = less_equal(one, at);
        root = select(at_zero, Vec<A>(-infinity), select(at_one, Vec<A>(infinity), root));
        log = select(at_zero | at_one, Vec<A>(infinity), log);
        vstore(y + i, root, count);
        vstore(log_det + i, log, count);
      }
    });
  });
  args.invalid = invalid.load();
}

template <typename T>
class LogisticCdfGrad {
 public:
  using A = acc_t<T>;
  using C = Components<T>;
  static constexpr int lanes = kStep<T>;

  explicit LogisticCdfGrad(const LogisticCdfGradArgs& args)
      : args_(args), components_(args.in.components) {}

  void vector(int64_t i, int64_t count) {
    const LogisticCdfArgs& in = args_.in;
    const Vec<A> zero(0);
    const Vec<A> one(1);
    components_.load(in, i, count);
    // At the point of the real line, which the inverse has found.
    const Vec<A> at = vload(static_cast<const T*>(in.inverse ? in.y : in.x) + i, count);
    const auto value = density(components_, at);
    const Vec<A> inverse_sum = reciprocal(value.sum);
    // d log f / d x; of E and h only the component's CDF and d log density / d a = 1 - 2 CDF stay.
    Vec<A> bend(0);
    for (int64_t k = 0; k < in.components; ++k) {
      const Vec<A> e = components_.get(C::kE, k);
      const Vec<A> h = components_.get(C::kH, k);
      const auto left = less(components_.get(C::kA, k), zero);
      const Vec<A> size = (one - e) * h;
      const Vec<A> turn = select(left, size, size.neg());
      const Vec<A> share = components_.get(C::kShare, k) * inverse_sum;
      components_.set(C::kCdf, k, select(left, e * h, h));
      components_.set(C::kTurn, k, turn);
      components_.set(C::kShare, k, share);
      bend = at::vec::fmadd(share * turn, components_.get(C::kInverse, k), bend);
    }
    const auto upstream = [&](const void* grad) {
      return grad == nullptr ? zero : vload(static_cast<const A*>(grad) + i, count);
    };
    const Vec<A> of_y = upstream(args_.grad_y);
    Vec<A> of_log = upstream(args_.grad_log_det);
    Vec<A> of_f; // gradient that the density carries: of F, times f
    Vec<A> of_cdf;
    const Vec<A> log = value.log();
    if (in.inverse) {
      of_log = of_log.neg();
      const Vec<A> of_x = at::vec::fmadd(of_log, bend, of_y);
      of_f = of_x.neg();
      of_cdf = of_f * full_exp(log.neg());
      put(args_.grad_x, i, of_cdf.neg(), count);
    } else {
      of_cdf = of_y;
      of_f = of_y * full_exp(log);
      put(args_.grad_x, i, at::vec::fmadd(of_log, bend, of_f), count);
    }
    for (int64_t k = 0; k < in.components; ++k) {
      const Vec<A> share = components_.get(C::kShare, k);
      const Vec<A> weight = components_.get(C::kWeight, k);
      const Vec<A> turn = components_.get(C::kTurn, k);
      const Vec<A> cdf = components_.get(C::kCdf, k);
      const Vec<A> inverse = components_.get(C::kInverse, k);
      const Vec<A> a = components_.get(C::kA, k);
      // (x - mean) of a point at infinity would make 0 times infinity of a share of 0.
      const Vec<A> offset =
          at_most(at_least(at - components_.get(C::kMeans, k), -kFarthestOffset<A>), kFarthestOffset<A>);
      // In place of what the next component does not need.
      components_.set(
          C::kMeans,
          k,
          (share * at::vec::fmadd(of_log * turn, inverse, of_f)).neg());
      components_.set(
          C::kLogScales,
          k,
          (share * at::vec::fmadd(of_f, offset, of_log * at::vec::fmadd(a, turn, one))).neg());
      components_.set(
          C::kLogits,
          k,
          at::vec::fmadd(of_cdf * weight, cdf - value.below, of_log * (share - weight)));
    }
    store(args_.grad_logits, C::kLogits, i, count);
    store(args_.grad_means, C::kMeans, i, count);
    store(args_.grad_log_scales, C::kLogScales, i, count);
  }

 private:
  void put(void* to, int64_t i, const Vec<A>& value, int64_t count) {
    if (to != nullptr) {
      vstore(static_cast<T*>(to) + i, value, count);
    }
  }

  void store(void* to, typename C::Column which, int64_t i, int64_t count) {
    if (to != nullptr) {
      const int64_t number = args_.in.components;
      store_columns(
          components_.columns(which),
          number,
          count,
          static_cast<T*>(to) + i * number,
          components_.buffer());
    }
  }

  const LogisticCdfGradArgs& args_;
  C components_;
};

void logistic_cdf_grad(const LogisticCdfGradArgs& args) {
  const int64_t total = args.in.count;
  const int64_t groups = (total + kGroup - 1) / kGroup;
  with_floating(args.in.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    constexpr int lanes = kStep<T>;
    at::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
      LogisticCdfGrad<T> grad(args);
      for (int64_t i = begin * kGroup; i < std::min(total, end * kGroup); i += lanes) {
        grad.vector(i, std::min<int64_t>(lanes, total - i));
      }
    });
  });
}

} // namespace
} // namespace CPU_CAPABILITY

void fill_logistic_cdf(SplineKernels& kernels) {
  kernels.logistic_cdf = logistic_cdf;
  kernels.logistic_cdf_grad = logistic_cdf_grad;
}

} // namespace dgm_fast
