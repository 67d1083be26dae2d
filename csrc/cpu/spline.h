// Monotone rational-quadratic splines (Durkan et al. 2019), a vector of elements at a time.
//
// An element lies in a bin of width w and height h, whose mean slope is delta = h / w. With its position theta in
// [0, 1] along the bin, t = theta (1 - theta), and u, v the slopes at the ends of the bin over delta,
//
//   y = bottom + h eta,       eta = (theta^2 + u t) / D,             D = 1 + (u + v - 2) t
//   dy/dx = delta M / D^2,    M = v theta^2 + 2 t + u (1 - theta)^2
//
// and eta is turned back into theta, with g = u (1 - eta) - v eta and q = sqrt(g^2 + 4 eta (1 - eta)) + |g|, by
//
//   theta = 2 eta / (2 eta + q) where g >= 0,    q / (q + 2 (1 - eta)) elsewhere,
//
// which is the quadratic's root without a difference of like numbers.
//
// Parameters of a vector of elements lie in columns: parameter k of lane l at [k * lanes + l].
#pragma once

#include "softplus.h"
#include "spline_table.h"
#include "vec.h"

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

// A shape in the type of the sums.
template <typename A>
struct Spline {
  const SplineShape& shape;
  int bins;
  A clip, slope_offset, slope_scale, slope_clip, min_slope;
  A centre_in, range_in, centre_out, range_out; // of the domain and its image
  A min_in, free_in, min_out, free_out; // a bin's share: min + free times its softmax

  // `inverse`: along the heights, from y to x.
  Spline(const SplineShape& s, bool inverse)
      : shape(s),
        bins(static_cast<int>(s.bins)),
        clip(A(s.clip)),
        slope_offset(A(s.slope_offset)),
        slope_scale(A(s.slope_scale)),
        slope_clip(A(s.slope_clip)),
        min_slope(A(s.min_slope)),
        centre_in(A((s.left + s.right) / 2)),
        range_in(A(s.right - s.left)),
        centre_out(A((s.bottom + s.top) / 2)),
        range_out(A(s.top - s.bottom)),
        min_in(A(s.min_width)),
        free_in(A(1 - s.min_width * static_cast<double>(s.bins))),
        min_out(A(s.min_height)),
        free_out(A(1 - s.min_height * static_cast<double>(s.bins))) {
    if (inverse) {
      std::swap(centre_in, centre_out);
      std::swap(range_in, range_out);
      std::swap(min_in, min_out);
      std::swap(free_in, free_out);
    }
  }

  Vec<A> slope(const Vec<A>& u) const {
    switch (shape.slope_map) {
      case SlopeMap::Softplus:
        return (softplus(u + Vec<A>(slope_offset)) + Vec<A>(min_slope)) * Vec<A>(slope_scale);
      case SlopeMap::Exponential:
        return fast_exp(u / at::vec::fmadd(Vec<A>(slope_clip), u.abs(), Vec<A>(1)));
      default:
        return u + Vec<A>(min_slope);
    }
  }

  // d slope / d u, given the slope.
  Vec<A> slope_derivative(const Vec<A>& u, const Vec<A>& value) const {
    switch (shape.slope_map) {
      case SlopeMap::Softplus:
        return sigmoid(u + Vec<A>(slope_offset)) * Vec<A>(slope_scale);
      case SlopeMap::Exponential: {
        const Vec<A> shrink = reciprocal(at::vec::fmadd(Vec<A>(slope_clip), u.abs(), Vec<A>(1)));
        return value * shrink * shrink;
      }
      default:
        return Vec<A>(1);
    }
  }
};

// The domain of each lane: half its length, and the length of its image. Centres are the shape's, or 0.
template <typename A>
struct SplineDomain {
  Vec<A> centre_in, range_in, centre_out, range_out;

  explicit SplineDomain(const Spline<A>& spline)
      : centre_in(spline.centre_in),
        range_in(spline.range_in),
        centre_out(spline.centre_out),
        range_out(spline.range_out) {}

  // [-bound, bound] both ways.
  explicit SplineDomain(const Vec<A>& bound)
      : centre_in(A(0)), range_in(bound + bound), centre_out(A(0)), range_out(bound + bound) {}

  Vec<A> low() const {
    return at::vec::fmadd(range_in, Vec<A>(A(-0.5)), centre_in);
  }
  Vec<A> high() const {
    return at::vec::fmadd(range_in, Vec<A>(A(0.5)), centre_in);
  }
  Vec<A> image_low() const {
    return at::vec::fmadd(range_out, Vec<A>(A(-0.5)), centre_out);
  }
  Vec<A> image_high() const {
    return at::vec::fmadd(range_out, Vec<A>(A(0.5)), centre_out);
  }
};

// The bins along one axis in columns: the exponential of each bin's parameter relative to the largest, and the sum of
// those before it, in two parts (compensated, Kahan 1965): where bins are narrow, a position in one is the small
// difference of x and a sum of many terms.
template <typename A>
struct SplineColumns {
  A* own;
  A* before;
  A* before_low;

  static constexpr int kColumns = 3;

  SplineColumns(A* memory, int bins)
      : own(memory), before(own + bins * kLanes<A>), before_low(before + bins * kLanes<A>) {}
};

// exp(v) over a power of two near exp(highest): v - highest would be rounded before the exponential.
template <typename A>
struct PowerOfTwo {
  Vec<A> power, lowest;

  static bool serves(const Vec<A>& highest) {
    return std::is_same_v<A, float> && less(highest.abs(), Vec<A>(A(1e6))).all();
  }

  explicit PowerOfTwo(const Vec<A>& highest)
      : power((highest * Vec<A>(A(kLog2E))).round()), lowest(highest - Vec<A>(86)) {}

  Vec<A> exp(const Vec<A>& v) const {
    if constexpr (std::is_same_v<A, float>) {
      return exp_scaled(max_ignoring_nan(lowest, v), power);
    }
    return v;
  }
};

template <typename A>
struct SplineTotal {
  Vec<A> sum, low;
};

template <typename A>
inline SplineTotal<A> spline_exponentials(
    const Spline<A>& spline, const A* raw, const SplineColumns<A>& columns) {
  constexpr int lanes = kLanes<A>;
  const int bins = spline.bins;
  const auto value = [&](int k) {
    const Vec<A> u = Vec<A>::loadu(raw + k * lanes);
    if (spline.clip == 0) {
      return u;
    }
    return u / at::vec::fmadd(Vec<A>(spline.clip), u.abs(), Vec<A>(1));
  };
  Vec<A> highest(0);
  if (!spline.shape.given) {
    highest = value(0);
    for (int k = 1; k < bins; ++k) {
      highest = max_ignoring_nan(value(k), highest);
    }
  }
  SplineTotal<A> total{Vec<A>(0), Vec<A>(0)};
  const auto accumulate = [&](auto&& exponential) {
    for (int k = 0; k < bins; ++k) {
      const Vec<A> own = exponential(value(k));
      own.store(columns.own + k * lanes);
      total.sum.store(columns.before + k * lanes);
      total.low.store(columns.before_low + k * lanes);
      const Vec<A> term = own + total.low;
      const Vec<A> sum = total.sum + term;
      total.low = term - (sum - total.sum);
      total.sum = sum;
    }
  };
  if (spline.shape.given) {
    accumulate([](const Vec<A>& v) { return v; });
  } else if (PowerOfTwo<A>::serves(highest)) {
    const PowerOfTwo<A> shift(highest);
    accumulate([&](const Vec<A>& v) { return shift.exp(v); });
  } else {
    accumulate([&](const Vec<A>& v) { return fast_exp(v - highest); });
  }
  if (spline.shape.given) {
    total = {Vec<A>(1), Vec<A>(0)};
  }
  return total;
}

// Where along one axis the bin begins, how long it is, and what their derivatives need.
template <typename A>
struct SplineSide {
  Vec<A> scale; // length that a unit of the exponentials brings
  Vec<A> before, own; // exponentials of the bins before this one, and of it
  Vec<A> begin, begin_low, length;
};

template <typename A>
struct SplineBin {
  Vec<A> index;
  SplineSide<A> in, out;
};

// Begin and length of the selected bin, from its exponentials.
template <typename A>
inline void place_bin(
    SplineSide<A>& side,
    const Vec<A>& before_low,
    const SplineTotal<A>& total,
    const Vec<A>& free,
    const Vec<A>& step,
    const Vec<A>& base) {
  const Vec<A> half(A(-0.5));
  side.length = at::vec::fmadd(side.scale, side.own, step);
  // base + free (before - total / 2) / total, to about twice the precision.
  const Vec<A> from_middle = at::vec::fmadd(half, total.sum, side.before) +
      at::vec::fmadd(half, total.low, before_low);
  const Vec<A> residual = at::vec::fnmadd(side.scale, total.sum, free) - side.scale * total.low;
  const Vec<A> scale_low = residual * reciprocal(total.sum);
  const Vec<A> way = side.scale * from_middle;
  const Vec<A> way_low =
      at::vec::fmadd(scale_low, from_middle, at::vec::fmsub(side.scale, from_middle, way));
  side.begin = base + way;
  side.begin_low = (base - (side.begin - way)) + way_low;
}

// The bin that holds x, along the axis `in`. Bins are closed to the left.
template <typename A>
inline SplineBin<A> find_bin(
    const Spline<A>& spline,
    const SplineDomain<A>& domain,
    const Vec<A>& x,
    const SplineColumns<A>& in,
    const SplineTotal<A>& in_total,
    const SplineColumns<A>& out,
    const SplineTotal<A>& out_total) {
  constexpr int lanes = kLanes<A>;
  const int bins = spline.bins;
  SplineBin<A> bin;
  const Vec<A> free_in = Vec<A>(spline.free_in) * domain.range_in;
  const Vec<A> free_out = Vec<A>(spline.free_out) * domain.range_out;
  bin.in.scale = free_in / in_total.sum;
  bin.out.scale = free_out / out_total.sum;
  const Vec<A> step_in = Vec<A>(spline.min_in) * domain.range_in;
  const Vec<A> step_out = Vec<A>(spline.min_out) * domain.range_out;
  // Knot k lies at centre + step (k - bins / 2) + scale (sum of k exponentials - half their sum): measured from
  // the centre, the ends come out exact.
  const Vec<A> middle(A(bins) / 2);
  const Vec<A> origin = at::vec::fmadd(
      bin.in.scale,
      Vec<A>(A(-0.5)) * in_total.sum,
      at::vec::fnmadd(middle, step_in, domain.centre_in));
  bin.index = Vec<A>(0);
  bin.in.before = bin.out.before = Vec<A>(0);
  Vec<A> in_low(0);
  Vec<A> out_low(0);
  bin.in.own = Vec<A>::loadu(in.own);
  bin.out.own = Vec<A>::loadu(out.own);
  for (int k = 1; k < bins; ++k) {
    const Vec<A> number{A(k)};
    const Vec<A> before = Vec<A>::loadu(in.before + k * lanes);
    const Vec<A> knot =
        at::vec::fmadd(bin.in.scale, before, at::vec::fmadd(number, step_in, origin));
    const auto reached = less_equal(knot, x);
    const auto take = [&](const A* column, Vec<A>& to) {
      to = select(reached, Vec<A>::loadu(column + k * lanes), to);
    };
    bin.index = select(reached, number, bin.index);
    bin.in.before = select(reached, before, bin.in.before);
    take(in.before_low, in_low);
    take(in.own, bin.in.own);
    take(out.before, bin.out.before);
    take(out.before_low, out_low);
    take(out.own, bin.out.own);
  }
  const Vec<A> from_middle = bin.index - middle;
  place_bin(
      bin.in,
      in_low,
      in_total,
      free_in,
      step_in,
      at::vec::fmadd(from_middle, step_in, domain.centre_in));
  place_bin(
      bin.out,
      out_low,
      out_total,
      free_out,
      step_out,
      at::vec::fmadd(from_middle, step_out, domain.centre_out));
  if (spline.shape.given) {
    // Fractions that are not normalised here: the last bin reaches to the end.
    const auto last = equal(bin.index, Vec<A>(A(bins - 1)));
    const auto reach = [&](SplineSide<A>& side, const Vec<A>& end) {
      side.length = select(last, end - side.begin - side.begin_low, side.length);
    };
    reach(bin.in, domain.high());
    reach(bin.out, domain.image_high());
  }
  return bin;
}

// The slopes at the ends of a bin and their parameters.
template <typename A>
struct SplineSlopes {
  Vec<A> u0, u1;
  Vec<A> d0, d1;
};

// `parameter(k, lane)` is slope parameter k of a lane.
template <typename A, typename F>
inline SplineSlopes<A> spline_slopes(
    const Spline<A>& spline, const Vec<A>& index, F&& parameter) {
  constexpr int lanes = kLanes<A>;
  const auto ends = spline.shape.ends;
  const int last = static_cast<int>(spline.shape.slopes()) - 1;
  A at[lanes];
  A first[lanes];
  A second[lanes];
  index.store(at);
  for (int l = 0; l < lanes; ++l) {
    const int k = static_cast<int>(at[l]);
    int k0 = k;
    int k1 = k + 1;
    if (ends == SplineEnds::Fixed) {
      k0 = std::max(k - 1, 0);
      k1 = std::min(k, last);
    } else if (ends == SplineEnds::Periodic && k1 > last) {
      k1 = 0;
    }
    first[l] = last < 0 ? A(0) : parameter(k0, l);
    second[l] = last < 0 ? A(0) : parameter(k1, l);
  }
  SplineSlopes<A> slopes;
  slopes.u0 = Vec<A>::loadu(first);
  slopes.u1 = Vec<A>::loadu(second);
  slopes.d0 = spline.slope(slopes.u0);
  slopes.d1 = spline.slope(slopes.u1);
  if (ends == SplineEnds::Fixed) {
    const Vec<A> end_slope(A(spline.shape.end_slope));
    slopes.d0 = select(equal(index, Vec<A>(0)), end_slope, slopes.d0);
    slopes.d1 = select(equal(index, Vec<A>(A(spline.bins - 1))), end_slope, slopes.d1);
  }
  return slopes;
}

// A position inside a bin.
template <typename A>
struct SplinePoint {
  Vec<A> theta, eta; // along the widths, along the heights
  Vec<A> delta, inverse_delta, inverse_width; // mean slope
  Vec<A> u, v, t;
  Vec<A> inverse_d, m;

  Vec<A> slope() const {
    return delta * (m * inverse_d) * inverse_d;
  }
};

// At x (at y, for the inverse), which lies in the bin.
template <bool Inverse, typename A>
inline SplinePoint<A> spline_point(
    const SplineBin<A>& bin, const SplineSlopes<A>& slopes, const Vec<A>& x) {
  const Vec<A> one(1);
  const Vec<A> two(2);
  const Vec<A>& width = Inverse ? bin.out.length : bin.in.length;
  const Vec<A>& height = Inverse ? bin.in.length : bin.out.length;
  SplinePoint<A> p;
  p.inverse_width = reciprocal(width);
  const Vec<A> inverse_height = reciprocal(height);
  p.delta = height * p.inverse_width;
  p.inverse_delta = width * inverse_height;
  p.u = slopes.d0 * p.inverse_delta;
  p.v = slopes.d1 * p.inverse_delta;
  const Vec<A> offset = (x - bin.in.begin) - bin.in.begin_low;
  const Vec<A> position = at_most(
      at_least(offset * (Inverse ? inverse_height : p.inverse_width), A(0)), A(1));
  if constexpr (Inverse) {
    p.eta = position;
    const Vec<A> rest = one - p.eta;
    const Vec<A> g = at::vec::fmsub(p.u, rest, p.v * p.eta);
    const Vec<A> q =
        at::vec::fmadd(g, g, Vec<A>(4) * p.eta * rest).sqrt() + g.abs();
    const auto rising = less_equal(Vec<A>(0), g);
    const Vec<A> numerator = select(rising, two * p.eta, q);
    const Vec<A> other = select(rising, q, two * rest);
    p.theta = numerator / (numerator + other);
  } else {
    p.theta = position;
  }
  const Vec<A> rest = one - p.theta;
  p.t = p.theta * rest;
  const Vec<A> square = p.theta * p.theta;
  p.inverse_d = reciprocal(at::vec::fmadd(p.u + p.v - two, p.t, one));
  if constexpr (!Inverse) {
    p.eta = at::vec::fmadd(p.u, p.t, square) * p.inverse_d;
  }
  p.m = at::vec::fmadd(p.v, square, at::vec::fmadd(p.u * rest, rest, two * p.t));
  return p;
}

template <typename A>
struct SplineValue {
  Vec<A> y;
  Vec<A> log_det; // log |dy/dx|
  Mask<A> inside; // elsewhere y = x
};

// Room that a vector of elements needs beside its parameters.
inline int64_t spline_memory(int64_t bins, int lanes) {
  return 2 * SplineColumns<float>::kColumns * bins * lanes;
}

// The spline (from x to y, or with Inverse back) of a vector of elements. `widths` and `heights` are columns, `memory`
// has room for spline_memory() numbers; slopes come from parameter(k, lane).
template <bool Inverse, typename A, typename F>
inline SplineValue<A> spline_apply(
    const Spline<A>& spline,
    const SplineDomain<A>& domain,
    const Vec<A>& x,
    const A* widths,
    const A* heights,
    A* memory,
    F&& parameter) {
  const SplineColumns<A> along(memory, spline.bins);
  const SplineColumns<A> across(
      memory + SplineColumns<A>::kColumns * spline.bins * kLanes<A>, spline.bins);
  const auto along_total = spline_exponentials(spline, Inverse ? heights : widths, along);
  const auto across_total = spline_exponentials(spline, Inverse ? widths : heights, across);
  const auto inside = less_equal(domain.low(), x) & less_equal(x, domain.high());
  const auto bin = find_bin(spline, domain, x, along, along_total, across, across_total);
  const auto slopes = spline_slopes(spline, bin.index, parameter);
  const auto point = spline_point<Inverse>(bin, slopes, x);
  const Vec<A> free = bin.out.begin +
      at::vec::fmadd(bin.out.length, Inverse ? point.theta : point.eta, bin.out.begin_low);
  // A rounding must not lift a point over the end, where the way back has other rules.
  const Vec<A> y =
      at::vec::minimum(at::vec::maximum(free, domain.image_low()), domain.image_high());
  const Vec<A> log_slope = point.slope().log();
  return {
      select(inside, y, x),
      select(inside, Inverse ? log_slope.neg() : log_slope, Vec<A>(0)),
      inside};
}

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
