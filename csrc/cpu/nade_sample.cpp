// Ancestral samples of NADE by its recurrence, all dimensions in one pass.

#include "nade_recurrence.h"
#include "rows.h"

namespace dgm_fast {
inline namespace CPU_CAPABILITY {
namespace {

// The first class whose cumulative weight passes the noise times the total: the rounding of the sum never makes the
// last one.
template <typename A>
inline int64_t draw_class(const A* log_weights, int64_t count, A noise, A* cumulative) {
  A highest = log_weights[0];
  for (int64_t k = 1; k < count; ++k) {
    highest = std::max(highest, log_weights[k]);
  }
  A total = 0;
  for (int64_t k = 0; k < count; ++k) {
    total += std::exp(log_weights[k] - highest);
    cumulative[k] = total;
  }
  const A threshold = noise * total;
  int64_t k = 0;
  while (k + 1 < count && cumulative[k] <= threshold) {
    ++k;
  }
  return k;
}

template <typename A>
class Sampler {
 public:
  Sampler(const NadeSampleArgs& args, const InputRows<A>& inputs)
      : args_(args),
        size_(args.in.size),
        width_(args.in.num_outputs()),
        tile_(args.in, inputs),
        outputs_(tile_.kTile * width_),
        cumulative_(width_) {}

  static constexpr int64_t kTile = Recurrence<A>::kTile;

  void run(int64_t first, int64_t count) {
    tile_.start(count);
    for (int64_t d = 0; d < size_; ++d) {
      tile_.outputs(d, outputs_.data(), width_);
      for (int64_t r = 0; r < count; ++r) {
        const int64_t at = (first + r) * size_ + d;
        const A* outputs = outputs_.data() + r * width_;
        if (args_.draw == NadeDraw::Categorical) {
          set(d, r, at, static_cast<int32_t>(draw_class(outputs, width_, noise(at), cumulative_.data())));
        } else if (args_.draw == NadeDraw::Bernoulli) {
          set(d, r, at, noise(at) < A(1) / (A(1) + std::exp(-outputs[0])) ? A(1) : A(0));
        } else {
          set(d, r, at, draw_mixture(outputs, noise(2 * at), noise(2 * at + 1)));
        }
      }
    }
  }

 private:
  A noise(int64_t at) const {
    return static_cast<const A*>(args_.noise)[at];
  }

  // The value drawn, or the one that is given, as sample and as the next input.
  template <typename X>
  void set(int64_t d, int64_t r, int64_t at, X x) {
    if (args_.given != nullptr && args_.given[at]) {
      x = static_cast<const X*>(args_.values)[at];
    }
    static_cast<X*>(args_.samples)[at] = x;
    if (d + 1 < size_) {
      tile_.advance(d, r, x);
    }
  }

  A draw_mixture(const A* outputs, A component_noise, A value_noise) const {
    const int64_t count = width_ / (args_.with_logits ? 3 : 2);
    const A* means = outputs + (args_.with_logits ? count : 0);
    int64_t m = 0;
    if (args_.with_logits) {
      m = draw_class(outputs, count, component_noise, cumulative_.data());
    } else {
      m = std::min(count - 1, static_cast<int64_t>(component_noise * A(count)));
    }
    const A standard = args_.mixture == Mixture::Gaussian
        ? value_noise
        : std::log(value_noise) - std::log1p(-value_noise);
    return means[m] + std::exp(means[count + m]) * standard;
  }

  const NadeSampleArgs& args_;
  int64_t size_, width_;
  Recurrence<A> tile_;
  Scratch<A> outputs_; // [rows, outputs]
  Scratch<A> cumulative_;
};

void nade_sample(const NadeSampleArgs& args) {
  with_sum_type(args.in.dtype, [&](auto t) {
    using A = typename decltype(t)::type;
    const InputRows<A> inputs(args.in);
    const int64_t grain = grain_rows(args.in.size * inputs.stride);
    at::parallel_for(0, args.in.rows, grain, [&](int64_t begin, int64_t end) {
      Sampler<A> sampler(args, inputs);
      for (int64_t first = begin; first < end; first += sampler.kTile) {
        sampler.run(first, std::min(sampler.kTile, end - first));
      }
    });
  });
}

} // namespace
} // namespace CPU_CAPABILITY

void fill_sample(NadeKernels& kernels) {
  kernels.nade_sample = nade_sample;
}

} // namespace dgm_fast
