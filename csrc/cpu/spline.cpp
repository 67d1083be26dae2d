// Rational-quadratic splines over tensors: spline.h for every element, and its gradient.

#include "spline.h"

#include "columns.h"
#include "dispatch.h"
#include "sums.h"

#include <atomic>
#include <cstring>
#include <vector>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {
namespace {

// Elements that are worked on between two looks at the clock of the thread pool.
constexpr int64_t kGroup = 1024;

// Groups of whole events where log-determinants are summed.
struct Groups {
  int64_t size, number;

  Groups(int64_t count, int64_t event) {
    size = event == 0 ? kGroup : std::max<int64_t>(1, kGroup / event) * event;
    number = (count + size - 1) / size;
  }

  Range range(const SplineArgs& args, int64_t group) const {
    return {group * size, std::min(args.count, (group + 1) * size)};
  }
};

// What one thread needs to look at a vector of elements.
template <typename T>
class Reader {
 public:
  using A = acc_t<T>;
  static constexpr int lanes = kStep<T>;

  explicit Reader(const SplineArgs& args)
      : args_(args),
        memory_(3 * args.shape.bins * lanes + spline_memory(args.shape.bins, lanes), A(0)) {}

  // Columns of parameters.
  A* raw(int i) {
    return memory_.data() + i * args_.shape.bins * lanes;
  }
  A* buffer() {
    return raw(2);
  }
  A* memory() {
    return raw(3);
  }

  void load(const ParameterRows& parameters, int64_t first, int64_t count, A* to) {
    load_columns(
        static_cast<const T*>(parameters.data),
        LaneOffsets<lanes>(parameters.rows, first, count),
        parameters.stride,
        args_.shape.bins,
        count,
        to,
        buffer());
  }

  // The domain of these elements; `inside` everywhere for lanes past the last.
  SplineDomain<A> domain(const Spline<A>& spline, int64_t first, int64_t count) const {
    if (args_.bound.data == nullptr) {
      return SplineDomain<A>(spline);
    }
    const auto* bound = static_cast<const A*>(args_.bound.data);
    const LaneOffsets<lanes> offsets(args_.bound.rows, first, count);
    A values[lanes];
    for (int l = 0; l < lanes; ++l) {
      values[l] = bound[offsets.at[l]];
    }
    return SplineDomain<A>(Vec<A>::loadu(values));
  }

  // Reads slope parameters where they lie.
  struct Slopes {
    const T* data;
    LaneOffsets<lanes> offsets;
    int64_t stride;

    A operator()(int k, int lane) const {
      return static_cast<A>(data[offsets.at[lane] + k * stride]);
    }
  };

  Slopes slopes(int64_t first, int64_t count) const {
    return {
        static_cast<const T*>(args_.slopes.data),
        LaneOffsets<lanes>(args_.slopes.rows, first, count),
        args_.slopes.stride};
  }

 private:
  const SplineArgs& args_;
  std::vector<A> memory_;
};

template <typename F>
void with_direction(const SplineArgs& args, F&& visit) {
  with_floating(args.dtype, [&](auto t) {
    if (args.inverse) {
      visit(t, std::true_type{});
    } else {
      visit(t, std::false_type{});
    }
  });
}

void spline(SplineArgs& args) {
  std::atomic<bool> invalid{false};
  const Groups groups(args.count, args.event);
  with_direction(args, [&](auto t, auto inverse) {
    using T = typename decltype(t)::type;
    using A = acc_t<T>;
    constexpr int lanes = kStep<T>;
    const Spline<A> spline(args.shape, inverse);
    const auto* x = static_cast<const T*>(args.x);
    auto* y = static_cast<T*>(args.y);
    auto* log_det = static_cast<A*>(args.log_det);
    const A filler = A(inverse ? args.shape.bottom : args.shape.left);
    at::parallel_for(0, groups.number, 1, [&](int64_t begin, int64_t end) {
      Reader<T> reader(args);
      std::vector<A> terms(args.event == 0 ? 0 : groups.size);
      for (int64_t group = begin; group < end; ++group) {
        const auto range = groups.range(args, group);
        A* to = args.event == 0 ? log_det + range.begin : terms.data();
        for (int64_t i = range.begin; i < range.end; i += lanes) {
          const int64_t count = std::min<int64_t>(lanes, range.end - i);
          reader.load(args.widths, i, count, reader.raw(0));
          reader.load(args.heights, i, count, reader.raw(1));
          const auto value = spline_apply<inverse>(
              spline,
              reader.domain(spline, i, count),
              vload(x + i, count, filler),
              reader.raw(0),
              reader.raw(1),
              reader.memory(),
              reader.slopes(i, count));
          if (!args.shape.tails && !value.inside.all()) {
            invalid.store(true, std::memory_order_relaxed);
          }
          vstore(y + i, value.y, count);
          vstore(to + (i - range.begin), value.log_det, count);
        }
        for (int64_t i = range.begin; args.event > 0 && i < range.end; i += args.event) {
          const A* from = terms.data() + (i - range.begin);
          log_det[i / args.event] =
              static_cast<A>(blocked_sum(args.event, [&](int64_t first, int64_t count) {
                Vec<A> sum(0);
                for (int64_t j = 0; j < count; j += lanes) {
                  sum = sum + vload(from + first + j, count - j);
                }
                return sum_lanes<A>(sum);
              }));
        }
      }
    });
  });
  args.invalid = invalid.load();
}

// Gradients along one axis of where the bin begins and of its length.
template <typename A>
struct SideGrad {
  Vec<A> begin, length;
};

// From those to the parameters whose exponentials are in `columns`, in place.
template <typename A>
void parameter_grad(
    const Spline<A>& spline,
    const Vec<A>& index,
    const SplineSide<A>& side,
    const Vec<A>& sum,
    const SideGrad<A>& grad,
    const A* raw,
    A* columns) {
  constexpr int lanes = kLanes<A>;
  const int bins = spline.bins;
  const Vec<A> zero(0);
  if (spline.shape.given) {
    // The last bin's length is what the others leave.
    const auto last = equal(index, Vec<A>(A(bins - 1)));
    const Vec<A> before = side.scale * select(last, grad.begin - grad.length, grad.begin);
    const Vec<A> own = side.scale * select(last, zero, grad.length);
    for (int k = 0; k < bins; ++k) {
      const Vec<A> at{A(k)};
      select(less(at, index), before, select(equal(at, index), own, zero))
          .store(columns + k * lanes);
    }
    return;
  }
  const Vec<A> mean =
      at::vec::fmadd(grad.begin, side.before, grad.length * side.own) / sum;
  const Vec<A> before = side.scale * (grad.begin - mean);
  const Vec<A> own = side.scale * (grad.length - mean);
  const Vec<A> after = side.scale * mean.neg();
  for (int k = 0; k < bins; ++k) {
    const Vec<A> at{A(k)};
    Vec<A> factor = select(less(at, index), before, select(equal(at, index), own, after));
    if (spline.clip != 0) {
      const Vec<A> u = Vec<A>::loadu(raw + k * lanes);
      const Vec<A> shrink = reciprocal(at::vec::fmadd(Vec<A>(spline.clip), u.abs(), Vec<A>(1)));
      factor = factor * shrink * shrink;
    }
    (factor * Vec<A>::loadu(columns + k * lanes)).store(columns + k * lanes);
  }
}

template <typename A>
struct PointGrad {
  Vec<A> x;
  SideGrad<A> in, out;
  Vec<A> d0, d1;
};

// Gradients of one position given those of y and log_det (for the inverse: of x and its log_det).
template <bool Inverse, typename A>
PointGrad<A> point_grad(
    const SplinePoint<A>& p, const SplineBin<A>& bin, const Vec<A>& grad_y, const Vec<A>& grad_log) {
  const Vec<A> one(1);
  const Vec<A> two(2);
  const Vec<A> rest = one - p.theta;
  const Vec<A> inverse_m = reciprocal(p.m);
  const Vec<A> curl = one - two * p.theta; // dt / d theta
  const Vec<A> double_t_d = two * p.t * p.inverse_d;
  // Of log(M / D^2).
  const Vec<A> log_u = at::vec::fmsub(rest * rest, inverse_m, double_t_d);
  const Vec<A> log_v = at::vec::fmsub(p.theta * p.theta, inverse_m, double_t_d);
  const Vec<A> log_theta = two *
      at::vec::fmsub((p.v * p.theta - p.u * rest) + curl,
                     inverse_m,
                     (p.u + p.v - two) * curl * p.inverse_d);
  // Of eta.
  const Vec<A> eta_theta = p.m * p.inverse_d * p.inverse_d;
  const Vec<A> eta_u = p.t * (one - p.eta) * p.inverse_d;
  const Vec<A> eta_v = (p.t * p.eta * p.inverse_d).neg();
  const Vec<A> of_log = Inverse ? grad_log.neg() : grad_log;
  Vec<A> position; // gradient of the position along the axis `in`, over its length
  Vec<A> grad_u;
  Vec<A> grad_v;
  if constexpr (Inverse) {
    const Vec<A> of_theta = at::vec::fmadd(of_log, log_theta, grad_y * bin.out.length);
    const Vec<A> of_eta = of_theta / eta_theta;
    grad_u = at::vec::fmsub(of_log, log_u, of_eta * eta_u);
    grad_v = at::vec::fmsub(of_log, log_v, of_eta * eta_v);
    position = of_eta / bin.in.length;
  } else {
    const Vec<A> of_eta = grad_y * bin.out.length;
    grad_u = at::vec::fmadd(of_log, log_u, of_eta * eta_u);
    grad_v = at::vec::fmadd(of_log, log_v, of_eta * eta_v);
    position = at::vec::fmadd(of_log, log_theta, of_eta * eta_theta) * p.inverse_width;
  }
  const Vec<A> of_log_delta = of_log - at::vec::fmadd(grad_u, p.u, grad_v * p.v);
  const Vec<A> of_height = of_log_delta * (Inverse ? one / bin.in.length : one / bin.out.length);
  const Vec<A> of_width = (of_log_delta * p.inverse_width).neg();
  PointGrad<A> grad;
  grad.x = position;
  grad.in.begin = position.neg();
  grad.in.length = (Inverse ? of_height : of_width) - position * (Inverse ? p.eta : p.theta);
  grad.out.begin = grad_y;
  grad.out.length =
      at::vec::fmadd(grad_y, Inverse ? p.theta : p.eta, Inverse ? of_width : of_height);
  grad.d0 = grad_u * p.inverse_delta;
  grad.d1 = grad_v * p.inverse_delta;
  return grad;
}

// The gradients of the two slopes of each lane into dense rows of zeros.
template <typename T>
void store_slopes(
    const SplineShape& shape,
    const Vec<acc_t<T>>& index,
    const Vec<acc_t<T>>& first,
    const Vec<acc_t<T>>& second,
    int64_t count,
    T* rows) {
  using A = acc_t<T>;
  constexpr int lanes = kStep<T>;
  const int64_t number = shape.slopes();
  A at[lanes];
  A values[2][lanes];
  index.store(at);
  first.store(values[0]);
  second.store(values[1]);
  std::memset(static_cast<void*>(rows), 0, sizeof(T) * count * number);
  for (int64_t l = 0; l < count; ++l) {
    T* row = rows + l * number;
    int64_t k = static_cast<int64_t>(at[l]);
    if (shape.ends == SplineEnds::Fixed) {
      if (k > 0) {
        row[k - 1] = static_cast<T>(values[0][l]);
      }
      if (k < number) {
        row[k] = static_cast<T>(values[1][l]);
      }
    } else if (shape.ends == SplineEnds::Periodic && k + 1 == number) {
      const A of_first = number == 1 ? values[0][l] + values[1][l] : values[1][l];
      row[k] = static_cast<T>(values[0][l]);
      row[0] = static_cast<T>(of_first);
    } else {
      row[k] = static_cast<T>(values[0][l]);
      row[k + 1] = static_cast<T>(values[1][l]);
    }
  }
}

// The gradients of the log-determinants of a vector of elements.
template <typename A>
Vec<A> log_det_grad(const SplineArgs& args, const A* grad, int64_t first, int64_t count) {
  if (grad == nullptr) {
    return Vec<A>(0);
  }
  if (args.event == 0) {
    return vload(grad + first, count);
  }
  A values[kLanes<A>] = {};
  int64_t row = first / args.event;
  int64_t left = args.event - first % args.event;
  for (int64_t l = 0; l < count; ++l) {
    values[l] = grad[row];
    if (--left == 0) {
      left = args.event;
      ++row;
    }
  }
  return Vec<A>::loadu(values);
}

void spline_grad(const SplineGradArgs& args) {
  const SplineArgs& in = args.in;
  const Groups groups(in.count, 0);
  with_direction(in, [&](auto t, auto inverse) {
    using T = typename decltype(t)::type;
    using A = acc_t<T>;
    constexpr int lanes = kStep<T>;
    const int64_t bins = in.shape.bins;
    const int64_t number = in.shape.slopes();
    const Spline<A> spline(in.shape, inverse);
    const auto* x = static_cast<const T*>(in.x);
    const auto* grad_y = static_cast<const A*>(args.grad_y);
    const auto* grad_log_det = static_cast<const A*>(args.grad_log_det);
    auto* grad_x = static_cast<T*>(args.grad_x);
    auto* grad_slopes = static_cast<T*>(args.grad_slopes);
    // Along the axis of x, and across.
    auto* grad_along = static_cast<T*>(inverse ? args.grad_heights : args.grad_widths);
    auto* grad_across = static_cast<T*>(inverse ? args.grad_widths : args.grad_heights);
    const A filler = A(inverse ? in.shape.bottom : in.shape.left);
    const Vec<A> zero(0);
    at::parallel_for(0, groups.number, 1, [&](int64_t begin, int64_t end) {
      Reader<T> reader(in);
      const A* raw_along = reader.raw(0);
      const A* raw_across = reader.raw(1);
      const SplineColumns<A> along(reader.memory(), spline.bins);
      const SplineColumns<A> across(
          reader.memory() + SplineColumns<A>::kColumns * bins * lanes, spline.bins);
      for (int64_t i = begin * groups.size; i < std::min(in.count, end * groups.size); i += lanes) {
        const int64_t count = std::min<int64_t>(lanes, in.count - i);
        reader.load(inverse ? in.heights : in.widths, i, count, reader.raw(0));
        reader.load(inverse ? in.widths : in.heights, i, count, reader.raw(1));
        const auto along_total = spline_exponentials(spline, raw_along, along);
        const auto across_total = spline_exponentials(spline, raw_across, across);
        const auto domain = reader.domain(spline, i, count);
        const Vec<A> at = vload(x + i, count, filler);
        const auto inside = less_equal(domain.low(), at) & less_equal(at, domain.high());
        const auto bin = find_bin(spline, domain, at, along, along_total, across, across_total);
        const auto slopes = spline_slopes(spline, bin.index, reader.slopes(i, count));
        const auto point = spline_point<inverse>(bin, slopes, at);
        const Vec<A> of_y = grad_y == nullptr ? zero : vload(grad_y + i, count);
        const Vec<A> of_log = log_det_grad(in, grad_log_det, i, count);
        auto grad = point_grad<inverse>(point, bin, of_y, of_log);
        if (grad_x != nullptr) {
          vstore(grad_x + i, select(inside, grad.x, of_y), count);
        }
        for (auto* side : {&grad.in, &grad.out}) {
          side->begin = select(inside, side->begin, zero);
          side->length = select(inside, side->length, zero);
        }
        if (grad_along != nullptr) {
          parameter_grad(spline, bin.index, bin.in, along_total.sum, grad.in, raw_along, along.own);
          store_columns(along.own, bins, count, grad_along + i * bins, reader.buffer());
        }
        if (grad_across != nullptr) {
          parameter_grad(spline, bin.index, bin.out, across_total.sum, grad.out, raw_across, across.own);
          store_columns(across.own, bins, count, grad_across + i * bins, reader.buffer());
        }
        if (grad_slopes != nullptr && number > 0) {
          store_slopes(
              in.shape,
              bin.index,
              select(inside, grad.d0 * spline.slope_derivative(slopes.u0, slopes.d0), zero),
              select(inside, grad.d1 * spline.slope_derivative(slopes.u1, slopes.d1), zero),
              count,
              grad_slopes + i * number);
        }
      }
    });
  });
}

} // namespace
} // namespace CPU_CAPABILITY

void fill_rational_quadratic(SplineKernels& kernels) {
  kernels.spline = spline;
  kernels.spline_grad = spline_grad;
}

} // namespace dgm_fast
