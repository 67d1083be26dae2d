// The pointwise parts of a critic's step, between its matrix products and convolutions.

#include "adversarial_table.h"
#include "dispatch.h"
#include "masked.h"
#include "sums.h"

namespace dgm_fast {
inline namespace CPU_CAPABILITY {
namespace {

// Rows of a bias's gradient before its sum ends in doubles. Signals of real and of generated samples are of opposite
// signs and nearly cancel: 32 rows at a time left three times the error that 4 leave.
constexpr int64_t kSignalBlock = 4;

// visit(offset, row): pieces of `channels` elements, one for every row and place.
template <typename F>
void each_piece(int64_t rows, int64_t spatial, int64_t channels, F&& visit) {
  at::parallel_for(0, rows * spatial, grain_rows(channels), [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      visit(piece * channels, spatial == 1 ? piece : piece / spatial);
    }
  });
}

template <typename A>
inline Vec<A> load_or_zero(const A* p, int64_t i, int64_t count) {
  return p == nullptr ? Vec<A>(0) : vload(p + i, count);
}

void biased_activation(const BiasedActivationArgs& args) {
  with_sum_type(args.dtype, [&](auto t) {
    using A = typename decltype(t)::type;
    const auto* x = static_cast<const A*>(args.x);
    const auto* bias = static_cast<const A*>(args.bias);
    auto* h = static_cast<A*>(args.h);
    const Vec<A> slope(static_cast<A>(args.slope));
    each_piece(args.rows, args.spatial, args.channels, [&](int64_t offset, int64_t) {
      each_vector<A>(args.channels, [&](int64_t i, int64_t count) {
        const Vec<A> v = vload(x + offset + i, count) + load_or_zero(bias, i, count);
        vstore(h + offset + i, masked(v, v, slope), count);
      });
    });
  });
}

void mixed_activation(const MixedActivationArgs& args) {
  with_sum_type(args.dtype, [&](auto t) {
    using A = typename decltype(t)::type;
    const auto* real = static_cast<const A*>(args.real);
    const auto* fake = static_cast<const A*>(args.fake);
    const auto* eps = static_cast<const A*>(args.eps);
    const auto* bias = static_cast<const A*>(args.bias);
    const int64_t size = args.rows * args.spatial * args.channels;
    auto* of_real = static_cast<A*>(args.h);
    auto* of_fake = of_real + size;
    auto* of_mixed = of_fake + size;
    const Vec<A> slope(static_cast<A>(args.slope));
    each_piece(args.rows, args.spatial, args.channels, [&](int64_t offset, int64_t row) {
      const Vec<A> e(eps[row]);
      const Vec<A> rest(A(1) - eps[row]);
      each_vector<A>(args.channels, [&](int64_t i, int64_t count) {
        const int64_t at = offset + i;
        const Vec<A> shift = load_or_zero(bias, i, count);
        const Vec<A> r = vload(real + at, count);
        const Vec<A> f = vload(fake + at, count);
        const Vec<A> m = at::vec::fmadd(e, r, rest * f) + shift;
        vstore(of_real + at, masked(r + shift, r + shift, slope), count);
        vstore(of_fake + at, masked(f + shift, f + shift, slope), count);
        vstore(of_mixed + at, masked(m, m, slope), count);
      });
    });
  });
}

void tangent(const TangentArgs& args) {
  with_sum_type(args.dtype, [&](auto t) {
    using A = typename decltype(t)::type;
    const auto* value = static_cast<const A*>(args.t);
    const auto* scale = static_cast<const A*>(args.row_scale);
    const auto* bias = static_cast<const A*>(args.bias);
    auto* h = static_cast<A*>(args.h);
    const Vec<A> slope(static_cast<A>(args.slope));
    const bool shifted = scale != nullptr && bias != nullptr;
    each_piece(args.rows, args.spatial, args.channels, [&](int64_t offset, int64_t row) {
      const Vec<A> s(shifted ? scale[row] : A(0));
      each_vector<A>(args.channels, [&](int64_t i, int64_t count) {
        const int64_t at = offset + i;
        Vec<A> v = vload(value + at, count);
        if (shifted) {
          v = at::vec::fmadd(s, vload(bias + i, count), v);
        }
        vstore(h + at, masked(vload(h + at, count), v, slope), count);
      });
    });
  });
}

// Rows [begin, end) of the signal; what they add to the sums over channels goes into `sums`.
template <typename A>
void signal_rows(const SignalArgs& args, int64_t begin, int64_t end, A* sums) {
  const auto* h = static_cast<const A*>(args.h);
  const auto* seed = static_cast<const A*>(args.seed);
  const auto* weight = static_cast<const A*>(args.weight);
  const auto* scale = static_cast<const A*>(args.row_scale);
  auto* b = static_cast<A*>(args.b);
  const Vec<A> slope(static_cast<A>(args.slope));
  RowSums<A> total(sums == nullptr ? 0 : args.channels, kSignalBlock);
  for (int64_t r = begin; r < end; ++r) {
    const Vec<A> s(seed == nullptr ? A(1) : seed[r]);
    const Vec<A> counted(scale == nullptr ? A(1) : scale[r]);
    for (int64_t place = 0; place < args.spatial; ++place) {
      const int64_t offset = (r * args.spatial + place) * args.channels;
      A* sum = total.data();
      each_vector<A>(args.channels, [&](int64_t i, int64_t count) {
        const int64_t at = offset + i;
        Vec<A> v = weight == nullptr ? vload(b + at, count)
                                     : s * vload(weight + place * args.channels + i, count);
        if (h != nullptr) {
          v = masked(vload(h + at, count), v, slope);
        }
        if (h != nullptr || weight != nullptr) {
          vstore(b + at, v, count);
        }
        if (sums != nullptr) {
          vstore(sum + i, at::vec::fmadd(counted, v, vload(sum + i, count)), count);
        }
      });
      if (sums != nullptr) {
        total.next();
      }
    }
  }
  if (sums != nullptr) {
    const auto& finished = total.finish();
    std::copy(finished.begin(), finished.end(), sums);
  }
}

void signal(const SignalArgs& args) {
  with_sum_type(args.dtype, [&](auto t) {
    using A = typename decltype(t)::type;
    if (args.sums == nullptr) {
      const int64_t grain = grain_rows(args.spatial * args.channels);
      at::parallel_for(0, args.rows, grain, [&](int64_t begin, int64_t end) {
        signal_rows<A>(args, begin, end, nullptr);
      });
      return;
    }
    auto* sums = static_cast<A*>(args.sums);
    at::parallel_for(0, args.parts, 1, [&](int64_t first, int64_t last) {
      for (int64_t part = first; part < last; ++part) {
        const auto range = chunk_range(args.rows, args.parts, part);
        signal_rows<A>(args, range.begin, range.end, sums + part * args.channels);
      }
    });
  });
}

} // namespace
} // namespace CPU_CAPABILITY

void fill_critic(AdversarialKernels& kernels) {
  kernels.biased_activation = biased_activation;
  kernels.mixed_activation = mixed_activation;
  kernels.tangent = tangent;
  kernels.signal = signal;
}

} // namespace dgm_fast
