// Affine maps with their log-determinant in the same pass: couplings (a factor an element) and actnorm (a factor a
// channel).

#include "affine_scale.h"
#include "coupling_table.h"
#include "dispatch.h"
#include "sums.h"

#include <vector>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {
namespace {

// Elements whose log-scales one thread holds before it sums them.
constexpr int64_t kPiece = 2048;

// visit(map, inverse) as constants.
template <typename F>
void with_map(const AffineArgs& args, F&& visit) {
  with_scale_map(args.map, [&](auto map) {
    if (args.inverse) {
      visit(map, std::true_type{});
    } else {
      visit(map, std::false_type{});
    }
  });
}

// Which of `count` elements are transformed: ones and zeros.
template <typename A>
inline Vec<A> load_mask(const uint8_t* mask, int64_t count) {
  return load_as<A>(mask, count);
}

// How the elements are cut into pieces, each within one event: [unit, part of it].
struct Pieces {
  int64_t unit; // elements of a sum that follow each other in memory
  int64_t units; // of those a piece holds, where they are short
  int64_t parts; // pieces of a unit, where it is long
  int64_t total, number;

  explicit Pieces(const AffineArgs& args) {
    total = args.runs * args.inner;
    unit = std::max<int64_t>(1, std::min(args.event, args.inner));
    units = std::max<int64_t>(1, kPiece / unit);
    parts = (unit + kPiece - 1) / kPiece;
    number = parts > 1 ? total / unit * parts : (total / unit + units - 1) / units;
  }

  Range range(int64_t piece) const {
    if (parts > 1) {
      const int64_t begin = piece / parts * unit;
      const int64_t part = piece % parts;
      return {begin + part * kPiece, std::min(begin + unit, begin + (part + 1) * kPiece)};
    }
    return {piece * units * unit, std::min(total, (piece + 1) * units * unit)};
  }
};

// visit(element, offset of its row, position in it, count) over what of [begin, end) lies in each run.
template <typename F>
inline void each_run(const AffineArgs& args, const Range& range, F&& visit) {
  for (int64_t i = range.begin; i < range.end;) {
    const int64_t run = i / args.inner;
    const int64_t position = i - run * args.inner;
    const int64_t count = std::min(range.end - i, args.inner - position);
    visit(i, run, position, count);
    i += count;
  }
}

template <ScaleMap M, bool Inverse, typename T>
void affine_piece(const AffineForwardArgs& args, const Range& range, acc_t<T>* logs) {
  using A = acc_t<T>;
  constexpr int lanes = kStep<T>;
  const AffineArgs& in = args.in;
  const A clamp = A(in.clamp);
  const bool masked = in.mask.present();
  each_run(in, range, [&](int64_t i, int64_t run, int64_t position, int64_t count) {
    const T* x = row<T>(in.x, run) + position;
    const T* u = row<T>(in.log_scale, run) + position;
    const T* shift = row<T>(in.shift, run) + position;
    const uint8_t* mask = masked ? row<uint8_t>(in.mask, run) + position : nullptr;
    T* y = static_cast<T*>(args.y) + i;
    A* log = logs + (i - range.begin);
    for (int64_t j = 0; j < count; j += lanes) {
      const int64_t rest = count - j;
      const Vec<A> at = vload(x + j, rest);
      const auto scale = scale_of<M, Inverse>(vload(u + j, rest), clamp);
      const Vec<A> move = vload(shift + j, rest);
      Vec<A> value =
          Inverse ? (at - move) * scale.factor : at::vec::fmadd(at, scale.factor, move);
      Vec<A> of_log = scale.log;
      if (masked) {
        const auto kept = equal(load_mask<A>(mask + j, rest), Vec<A>(0));
        value = select(kept, at, value);
        of_log = select(kept, Vec<A>(0), of_log);
      }
      vstore(y + j, value, rest);
      vstore(log + j, of_log, rest);
    }
  });
}

template <typename A>
inline double sum_of(const A* values, int64_t size) {
  constexpr int lanes = kLanes<A>;
  if (size < lanes) {
    double sum = 0;
    for (int64_t i = 0; i < size; ++i) {
      sum += values[i];
    }
    return sum;
  }
  return blocked_sum(size, [&](int64_t begin, int64_t count) {
    Vec<A> sum(0);
    for (int64_t i = 0; i < count; i += lanes) {
      sum = sum + vload(values + begin + i, count - i);
    }
    return sum_lanes<A>(sum);
  });
}

void affine(const AffineForwardArgs& args) {
  const AffineArgs& in = args.in;
  const Pieces pieces(in);
  with_floating(in.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    using A = acc_t<T>;
    auto* log_det = static_cast<A*>(args.log_det);
    const A sign = in.inverse ? A(-1) : A(1);
    const bool direct = pieces.parts == 1 && pieces.unit == in.event;
    const int64_t per_unit = pieces.parts;
    std::vector<double> partial(direct ? 0 : pieces.total / pieces.unit * per_unit);
    with_map(in, [&](auto map, auto inverse) {
      const int64_t grain = std::max<int64_t>(
          1, kGrainElements / std::max<int64_t>(1, std::min(pieces.total, kPiece)));
      at::parallel_for(0, pieces.number, grain, [&](int64_t begin, int64_t end) {
        std::vector<A> logs(std::max(kPiece, pieces.unit * (per_unit > 1 ? 0 : 1)));
        for (int64_t piece = begin; piece < end; ++piece) {
          const Range range = pieces.range(piece);
          affine_piece<map, inverse, T>(args, range, logs.data());
          if (per_unit > 1) {
            partial[piece] = sum_of(logs.data(), range.end - range.begin);
            continue;
          }
          for (int64_t i = range.begin; i < range.end; i += pieces.unit) {
            const double sum = sum_of(logs.data() + (i - range.begin), pieces.unit);
            if (direct) {
              log_det[i / pieces.unit] = sign * static_cast<A>(sum);
            } else {
              partial[i / pieces.unit] = sum;
            }
          }
        }
      });
    });
    if (!direct) {
      const int64_t count = in.event / pieces.unit * per_unit;
      for (int64_t sample = 0; sample < pieces.total / in.event; ++sample) {
        double sum = 0;
        for (int64_t p = 0; p < count; ++p) {
          sum += partial[sample * count + p];
        }
        log_det[sample] = sign * static_cast<A>(sum);
      }
    }
  });
}

// Gradients of the log-determinants, one an element; elements are asked for in ascending order.
template <typename A>
class EventGradients {
 public:
  EventGradients(const A* gradients, int64_t first, int64_t event)
      : gradients_(gradients), event_(event), number_(first / event), end_((number_ + 1) * event) {}

  Vec<A> load(int64_t element, int64_t count) {
    if (gradients_ == nullptr) {
      return Vec<A>(0);
    }
    advance(element);
    if (element + count <= end_) {
      return Vec<A>(gradients_[number_]);
    }
    A values[kLanes<A>] = {};
    for (int64_t l = 0; l < count; ++l) {
      advance(element + l);
      values[l] = gradients_[number_];
    }
    return Vec<A>::loadu(values);
  }

 private:
  // By comparison: two divisions a vector cost more than the rest of the gradient.
  void advance(int64_t element) {
    if (element >= end_) {
      ++number_;
      end_ += event_;
    }
  }

  const A* gradients_;
  int64_t event_, number_, end_;
};

template <ScaleMap M, bool Inverse, typename T>
void affine_grad_piece(const AffineGradArgs& args, const Range& range) {
  using A = acc_t<T>;
  constexpr int lanes = kStep<T>;
  const AffineArgs& in = args.in;
  const A clamp = A(in.clamp);
  const Vec<A> zero(0);
  const bool masked = in.mask.present();
  EventGradients<A> of_event(static_cast<const A*>(args.grad_log_det), range.begin, in.event);
  each_run(in, range, [&](int64_t i, int64_t run, int64_t position, int64_t count) {
    const T* x = row<T>(in.x, run) + position;
    const T* u = row<T>(in.log_scale, run) + position;
    const T* shift = row<T>(in.shift, run) + position;
    const T* grad = args.grad_y.present() ? row<T>(args.grad_y, run) + position : nullptr;
    const uint8_t* mask = masked ? row<uint8_t>(in.mask, run) + position : nullptr;
    const auto target = [&](void* p) { return p == nullptr ? nullptr : static_cast<T*>(p) + i; };
    T* to_x = target(args.grad_x);
    T* to_scale = target(args.grad_log_scale);
    T* to_shift = target(args.grad_shift);
    for (int64_t j = 0; j < count; j += lanes) {
      const int64_t rest = std::min<int64_t>(lanes, count - j);
      const auto scale = scale_of<M, Inverse>(vload(u + j, rest), clamp);
      const Vec<A> of_y = grad == nullptr ? zero : vload(grad + j, rest);
      const Vec<A> of_log = of_event.load(i + j, rest);
      const Vec<A> at = vload(x + j, rest);
      Vec<A> of_x = of_y * scale.factor;
      Vec<A> of_shift = Inverse ? of_x.neg() : of_y;
      // d y / d l is x exp(l), of the inverse -y.
      const Vec<A> moved = Inverse ? at - vload(shift + j, rest) : at;
      const Vec<A> of_l = Inverse ? (of_x * moved + of_log).neg() : of_x * moved + of_log;
      Vec<A> of_scale = of_l * scale.derivative;
      if (masked) {
        const auto kept = equal(load_mask<A>(mask + j, rest), zero);
        of_x = select(kept, of_y, of_x);
        of_shift = select(kept, zero, of_shift);
        of_scale = select(kept, zero, of_scale);
      }
      if (to_x != nullptr) {
        vstore(to_x + j, of_x, rest);
      }
      if (to_scale != nullptr) {
        vstore(to_scale + j, of_scale, rest);
      }
      if (to_shift != nullptr) {
        vstore(to_shift + j, of_shift, rest);
      }
    }
  });
}

void affine_grad(const AffineGradArgs& args) {
  const AffineArgs& in = args.in;
  const int64_t total = in.runs * in.inner;
  with_floating(in.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    with_map(in, [&](auto map, auto inverse) {
      at::parallel_for(0, total, kGrainElements, [&](int64_t begin, int64_t end) {
        affine_grad_piece<map, inverse, T>(args, {begin, end});
      });
    });
  });
}

void actnorm(const ActnormArgs& args) {
  with_floating(args.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    using A = acc_t<T>;
    constexpr int lanes = kStep<T>;
    const auto* log_scale = static_cast<const A*>(args.log_scale);
    const auto* bias = static_cast<const A*>(args.bias);
    std::vector<A> factors(args.channels);
    for (int64_t c = 0; c < args.channels; ++c) {
      factors[c] = std::exp(args.inverse ? -log_scale[c] : log_scale[c]);
    }
    const auto map = [&](const Vec<A>& x, const Vec<A>& factor, const Vec<A>& shift) {
      return args.inverse ? (x - shift) * factor : at::vec::fmadd(x, factor, shift);
    };
    const int64_t rows = args.inner == 1 ? args.samples : args.samples * args.channels;
    const int64_t size = args.inner == 1 ? args.channels : args.inner;
    at::parallel_for(0, rows, grain_rows(size), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const T* x = static_cast<const T*>(args.x) + r * size;
        T* y = static_cast<T*>(args.y) + r * size;
        if (args.inner == 1) {
          for (int64_t j = 0; j < size; j += lanes) {
            const int64_t rest = size - j;
            vstore(
                y + j,
                map(vload(x + j, rest), vload(factors.data() + j, rest), vload(bias + j, rest)),
                rest);
          }
          continue;
        }
        const int64_t c = r % args.channels;
        const Vec<A> factor(factors[c]);
        const Vec<A> shift(bias[c]);
        for (int64_t j = 0; j < size; j += lanes) {
          vstore(y + j, map(vload(x + j, size - j), factor, shift), size - j);
        }
      }
    });
  });
}

// Sums over a part's samples: of grad_y exp(l) x (inverse: of grad_x (x - bias)), and of grad_y.
template <typename T>
void actnorm_grad_part(const ActnormGradArgs& args, int64_t part, const acc_t<T>* factors) {
  using A = acc_t<T>;
  constexpr int lanes = kStep<T>;
  const ActnormArgs& in = args.in;
  const Range samples = chunk_range(in.samples, args.parts, part);
  const auto* bias = static_cast<const A*>(in.bias);
  const bool sums = args.grad_scale != nullptr;
  const auto offset = [&](int64_t sample, int64_t c) {
    return (sample * in.channels + c) * in.inner;
  };
  const auto pointers = [&](int64_t at) {
    return std::tuple(
        static_cast<const T*>(in.x) + at,
        static_cast<const T*>(args.grad_y) + at,
        args.grad_x == nullptr ? nullptr : static_cast<T*>(args.grad_x) + at);
  };
  if (in.inner == 1) {
    RowSums<A> of_scale(in.channels);
    RowSums<A> of_shift(in.channels);
    for (int64_t s = samples.begin; s < samples.end; ++s) {
      const auto [x, grad, to] = pointers(offset(s, 0));
      for (int64_t c = 0; c < in.channels; c += lanes) {
        const int64_t rest = in.channels - c;
        const Vec<A> of_y = vload(grad + c, rest);
        const Vec<A> of_x = of_y * vload(factors + c, rest);
        if (to != nullptr) {
          vstore(to + c, of_x, rest);
        }
        if (sums) {
          const Vec<A> at = vload(x + c, rest);
          const Vec<A> moved = in.inverse ? at - vload(bias + c, rest) : at;
          A* scale = of_scale.data() + c;
          A* shift = of_shift.data() + c;
          vstore(scale, at::vec::fmadd(of_x, moved, vload(scale, rest)), rest);
          vstore(shift, vload(shift, rest) + (in.inverse ? of_x : of_y), rest);
        }
      }
      of_scale.next();
      of_shift.next();
    }
    if (sums) {
      const auto& scale = of_scale.finish();
      const auto& shift = of_shift.finish();
      std::copy(scale.begin(), scale.end(), static_cast<A*>(args.grad_scale) + part * in.channels);
      std::copy(shift.begin(), shift.end(), static_cast<A*>(args.grad_shift) + part * in.channels);
    }
    return;
  }
  for (int64_t c = 0; c < in.channels; ++c) {
    const Vec<A> factor(factors[c]);
    const Vec<A> move(in.inverse ? bias[c] : A(0));
    double of_scale = 0;
    double of_shift = 0;
    for (int64_t s = samples.begin; s < samples.end; ++s) {
      const auto [x, grad, to] = pointers(offset(s, c));
      for (int64_t first = 0; first < in.inner; first += kSumBlock) {
        Vec<A> scale(0);
        Vec<A> shift(0);
        for (int64_t j = first; j < std::min(in.inner, first + kSumBlock); j += lanes) {
          const int64_t rest = in.inner - j;
          const Vec<A> of_y = vload(grad + j, rest);
          const Vec<A> of_x = of_y * factor;
          if (to != nullptr) {
            vstore(to + j, of_x, rest);
          }
          if (sums) {
            scale = at::vec::fmadd(of_x, vload(x + j, rest) - move, scale);
            shift = shift + (in.inverse ? of_x : of_y);
          }
        }
        of_scale += sum_lanes<A>(scale);
        of_shift += sum_lanes<A>(shift);
      }
    }
    if (sums) {
      static_cast<A*>(args.grad_scale)[part * in.channels + c] = static_cast<A>(of_scale);
      static_cast<A*>(args.grad_shift)[part * in.channels + c] = static_cast<A>(of_shift);
    }
  }
}

void actnorm_grad(const ActnormGradArgs& args) {
  const ActnormArgs& in = args.in;
  with_floating(in.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    using A = acc_t<T>;
    const auto* log_scale = static_cast<const A*>(in.log_scale);
    std::vector<A> factors(in.channels);
    for (int64_t c = 0; c < in.channels; ++c) {
      factors[c] = std::exp(in.inverse ? -log_scale[c] : log_scale[c]);
    }
    at::parallel_for(0, args.parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        actnorm_grad_part<T>(args, part, factors.data());
      }
    });
  });
}

} // namespace
} // namespace CPU_CAPABILITY

void fill(CouplingKernels& kernels) {
  kernels.affine = affine;
  kernels.affine_grad = affine_grad;
  kernels.actnorm = actnorm;
  kernels.actnorm_grad = actnorm_grad;
}

} // namespace dgm_fast
