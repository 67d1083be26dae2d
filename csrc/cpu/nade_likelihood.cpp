// Likelihoods of the outputs of a NADE, with dimensions in lanes: outputs [rows, size, width], a vector of dimensions
// at a time, are turned so that each output is a vector.

#include "nade_mixture.h"
#include "nade_state.h"
#include "rows.h"
#include "nade_table.h"

namespace dgm_fast {
inline namespace CPU_CAPABILITY {
namespace {

// visit(first dimension, count, outputs [width, lanes]) over the dimensions of a row. Lanes past the count are zeros.
template <typename A, typename F>
inline void each_tile(const A* outputs, int64_t size, int64_t width, A* tile, F&& visit) {
  constexpr int lanes = kLanes<A>;
  for (int64_t d = 0; d < size; d += lanes) {
    const int64_t count = std::min<int64_t>(lanes, size - d);
    if (count < lanes) {
      std::fill_n(tile, width * lanes, A(0));
    }
    transpose(outputs + d * width, width, count, width, tile, lanes);
    visit(d, count, tile);
  }
}

// Maximum, and the sum of exponentials from there, over the outputs of each lane.
template <typename A>
struct ClassSums {
  Vec<A> highest, sum;

  ClassSums(const A* tile, int64_t classes)
      : highest(std::numeric_limits<A>::lowest()), sum(0) {
    constexpr int lanes = kLanes<A>;
    for (int64_t k = 0; k < classes; ++k) {
      highest = max_ignoring_nan<A>(Vec<A>::loadu(tile + k * lanes), highest);
    }
    for (int64_t k = 0; k < classes; ++k) {
      sum = sum + exp_to_zero(Vec<A>::loadu(tile + k * lanes) - highest);
    }
  }
};

void nade_categorical(const NadeCategoricalArgs& args) {
  with_sum_type(args.dtype, [&](auto t) {
    using A = typename decltype(t)::type;
    constexpr int lanes = kLanes<A>;
    const auto* outputs = static_cast<const A*>(args.outputs);
    const auto* x = static_cast<const int32_t*>(args.x);
    auto* out = static_cast<A*>(args.out);
    const int64_t size = args.size;
    const int64_t classes = args.classes;
    at::parallel_for(0, args.rows, grain_rows(size * classes), [&](int64_t begin, int64_t end) {
      Scratch<A> tile(classes * lanes);
      for (int64_t r = begin; r < end; ++r) {
        const A* row = outputs + r * size * classes;
        Vec<A> sum(0);
        each_tile(row, size, classes, tile.data(), [&](int64_t d, int64_t count, const A* by_class) {
          const ClassSums<A> sums(by_class, classes);
          A picked[lanes];
          for (int64_t i = 0; i < lanes; ++i) {
            picked[i] = i < count ? by_class[x[r * size + d + i] * lanes + i] : A(0);
          }
          A log_prob[lanes];
          ((Vec<A>::loadu(picked) - sums.highest) - sums.sum.log()).store(log_prob);
          sum = sum + vload(log_prob, count);
        });
        out[r] = sum_lanes<A>(sum);
      }
    });
  });
}

void nade_categorical_grad(const NadeCategoricalGradArgs& args) {
  const NadeCategoricalArgs& in = args.in;
  with_sum_type(in.dtype, [&](auto t) {
    using A = typename decltype(t)::type;
    constexpr int lanes = kLanes<A>;
    const auto* outputs = static_cast<const A*>(in.outputs);
    const auto* x = static_cast<const int32_t*>(in.x);
    const auto* grad = static_cast<const A*>(args.grad);
    auto* to = static_cast<A*>(args.grad_outputs);
    const int64_t size = in.size;
    const int64_t classes = in.classes;
    at::parallel_for(0, in.rows, grain_rows(size * classes), [&](int64_t begin, int64_t end) {
      Scratch<A> tile(classes * lanes);
      for (int64_t r = begin; r < end; ++r) {
        const int64_t at = r * size * classes;
        each_tile(outputs + at, size, classes, tile.data(), [&](int64_t d, int64_t count, A* by_class) {
          const ClassSums<A> sums(by_class, classes);
          const Vec<A> share = Vec<A>(-grad[r]) / sums.sum;
          for (int64_t k = 0; k < classes; ++k) {
            A* value = by_class + k * lanes;
            (share * exp_to_zero(Vec<A>::loadu(value) - sums.highest)).store(value);
          }
          A* rows = to + at + d * classes;
          transpose(by_class, lanes, classes, count, rows, classes);
          for (int64_t i = 0; i < count; ++i) {
            rows[i * classes + x[r * size + d + i]] += grad[r];
          }
        });
      }
    });
  });
}

void nade_mixture(const NadeMixtureArgs& args) {
  with_sum_type(args.dtype, [&](auto t) {
    using A = typename decltype(t)::type;
    constexpr int lanes = kLanes<A>;
    const auto* outputs = static_cast<const A*>(args.outputs);
    const auto* x = static_cast<const A*>(args.x);
    auto* out = static_cast<A*>(args.out);
    const int64_t size = args.size;
    const int64_t width = args.mixtures * (args.with_logits ? 3 : 2);
    at::parallel_for(0, args.rows, grain_rows(size * 4 * width), [&](int64_t begin, int64_t end) {
      Scratch<A> tile(width * lanes);
      MixtureTile<A> mixture(args.mixtures, args.with_logits, args.mixture);
      for (int64_t r = begin; r < end; ++r) {
        Vec<A> sum(0);
        each_tile(
            outputs + r * size * width, size, width, tile.data(), [&](int64_t d, int64_t count, const A* values) {
              mixture.evaluate(values, vload(x + r * size + d, count));
              A log_prob[lanes];
              mixture.log_prob().store(log_prob);
              sum = sum + vload(log_prob, count);
            });
        out[r] = sum_lanes<A>(sum);
      }
    });
  });
}

void nade_mixture_grad(const NadeMixtureGradArgs& args) {
  const NadeMixtureArgs& in = args.in;
  with_sum_type(in.dtype, [&](auto t) {
    using A = typename decltype(t)::type;
    constexpr int lanes = kLanes<A>;
    const auto* outputs = static_cast<const A*>(in.outputs);
    const auto* x = static_cast<const A*>(in.x);
    const auto* grad = static_cast<const A*>(args.grad);
    auto* to = static_cast<A*>(args.grad_outputs);
    auto* to_x = static_cast<A*>(args.grad_x);
    const int64_t size = in.size;
    const int64_t width = in.mixtures * (in.with_logits ? 3 : 2);
    at::parallel_for(0, in.rows, grain_rows(size * 4 * width), [&](int64_t begin, int64_t end) {
      Scratch<A> tile(width * lanes);
      MixtureTile<A> mixture(in.mixtures, in.with_logits, in.mixture);
      for (int64_t r = begin; r < end; ++r) {
        const int64_t at = r * size * width;
        each_tile(outputs + at, size, width, tile.data(), [&](int64_t d, int64_t count, A* values) {
          mixture.evaluate(values, vload(x + r * size + d, count));
          const Vec<A> by_x = mixture.gradients(Vec<A>(grad[r]), values);
          transpose(values, lanes, width, count, to + at + d * width, width);
          if (to_x != nullptr) {
            vstore(to_x + r * size + d, by_x, count);
          }
        });
      }
    });
  });
}

} // namespace
} // namespace CPU_CAPABILITY

void fill_likelihood(NadeKernels& kernels) {
  kernels.nade_categorical = nade_categorical;
  kernels.nade_categorical_grad = nade_categorical_grad;
  kernels.nade_mixture = nade_mixture;
  kernels.nade_mixture_grad = nade_mixture_grad;
}

} // namespace dgm_fast
