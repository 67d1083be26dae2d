// Discretized mixture of logistics (PixelCNN++): a vector of pixels at a time, one pass over its mixtures.
//
// With m = |x - mean| / s, u = (half a bin) / s, E = exp(-m), q = exp(-u), everything that the piecewise
// definition needs is rational in E and q, without cancellation:
//
//   CDF difference               E (1 - q^2) / ((1 + E q)(q + E))
//   outermost bin, mean inside   1 / (1 + E q)
//   outermost bin, mean outside  exp(-m) / (q + E)
//   density times width          exp(-m - log s) / (1 + E)^2 * 2 / (levels - 1)
//
// Each is exp(linear) numerator / denominator; the fractions are multiplied over the channels before one
// logarithm.

#include "dispatch.h"
#include "mixture_table.h"

#include <atomic>
#include <vector>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {
namespace {

constexpr double kMinLogScale = -7.0;
constexpr double kMinDifference = 1e-5;
// exp(-2 kMaxExponent) is not visible beside 1, and cubes of exp(-kMaxExponent) kMinDifference are normal.
template <typename A>
inline constexpr A kMaxExponent = std::is_same_v<A, double> ? A(20) : A(10);
// Pixels that one partial sum covers, whatever the number of threads.
constexpr int64_t kPixelBlock = 1024;

template <typename A>
struct Constants {
  A half_bin, edge, log_bins;

  explicit Constants(const LogisticMixtureArgs& args)
      : half_bin(A(1.0 / (args.levels - 1))),
        edge(A(args.edge)),
        log_bins(A(std::log((args.levels - 1) / 2))) {}
};

// One channel of a vector of pixels.
template <typename A>
struct Pixel {
  Vec<A> x;
  Mask<A> left, edge; // in the leftmost bin, in either of the outermost
  bool any_edge;

  Pixel() = default;
  Pixel(const Vec<A>& value, const Constants<A>& constants)
      : x(value),
        left(less(value, Vec<A>(-constants.edge))),
        edge(left | less(Vec<A>(constants.edge), value)),
        any_edge(edge.any()) {}
};

template <typename A>
struct Term {
  Vec<A> linear, numerator, denominator;
  Vec<A> d_mean, d_log_scale; // of the log-probability
};

// Inlined by force: as a call it would pass its vectors through memory.
template <bool Grad, typename A>
[[gnu::always_inline]] inline Term<A> logistic_term(
    const Pixel<A>& pixel,
    const Vec<A>& mean,
    const Vec<A>& raw_log_scale,
    const Constants<A>& constants) {
  const Vec<A> zero(0);
  const Vec<A> one(1);
  const Vec<A> log_scale = at_least(raw_log_scale, A(kMinLogScale));
  const Vec<A> inverse = exp_short(at_least(log_scale.neg(), A(-87)));
  const Vec<A> centre = (pixel.x - mean) * inverse;
  const Vec<A> m = centre.abs();
  const Vec<A> u = Vec<A>(constants.half_bin) * inverse;
  // Coarse levels: E and q may both underflow where their ratio decides. A common factor is taken out of
  // them, which changes nothing else that is visible.
  const Vec<A> shift = at_least(at::vec::minimum(m, u) - Vec<A>(kMaxExponent<A>), A(0));
  const Vec<A> e = exp_to_zero(shift - m);
  const auto [q, minus] = exp_pair(shift - u);
  const Vec<A> width = minus.neg() * (one + q); // 1 - q^2
  const Vec<A> far = at::vec::fmadd(e, q, one);
  const Vec<A> near = q + e;
  const Vec<A> product = far * near;
  const Vec<A> whole = e * width;
  const Vec<A> one_e = one + e;
  const auto difference = less(Vec<A>(A(kMinDifference)) * product, whole);
  Term<A> term;
  term.numerator = select(difference, whole, one);
  term.denominator = select(difference, product, one_e * one_e);
  term.linear =
      select(difference, zero, m.neg() - log_scale - Vec<A>(constants.log_bins));
  const auto negative = less(centre, zero);
  Vec<A> by_centre, by_u, divisor; // numerators of the derivatives and their common denominator
  if constexpr (Grad) {
    const Vec<A> slope = select(difference, q * (one - e * e) * width, one - e);
    by_centre = select(negative, slope, slope.neg());
    by_u = select(difference, q * at::vec::fmadd(near, near, far * far), zero);
    divisor = select(difference, product * width, one_e);
  }
  auto direct = difference; // whether the log-scale does not appear by itself
  if (pixel.any_edge) {
    // The leftmost bin holds the mean where x >= mean, the rightmost where x <= mean.
    const auto inside = (pixel.left & less_equal(zero, centre)) |
        (less(zero, pixel.x) & less_equal(centre, zero));
    const Vec<A> denominator = select(inside, far, near);
    term.numerator = select(pixel.edge, one, term.numerator);
    term.denominator = select(pixel.edge, denominator, term.denominator);
    term.linear = select(pixel.edge, select(inside, zero, shift - m), term.linear);
    if constexpr (Grad) {
      const Vec<A> slope = select(inside, q * e, q);
      by_centre = select(pixel.edge, select(pixel.left, slope, slope.neg()), by_centre);
      by_u = select(pixel.edge, slope, by_u);
      divisor = select(pixel.edge, denominator, divisor);
      direct = direct | pixel.edge;
    }
  }
  if constexpr (Grad) {
    const Vec<A> inverse_divisor = reciprocal(divisor);
    const Vec<A> d_centre = by_centre * inverse_divisor;
    const Vec<A> d_scale = at::vec::fmadd(centre, d_centre, u * by_u * inverse_divisor);
    term.d_mean = (inverse * d_centre).neg();
    const Vec<A> d_log_scale = select(direct, d_scale.neg(), d_scale.neg() - one);
    const auto clamped = less(raw_log_scale, Vec<A>(A(kMinLogScale)));
    term.d_log_scale = select(clamped, zero, d_log_scale);
  }
  return term;
}

// tanh without cancellation around 0.
template <typename A>
[[gnu::always_inline]] inline Vec<A> tanh_of(const Vec<A>& v) {
  const Vec<A> minus = exp_pair(v.abs() * Vec<A>(-2)).minus_one;
  const Vec<A> positive = minus.neg() * reciprocal(Vec<A>(2) + minus);
  return select(less(v, Vec<A>(0)), positive.neg(), positive);
}

// The parameters of one image at a vector of pixels.
template <typename T>
struct Parameters {
  const LogisticMixtureArgs& args;
  const T* data;
  int64_t count;

  int64_t row(int64_t parameter, int64_t mixture, int64_t channel) const {
    return args.mixtures + parameter * args.parameter_stride + mixture * args.mixture_stride +
        channel * args.channel_stride;
  }
  Vec<acc_t<T>> at(int64_t row) const {
    return vload(data + row * args.pixels, count);
  }
};

// Log-weights of a vector of pixels, relative to their maximum, and what normalises them.
template <typename A>
struct Weights {
  Vec<A> highest, sum;
  Mask<A> empty, certain; // all logits -inf; some +inf
  bool any_certain;

  template <typename T>
  explicit Weights(const Parameters<T>& parameters) {
    const A infinity = std::numeric_limits<A>::infinity();
    const int64_t mixtures = parameters.args.mixtures;
    Vec<A> top(-infinity);
    for (int64_t k = 0; k < mixtures; ++k) {
      top = max_ignoring_nan(parameters.at(k), top);
    }
    empty = equal(top, Vec<A>(-infinity));
    certain = equal(top, Vec<A>(infinity));
    any_certain = certain.any();
    // A floor in place of -inf: exp(-inf - floor) is 0.
    highest = select(empty | certain, Vec<A>(0), top);
    sum = Vec<A>(0);
    for (int64_t k = 0; k < mixtures; ++k) {
      sum = sum + exp_to_zero(shifted(parameters, k));
    }
  }

  template <typename T>
  Vec<A> shifted(const Parameters<T>& parameters, int64_t k) const {
    const Vec<A> logit = parameters.at(k);
    const Vec<A> difference = logit - highest;
    if (!any_certain) {
      return difference;
    }
    // Entries of +inf share the whole weight.
    const A infinity = std::numeric_limits<A>::infinity();
    const Vec<A> share = select(equal(logit, Vec<A>(infinity)), Vec<A>(0), Vec<A>(-infinity));
    return select(certain, share, difference);
  }
};

// Room for one vector of pixels: the joint log-probabilities of the mixtures and, for gradients, derivatives
// by mean, log-scale and coefficient of every channel.
template <typename A>
struct Scratch {
  std::vector<A> joint, derivatives;

  Scratch(int64_t mixtures, int64_t per_mixture)
      : joint(mixtures * kLanes<A>), derivatives(mixtures * per_mixture * kLanes<A>) {}
};

template <int C, typename A>
inline constexpr int kDerivatives = C == 1 ? 2 : 9;

// log prod_c P(x_c | mixture k), with its derivatives put into `derivatives`.
template <bool Grad, int C, typename T>
inline Vec<acc_t<T>> mixture_log_prob(
    const Parameters<T>& parameters,
    int64_t k,
    const Pixel<acc_t<T>>* pixel,
    const Constants<acc_t<T>>& constants,
    acc_t<T>* derivatives) {
  using A = acc_t<T>;
  constexpr int lanes = kLanes<A>;
  Vec<A> linear(0);
  Vec<A> numerator(1);
  Vec<A> denominator(1);
  const auto visit = [&](int c, const Vec<A>& mean) __attribute__((always_inline)) {
    const auto term = logistic_term<Grad>(
        pixel[c], mean, parameters.at(parameters.row(1, k, c)), constants);
    linear = linear + term.linear;
    numerator = numerator * term.numerator;
    denominator = denominator * term.denominator;
    if constexpr (Grad) {
      term.d_mean.store(derivatives + c * lanes);
      term.d_log_scale.store(derivatives + (C + c) * lanes);
    }
    return term.d_mean;
  };
  visit(0, parameters.at(parameters.row(0, k, 0)));
  if constexpr (C == 3) {
    const Vec<A> red_in_green = tanh_of(parameters.at(parameters.row(2, k, 0)));
    const Vec<A> red_in_blue = tanh_of(parameters.at(parameters.row(2, k, 1)));
    const Vec<A> green_in_blue = tanh_of(parameters.at(parameters.row(2, k, 2)));
    const Vec<A>& red = pixel[0].x;
    const Vec<A>& green = pixel[1].x;
    const Vec<A> d_green = visit(
        1, at::vec::fmadd(red_in_green, red, parameters.at(parameters.row(0, k, 1))));
    const Vec<A> d_blue = visit(
        2,
        at::vec::fmadd(
            green_in_blue,
            green,
            at::vec::fmadd(red_in_blue, red, parameters.at(parameters.row(0, k, 2)))));
    if constexpr (Grad) {
      const auto through = [](const Vec<A>& weight, const Vec<A>& gradient) {
        return gradient - gradient * weight * weight;
      };
      through(red_in_green, d_green * red).store(derivatives + 6 * lanes);
      through(red_in_blue, d_blue * red).store(derivatives + 7 * lanes);
      through(green_in_blue, d_blue * green).store(derivatives + 8 * lanes);
    }
  }
  return linear + (numerator * reciprocal(denominator)).log();
}

// Sums of exponentials of the joint log-probabilities.
template <typename A>
struct JointSum {
  Vec<A> highest, sum;

  JointSum(const std::vector<A>& joint, int64_t mixtures) {
    highest = Vec<A>(std::numeric_limits<A>::lowest());
    for (int64_t k = 0; k < mixtures; ++k) {
      highest = max_ignoring_nan(Vec<A>::loadu(joint.data() + k * kLanes<A>), highest);
    }
    sum = Vec<A>(0);
    for (int64_t k = 0; k < mixtures; ++k) {
      sum = sum + exp_to_zero(Vec<A>::loadu(joint.data() + k * kLanes<A>) - highest);
    }
  }
};

// visit(sample, first pixel, parameters, pixel channels) for every vector of pixels of a block.
template <typename T, int C, typename F>
inline void each_vector(
    const LogisticMixtureArgs& args,
    int64_t sample,
    int64_t block,
    const Constants<acc_t<T>>& constants,
    F&& visit) {
  using A = acc_t<T>;
  const int64_t rows = C == 1 ? 3 * args.mixtures : 10 * args.mixtures;
  const T* image = static_cast<const T*>(args.params) + sample * rows * args.pixels;
  const A* x = static_cast<const A*>(args.x) + sample * args.x_stride;
  const int64_t end = std::min(args.pixels, (block + 1) * kPixelBlock);
  for (int64_t j = block * kPixelBlock; j < end; j += kLanes<A>) {
    const int64_t count = std::min<int64_t>(kLanes<A>, end - j);
    const Parameters<T> parameters{args, image + j, count};
    Pixel<A> pixel[C];
    for (int c = 0; c < C; ++c) {
      pixel[c] = Pixel<A>(vload(x + c * args.pixels + j, count), constants);
    }
    visit(j, parameters, pixel);
  }
}

template <typename F>
void with_layout(const LogisticMixtureArgs& args, F&& visit) {
  with_floating(args.dtype, [&](auto t) {
    if (args.channels == 1) {
      visit(t, std::integral_constant<int, 1>{});
    } else {
      visit(t, std::integral_constant<int, 3>{});
    }
  });
}

void logistic_mixture(LogisticMixtureArgs& args) {
  std::atomic<bool> invalid{false};
  const int64_t blocks = (args.pixels + kPixelBlock - 1) / kPixelBlock;
  with_layout(args, [&](auto t, auto channels) {
    using T = typename decltype(t)::type;
    using A = acc_t<T>;
    constexpr int C = decltype(channels)::value;
    const Constants<A> constants(args);
    std::vector<A> partial(args.batch * blocks);
    at::parallel_for(0, args.batch * blocks, 1, [&](int64_t begin, int64_t end) {
      Scratch<A> scratch(args.mixtures, 0);
      for (int64_t item = begin; item < end; ++item) {
        Vec<A> total(0);
        each_vector<T, C>(
            args,
            item / blocks,
            item % blocks,
            constants,
            [&](int64_t, const Parameters<T>& parameters, const Pixel<A>* pixel) {
              for (int c = 0; c < C; ++c) {
                if (!less_equal(pixel[c].x.abs(), Vec<A>(1)).all()) {
                  invalid.store(true, std::memory_order_relaxed);
                }
              }
              const Weights<A> weights(parameters);
              for (int64_t k = 0; k < args.mixtures; ++k) {
                const Vec<A> log_prob =
                    mixture_log_prob<false, C>(parameters, k, pixel, constants, nullptr);
                (weights.shifted(parameters, k) + log_prob)
                    .store(scratch.joint.data() + k * kLanes<A>);
              }
              const JointSum<A> joint(scratch.joint, args.mixtures);
              Vec<A> value = joint.highest + (joint.sum / weights.sum).log();
              value = select(
                  weights.empty, Vec<A>(-std::numeric_limits<A>::infinity()), value);
              A lanes[kLanes<A>];
              value.store(lanes);
              total = total + vload(lanes, parameters.count);
            });
        partial[item] = sum_lanes<A>(total);
      }
    });
    auto* out = static_cast<A*>(args.out);
    for (int64_t b = 0; b < args.batch; ++b) {
      out[b] = 0;
      for (int64_t block = 0; block < blocks; ++block) {
        out[b] += partial[b * blocks + block];
      }
    }
  });
  args.invalid = invalid.load();
}

void logistic_mixture_grad(const LogisticMixtureGradArgs& args) {
  const LogisticMixtureArgs& in = args.in;
  const int64_t blocks = (in.pixels + kPixelBlock - 1) / kPixelBlock;
  with_layout(in, [&](auto t, auto channels) {
    using T = typename decltype(t)::type;
    using A = acc_t<T>;
    constexpr int C = decltype(channels)::value;
    constexpr int lanes = kLanes<A>;
    constexpr int derivatives = kDerivatives<C, A>;
    const Constants<A> constants(in);
    const auto* grad = static_cast<const A*>(args.grad);
    const int64_t rows = C == 1 ? 3 * in.mixtures : 10 * in.mixtures;
    at::parallel_for(0, in.batch * blocks, 1, [&](int64_t begin, int64_t end) {
      Scratch<A> scratch(in.mixtures, derivatives);
      for (int64_t item = begin; item < end; ++item) {
        const int64_t sample = item / blocks;
        const Vec<A> g(grad[sample]);
        T* image = static_cast<T*>(args.grad_params) + sample * rows * in.pixels;
        each_vector<T, C>(
            in,
            sample,
            item % blocks,
            constants,
            [&](int64_t j, const Parameters<T>& parameters, const Pixel<A>* pixel) {
              const Weights<A> weights(parameters);
              for (int64_t k = 0; k < in.mixtures; ++k) {
                const Vec<A> log_prob = mixture_log_prob<true, C>(
                    parameters,
                    k,
                    pixel,
                    constants,
                    scratch.derivatives.data() + k * derivatives * lanes);
                (weights.shifted(parameters, k) + log_prob)
                    .store(scratch.joint.data() + k * lanes);
              }
              const JointSum<A> joint(scratch.joint, in.mixtures);
              const Vec<A> zero(0);
              const auto nothing = weights.empty | equal(joint.sum, zero);
              const Vec<A> of_joint = select(nothing, zero, g / joint.sum);
              const Vec<A> of_weights =
                  select(nothing | weights.certain, zero, g / weights.sum);
              const auto write = [&](int64_t row, const Vec<A>& value) {
                vstore(image + row * in.pixels + j, value, parameters.count);
              };
              for (int64_t k = 0; k < in.mixtures; ++k) {
                const Vec<A> log_joint = Vec<A>::loadu(scratch.joint.data() + k * lanes);
                const Vec<A> share = of_joint * exp_to_zero(log_joint - joint.highest);
                const Vec<A> prior = of_weights * exp_to_zero(weights.shifted(parameters, k));
                write(k, select(weights.certain, zero, share) - prior);
                const A* unit = scratch.derivatives.data() + k * derivatives * lanes;
                for (int p = 0; p < derivatives / C; ++p) {
                  for (int c = 0; c < C; ++c) {
                    const Vec<A> derivative = Vec<A>::loadu(unit + (p * C + c) * lanes);
                    write(parameters.row(p, k, c), share * derivative);
                  }
                }
              }
            });
      }
    });
  });
}

} // namespace
} // namespace CPU_CAPABILITY

void fill_logistic(MixtureKernels& kernels) {
  kernels.logistic_mixture = logistic_mixture;
  kernels.logistic_mixture_grad = logistic_mixture_grad;
}

} // namespace dgm_fast
