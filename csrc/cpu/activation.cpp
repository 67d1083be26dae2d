// Leaky ReLU, with a bias or without. Backward takes the mask from the sign of the output: no input and no mask is
// stored.

#include "adversarial_table.h"
#include "dispatch.h"
#include "masked.h"
#include "sums.h"

namespace dgm_fast {
inline namespace CPU_CAPABILITY {
namespace {

// visit(offset, channel, count): whole rows of channels where each has one element, else a channel of a row.
template <typename F>
void each_piece(int64_t rows, int64_t channels, int64_t inner, F&& visit) {
  const bool whole = inner == 1;
  const int64_t pieces = whole ? rows : rows * channels;
  const int64_t size = whole ? channels : inner;
  at::parallel_for(0, pieces, grain_rows(size), [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      visit(piece * size, whole ? 0 : piece % channels, size);
    }
  });
}

void activation(const ActivationArgs& args) {
  with_floating(args.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    using A = acc_t<T>;
    const auto* x = static_cast<const T*>(args.x);
    const auto* bias = static_cast<const A*>(args.bias);
    auto* out = static_cast<T*>(args.out);
    const Vec<A> slope(static_cast<A>(args.slope));
    if (bias == nullptr) {
      const int64_t size = args.outer * args.channels * args.inner;
      at::parallel_for(0, size, kGrainElements, [&](int64_t begin, int64_t end) {
        each_vector<A>(end - begin, [&](int64_t i, int64_t count) {
          const Vec<A> v = vload(x + begin + i, count);
          vstore(out + begin + i, masked(v, v, slope), count);
        });
      });
      return;
    }
    each_piece(
        args.outer,
        args.channels,
        args.inner,
        [&](int64_t offset, int64_t channel, int64_t size) {
          const bool varies = args.inner == 1;
          const Vec<A> shared(bias[channel]);
          each_vector<A>(size, [&](int64_t i, int64_t count) {
            const Vec<A> b = varies ? vload(bias + i, count) : shared;
            const Vec<A> v = vload(x + offset + i, count) + b;
            vstore(out + offset + i, masked(v, v, slope), count);
          });
        });
  });
}

// Partial sums over rows [begin, end) of the masked gradient, which is stored where grad_x is not null.
template <typename T>
void activation_grad_rows(
    const ActivationGradArgs& args,
    int64_t begin,
    int64_t end,
    acc_t<T>* bias_sums) {
  using A = acc_t<T>;
  const auto* grad = static_cast<const T*>(args.grad);
  const auto* out = static_cast<const T*>(args.out);
  auto* grad_x = static_cast<T*>(args.grad_x);
  const Vec<A> slope(static_cast<A>(args.slope));
  if (args.inner == 1) {
    RowSums<A> sums(args.channels);
    for (int64_t r = begin; r < end; ++r) {
      const int64_t offset = r * args.channels;
      A* sum = sums.data();
      each_vector<A>(args.channels, [&](int64_t i, int64_t count) {
        const Vec<A> g =
            masked(vload(out + offset + i, count), vload(grad + offset + i, count), slope);
        if (grad_x != nullptr) {
          vstore(grad_x + offset + i, g, count);
        }
        vstore(sum + i, vload(sum + i, count) + g, count);
      });
      sums.next();
    }
    const auto& total = sums.finish();
    std::copy(total.begin(), total.end(), bias_sums);
    return;
  }
  std::vector<double> totals(args.channels);
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t c = 0; c < args.channels; ++c) {
      const int64_t offset = (r * args.channels + c) * args.inner;
      totals[c] += blocked_sum(args.inner, [&](int64_t first, int64_t size) {
        Vec<A> sum(0);
        each_vector<A>(size, [&](int64_t i, int64_t count) {
          const int64_t at = offset + first + i;
          const Vec<A> g = masked(vload(out + at, count), vload(grad + at, count), slope);
          if (grad_x != nullptr) {
            vstore(grad_x + at, g, count);
          }
          sum = sum + g;
        });
        return sum_lanes<A>(sum);
      });
    }
  }
  std::copy(totals.begin(), totals.end(), bias_sums);
}

void activation_grad(const ActivationGradArgs& args) {
  with_floating(args.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    using A = acc_t<T>;
    if (args.grad_bias != nullptr) {
      auto* partial = static_cast<A*>(args.grad_bias);
      at::parallel_for(0, args.parts, 1, [&](int64_t first, int64_t last) {
        for (int64_t part = first; part < last; ++part) {
          const auto range = chunk_range(args.outer, args.parts, part);
          activation_grad_rows<T>(args, range.begin, range.end, partial + part * args.channels);
        }
      });
      return;
    }
    const auto* grad = static_cast<const T*>(args.grad);
    const auto* out = static_cast<const T*>(args.out);
    auto* grad_x = static_cast<T*>(args.grad_x);
    const Vec<A> slope(static_cast<A>(args.slope));
    const int64_t size = args.outer * args.channels * args.inner;
    at::parallel_for(0, size, kGrainElements, [&](int64_t begin, int64_t end) {
      each_vector<A>(end - begin, [&](int64_t i, int64_t count) {
        vstore(
            grad_x + begin + i,
            masked(vload(out + begin + i, count), vload(grad + begin + i, count), slope),
            count);
      });
    });
  });
}

} // namespace
} // namespace CPU_CAPABILITY

void fill_activations(AdversarialKernels& kernels) {
  kernels.activation = activation;
  kernels.activation_grad = activation_grad;
}

} // namespace dgm_fast
