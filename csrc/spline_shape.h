// The shape of a spline as its kernels take it, from the options of an op.
#pragma once

#include "cpu/spline_table.h"

#include <cmath>

namespace dgm_fast {

// The codes of the op's `parameterization`, as in ops/spline.py.
enum class Parameterization : int64_t { Nflows, Zuko, Distrax, Madnis, Pyro };

struct SplineOptions {
  int64_t ends;
  bool tails;
  double left, right, bottom, top;
  double min_width, min_height, min_slope;
  int64_t parameterization;
};

inline SplineShape make_spline_shape(int64_t bins, const SplineOptions& options) {
  SplineShape shape{};
  shape.bins = bins;
  shape.min_width = options.min_width;
  shape.min_height = options.min_height;
  shape.slope_map = SlopeMap::Softplus;
  shape.slope_scale = 1;
  shape.min_slope = options.min_slope;
  shape.end_slope = 1;
  shape.ends = static_cast<SplineEnds>(options.ends);
  shape.tails = options.tails;
  shape.left = options.left;
  shape.right = options.right;
  shape.bottom = options.bottom;
  shape.top = options.top;
  switch (static_cast<Parameterization>(options.parameterization)) {
    case Parameterization::Nflows:
      break;
    case Parameterization::Zuko:
      // The least slope bounds everything.
      shape.slope_map = SlopeMap::Exponential;
      shape.slope_clip = 1 / std::abs(std::log(options.min_slope));
      shape.clip = 2 * shape.slope_clip;
      shape.min_width = shape.min_height = 0;
      break;
    case Parameterization::Distrax:
      shape.slope_offset = std::log(std::expm1(1 - options.min_slope));
      break;
    case Parameterization::Madnis:
      shape.slope_scale = 1 / (options.min_slope + std::log(2.0));
      break;
    case Parameterization::Pyro:
      shape.given = true;
      shape.slope_map = SlopeMap::Given;
      shape.end_slope = 1 - options.min_slope;
      break;
  }
  return shape;
}

} // namespace dgm_fast
