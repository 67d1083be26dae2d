// Discretized mixture of logistics (PixelCNN++): a vector of pixels at a time, one pass over its mixtures.
//
// The probabilities of logistic_term.h are fractions; they are multiplied over the channels before one logarithm.

#include "dispatch.h"
#include "logistic_term.h"
#include "mixture_table.h"

#include <atomic>
#include <vector>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {
namespace {

// Pixels that one partial sum covers, whatever the number of threads.
constexpr int64_t kPixelBlock = 1024;

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
    const BinnedValue<acc_t<T>>* pixel,
    const LogisticBins<acc_t<T>>& constants,
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
    const Vec<A> red_in_green = tanh_slope(parameters.at(parameters.row(2, k, 0))).value;
    const Vec<A> red_in_blue = tanh_slope(parameters.at(parameters.row(2, k, 1))).value;
    const Vec<A> green_in_blue = tanh_slope(parameters.at(parameters.row(2, k, 2))).value;
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
    const LogisticBins<acc_t<T>>& constants,
    F&& visit) {
  using A = acc_t<T>;
  const int64_t rows = C == 1 ? 3 * args.mixtures : 10 * args.mixtures;
  const T* image = static_cast<const T*>(args.params) + sample * rows * args.pixels;
  const A* x = static_cast<const A*>(args.x) + sample * args.x_stride;
  const int64_t end = std::min(args.pixels, (block + 1) * kPixelBlock);
  for (int64_t j = block * kPixelBlock; j < end; j += kLanes<A>) {
    const int64_t count = std::min<int64_t>(kLanes<A>, end - j);
    const Parameters<T> parameters{args, image + j, count};
    BinnedValue<A> pixel[C];
    for (int c = 0; c < C; ++c) {
      pixel[c] = BinnedValue<A>(vload(x + c * args.pixels + j, count), constants);
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
    const LogisticBins<A> constants(args.levels, args.edge);
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
            [&](int64_t, const Parameters<T>& parameters, const BinnedValue<A>* pixel) {
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
    const LogisticBins<A> constants(in.levels, in.edge);
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
            [&](int64_t j, const Parameters<T>& parameters, const BinnedValue<A>* pixel) {
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
