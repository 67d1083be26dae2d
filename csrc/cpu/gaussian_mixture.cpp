// Mixture of diagonal Gaussians: lanes hold components, a tile of rows shares every load of their parameters.

#include "dispatch.h"
#include "rows.h"
#include "mixture_table.h"

#include <vector>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {
namespace {

// Rows that are in registers together.
#if defined(CPU_CAPABILITY_AVX512)
constexpr int kTile = 8;
#else
constexpr int kTile = 4;
#endif
// Vectors of components whose log-probabilities are kept for a tile: 32 KiB of float.
constexpr int64_t kBlock = 64;

// -log_var / 2 is capped here: its exponential squared is finite.
template <typename A>
inline constexpr A kMaxLogInverseScale = std::is_same_v<A, double> ? A(350) : A(43);

// Weights of the components and their logarithms.
template <typename A>
struct Weights {
  std::vector<A> log, value;
  bool learn = false; // whether the logits get gradients

  Weights(const A* logits, int64_t count)
      : log(count, -std::log(A(count))), value(count, A(1) / A(count)) {
    const A infinity = std::numeric_limits<A>::infinity();
    if (logits == nullptr) {
      return;
    }
    const A highest = *std::max_element(logits, logits + count);
    if (highest == -infinity) {
      log.assign(count, -infinity);
      value.assign(count, A(0));
      return;
    }
    // Entries of +inf share the whole weight.
    const bool certain = highest == infinity;
    A sum = 0;
    for (int64_t k = 0; k < count; ++k) {
      log[k] = certain ? (logits[k] == infinity ? A(0) : -infinity) : logits[k] - highest;
      value[k] = std::exp(log[k]);
      sum += value[k];
    }
    for (int64_t k = 0; k < count; ++k) {
      log[k] -= std::log(sum);
      value[k] /= sum;
    }
    learn = !certain;
  }
};

// The components in vectors, [vectors, size, lanes], padded with components of no weight.
template <typename A>
struct Components {
  static constexpr int lanes = kLanes<A>;
  int64_t count, size, vectors;
  Weights<A> weights;
  std::vector<A> mean, inverse_variance, constant;

  explicit Components(const GaussianMixtureArgs& args)
      : count(args.components),
        size(args.size),
        vectors((count + lanes - 1) / lanes),
        weights(static_cast<const A*>(args.logits), count),
        mean(vectors * lanes * size, A(0)),
        inverse_variance(vectors * lanes * size, A(0)),
        constant(vectors * lanes, -std::numeric_limits<A>::infinity()) {
    const auto* means = static_cast<const A*>(args.means);
    const auto* log_vars = static_cast<const A*>(args.log_vars);
    for (int64_t k = 0; k < count; ++k) {
      A sum = 0;
      for (int64_t l = 0; l < size; ++l) {
        const A log_var = log_vars[k * size + l];
        const A scale = std::exp(std::min(A(-0.5) * log_var, kMaxLogInverseScale<A>));
        sum += log_var;
        mean[at(k, l)] = means[k * size + l];
        inverse_variance[at(k, l)] = scale * scale;
      }
      constant[k] = weights.log[k] - A(0.5) * (sum + A(size) * A(kLog2Pi));
    }
  }

  int64_t at(int64_t k, int64_t l) const {
    return (k / lanes * size + l) * lanes + k % lanes;
  }
};

// log w_k N(z; k) of kTile rows for one vector of components; rows past the end repeat the last one.
template <typename A>
inline void joint_log_probs(
    const Components<A>& components,
    int64_t vector,
    const A* const* z,
    Vec<A>* joint) {
  constexpr int lanes = kLanes<A>;
  const int64_t size = components.size;
  const A* mean = components.mean.data() + vector * size * lanes;
  const A* inverse = components.inverse_variance.data() + vector * size * lanes;
  // Two sums each: half the rounding, and shorter chains.
  Vec<A> even[kTile];
  Vec<A> odd[kTile];
#pragma GCC unroll 8
  for (int r = 0; r < kTile; ++r) {
    even[r] = Vec<A>(0);
    odd[r] = Vec<A>(0);
  }
  const auto add = [&](int64_t l, Vec<A>* sum) {
    const Vec<A> m = Vec<A>::loadu(mean + l * lanes);
    const Vec<A> v = Vec<A>::loadu(inverse + l * lanes);
#pragma GCC unroll 8
    for (int r = 0; r < kTile; ++r) {
      const Vec<A> difference = Vec<A>(z[r][l]) - m;
      sum[r] = at::vec::fmadd(difference * v, difference, sum[r]);
    }
  };
  int64_t l = 0;
  for (; l + 2 <= size; l += 2) {
    add(l, even);
    add(l + 1, odd);
  }
  if (l < size) {
    add(l, even);
  }
  const Vec<A> constant = Vec<A>::loadu(components.constant.data() + vector * lanes);
#pragma GCC unroll 8
  for (int r = 0; r < kTile; ++r) {
    joint[r] = at::vec::fmadd(even[r] + odd[r], Vec<A>(-0.5), constant);
  }
}

template <typename A>
struct RowTile {
  const A* z[kTile];
  int64_t count;

  RowTile(const A* all, int64_t size, int64_t first, int64_t end)
      : count(std::min<int64_t>(kTile, end - first)) {
    for (int r = 0; r < kTile; ++r) {
      z[r] = all + std::min(first + r, end - 1) * size;
    }
  }
};

void gaussian_mixture(const GaussianMixtureArgs& args) {
  with_sum_type(args.dtype, [&](auto t) {
    using A = typename decltype(t)::type;
    constexpr int lanes = kLanes<A>;
    const Components<A> components(args);
    const auto* z = static_cast<const A*>(args.z);
    auto* out = static_cast<A*>(args.out);
    const int64_t tiles = (args.rows + kTile - 1) / kTile;
    const int64_t grain = grain_rows(kTile * components.vectors * lanes * (args.size + 4));
    at::parallel_for(0, tiles, grain, [&](int64_t begin, int64_t end) {
      std::vector<A> joint(kTile * kBlock * lanes);
      for (int64_t tile = begin; tile < end; ++tile) {
        const RowTile<A> rows(z, args.size, tile * kTile, args.rows);
        A highest[kTile];
        A sum[kTile] = {};
        std::fill_n(highest, kTile, std::numeric_limits<A>::lowest());
        for (int64_t v0 = 0; v0 < components.vectors; v0 += kBlock) {
          const int64_t width = std::min(kBlock, components.vectors - v0);
          Vec<A> top[kTile];
          std::fill_n(top, kTile, Vec<A>(std::numeric_limits<A>::lowest()));
          for (int64_t v = 0; v < width; ++v) {
            Vec<A> value[kTile];
            joint_log_probs(components, v0 + v, rows.z, value);
#pragma GCC unroll 8
            for (int r = 0; r < kTile; ++r) {
              top[r] = max_ignoring_nan<A>(value[r], top[r]);
              value[r].store(joint.data() + (r * kBlock + v) * lanes);
            }
          }
          for (int64_t r = 0; r < rows.count; ++r) {
            const A block_top = std::max(highest[r], max_lanes<A>(top[r]));
            Vec<A> total(0);
            for (int64_t v = 0; v < width; ++v) {
              total = total +
                  exp_to_zero(
                          Vec<A>::loadu(joint.data() + (r * kBlock + v) * lanes) -
                          Vec<A>(block_top));
            }
            sum[r] = sum[r] * std::exp(highest[r] - block_top) + sum_lanes<A>(total);
            highest[r] = block_top;
          }
        }
        for (int64_t r = 0; r < rows.count; ++r) {
          out[tile * kTile + r] = highest[r] + std::log(sum[r]);
        }
      }
    });
  });
}

// Sums over rows of one chunk, in the layout of the components: weight, weight (z - mean), weight (z - mean)^2.
template <typename A>
struct ComponentSums {
  std::vector<A> weight, first, second;
  A grad = 0; // of the rows that have any component

  explicit ComponentSums(const Components<A>& components)
      : weight(components.vectors * kLanes<A>, A(0)),
        first(components.mean.size(), A(0)),
        second(components.mean.size(), A(0)) {}

  void add(const ComponentSums& other) {
    const auto into = [](std::vector<A>& to, const std::vector<A>& from) {
      for (size_t i = 0; i < to.size(); ++i) {
        to[i] += from[i];
      }
    };
    into(weight, other.weight);
    into(first, other.first);
    into(second, other.second);
    grad += other.grad;
  }
};

// exp(joint log-probability - shift) of a tile and a block of components, and its sum over components.
template <typename A>
inline void responsibilities(
    const Components<A>& components,
    const RowTile<A>& rows,
    const A* shift,
    int64_t v0,
    int64_t width,
    A* out, // [kTile, kBlock, lanes]
    Vec<A>* total) {
  for (int64_t v = 0; v < width; ++v) {
    Vec<A> joint[kTile];
    joint_log_probs(components, v0 + v, rows.z, joint);
#pragma GCC unroll 8
    for (int r = 0; r < kTile; ++r) {
      const Vec<A> value = exp_to_zero(joint[r] - Vec<A>(shift[r]));
      total[r] = total[r] + value;
      value.store(out + (r * kBlock + v) * kLanes<A>);
    }
  }
}

// Gradients of a tile by z, and its terms of the sums, from upstream gradients times responsibilities of a
// block of components.
template <typename A>
inline void add_tile(
    const Components<A>& components,
    const RowTile<A>& rows,
    const A* weights, // [kTile, kBlock, lanes]
    int64_t v0,
    int64_t width,
    ComponentSums<A>& sums,
    A* grad_z) { // [kTile, size, lanes]
  constexpr int lanes = kLanes<A>;
  const int64_t size = components.size;
  for (int64_t l = 0; l < size; ++l) {
    Vec<A> z[kTile];
    Vec<A> grad[kTile];
#pragma GCC unroll 8
    for (int r = 0; r < kTile; ++r) {
      z[r] = Vec<A>(rows.z[r][l]);
      grad[r] = Vec<A>::loadu(grad_z + (r * size + l) * lanes);
    }
    for (int64_t v = 0; v < width; ++v) {
      const int64_t at = ((v0 + v) * size + l) * lanes;
      const Vec<A> mean = Vec<A>::loadu(components.mean.data() + at);
      const Vec<A> inverse = Vec<A>::loadu(components.inverse_variance.data() + at);
      Vec<A> first = Vec<A>::loadu(sums.first.data() + at);
      Vec<A> second = Vec<A>::loadu(sums.second.data() + at);
#pragma GCC unroll 8
      for (int r = 0; r < kTile; ++r) {
        const Vec<A> difference = z[r] - mean;
        const Vec<A> weighted =
            Vec<A>::loadu(weights + (r * kBlock + v) * lanes) * difference;
        first = first + weighted;
        second = at::vec::fmadd(weighted, difference, second);
        grad[r] = at::vec::fmadd(weighted, inverse, grad[r]);
      }
      first.store(sums.first.data() + at);
      second.store(sums.second.data() + at);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kTile; ++r) {
      grad[r].store(grad_z + (r * size + l) * lanes);
    }
  }
}

void gaussian_mixture_grad(const GaussianMixtureGradArgs& args) {
  const GaussianMixtureArgs& in = args.in;
  with_sum_type(in.dtype, [&](auto t) {
    using A = typename decltype(t)::type;
    constexpr int lanes = kLanes<A>;
    const A infinity = std::numeric_limits<A>::infinity();
    const Components<A> components(in);
    const auto* z = static_cast<const A*>(in.z);
    const auto* out = static_cast<const A*>(in.out);
    const auto* grad = static_cast<const A*>(args.grad);
    auto* to_z = static_cast<A*>(args.grad_z);
    const auto width_of = [&](int64_t v0) { return std::min(kBlock, components.vectors - v0); };
    std::vector<ComponentSums<A>> sums(args.chunks, ComponentSums<A>(components));
    at::parallel_for(0, args.chunks, 1, [&](int64_t begin, int64_t end) {
      std::vector<A> weights(kTile * kBlock * lanes);
      std::vector<A> grad_z(kTile * in.size * lanes);
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        ComponentSums<A>& sum = sums[chunk];
        const auto range = chunk_range(in.rows, args.chunks, chunk);
        for (int64_t first = range.begin; first < range.end; first += kTile) {
          const RowTile<A> rows(z, in.size, first, range.end);
          // Rows past the end, and rows without any component, get no gradient. The former repeat the last
          // row with its shift: exp of the bare density could overflow, and 0 times that is NaN.
          A upstream[kTile] = {};
          A shift[kTile] = {};
          for (int64_t r = 0; r < kTile; ++r) {
            const int64_t row = std::min(first + r, range.end - 1);
            if (out[row] == -infinity) {
              continue;
            }
            shift[r] = out[row];
            if (r < rows.count) {
              upstream[r] = grad[row];
              sum.grad += upstream[r];
            }
          }
          std::fill(grad_z.begin(), grad_z.end(), A(0));
          // The forward's result is rounded to its size, which would show in every responsibility: their sum
          // makes good for it. A mixture of one block is computed once for both.
          Vec<A> total[kTile];
          std::fill_n(total, kTile, Vec<A>(0));
          const auto add_block = [&](int64_t v0) {
            responsibilities(components, rows, shift, v0, width_of(v0), weights.data(), total);
          };
          const bool one_block = components.vectors <= kBlock;
          for (int64_t v0 = 0; v0 < components.vectors; v0 += kBlock) {
            add_block(v0);
          }
          for (int64_t r = 0; r < rows.count; ++r) {
            const A whole = sum_lanes<A>(total[r]);
            upstream[r] = whole > A(0) ? upstream[r] / whole : A(0);
          }
          for (int64_t v0 = 0; v0 < components.vectors; v0 += kBlock) {
            const int64_t width = width_of(v0);
            if (!one_block) {
              add_block(v0);
            }
            for (int64_t v = 0; v < width; ++v) {
              A* const to_weight = sum.weight.data() + (v0 + v) * lanes;
              Vec<A> weight_sum = Vec<A>::loadu(to_weight);
#pragma GCC unroll 8
              for (int r = 0; r < kTile; ++r) {
                A* const at = weights.data() + (r * kBlock + v) * lanes;
                const Vec<A> weight = Vec<A>(upstream[r]) * Vec<A>::loadu(at);
                weight_sum = weight_sum + weight;
                weight.store(at);
              }
              weight_sum.store(to_weight);
            }
            add_tile(components, rows, weights.data(), v0, width, sum, grad_z.data());
          }
          if (to_z != nullptr) {
            for (int64_t r = 0; r < rows.count; ++r) {
              for (int64_t l = 0; l < in.size; ++l) {
                to_z[(first + r) * in.size + l] =
                    -sum_lanes<A>(Vec<A>::loadu(grad_z.data() + (r * in.size + l) * lanes));
              }
            }
          }
        }
      }
    });
    for (int64_t chunk = 1; chunk < args.chunks; ++chunk) {
      sums[0].add(sums[chunk]);
    }
    const ComponentSums<A>& total = sums[0];
    const auto* log_vars = static_cast<const A*>(in.log_vars);
    auto* to_means = static_cast<A*>(args.grad_means);
    auto* to_log_vars = static_cast<A*>(args.grad_log_vars);
    auto* to_logits = static_cast<A*>(args.grad_logits);
    for (int64_t k = 0; k < components.count; ++k) {
      for (int64_t l = 0; l < in.size; ++l) {
        const int64_t at = components.at(k, l);
        const A inverse = components.inverse_variance[at];
        if (to_means != nullptr) {
          to_means[k * in.size + l] = inverse * total.first[at];
        }
        if (to_log_vars != nullptr) {
          const bool capped =
              A(-0.5) * log_vars[k * in.size + l] > kMaxLogInverseScale<A>;
          const A quadratic = capped ? A(0) : inverse * total.second[at];
          to_log_vars[k * in.size + l] = A(0.5) * (quadratic - total.weight[k]);
        }
      }
      if (to_logits != nullptr) {
        to_logits[k] = components.weights.learn
            ? total.weight[k] - components.weights.value[k] * total.grad
            : A(0);
      }
    }
  });
}

} // namespace
} // namespace CPU_CAPABILITY

void fill_gaussian(MixtureKernels& kernels) {
  kernels.gaussian_mixture = gaussian_mixture;
  kernels.gaussian_mixture_grad = gaussian_mixture_grad;
}

} // namespace dgm_fast
