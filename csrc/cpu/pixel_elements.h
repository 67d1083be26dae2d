// Element-wise layers of a causal pixel network, on rows of channels.
#pragma once

#include "activations.h"
#include "gate.h"
#include "pixel_sampling_table.h"

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

// visit(i, count) over vectors of [0, size), the last one perhaps not full.
template <typename A, typename F>
inline void each_of(int64_t size, F&& visit) {
  constexpr int64_t lanes = kLanes<A>;
  int64_t i = 0;
  for (; i + lanes <= size; i += lanes) {
    visit(i, lanes);
  }
  if (i < size) {
    visit(i, size - i);
  }
}

template <typename A, typename F>
inline void map_run(const A* in, int64_t size, A* out, F&& function) {
  each_of<A>(size, [&](int64_t i, int64_t count) {
    vstore(out + i, function(vload(in + i, count)), count);
  });
}

// Functions of one vector.
template <typename A>
void map_elements(PixelKind kind, const A* in, int64_t size, A* out) {
  const Vec<A> one(1);
  switch (kind) {
    case PixelKind::Relu:
      return map_run(in, size, out, [](const Vec<A>& v) { return at_least(v, A(0)); });
    case PixelKind::Elu:
      return map_run(in, size, out, [&](const Vec<A>& v) { return exponential_linear(v, one); });
    case PixelKind::Tanh:
      return map_run(in, size, out, [](const Vec<A>& v) { return tanh_slope(v).value; });
    case PixelKind::Sigmoid:
      return map_run(in, size, out, [](const Vec<A>& v) { return logistic(v); });
    case PixelKind::ConcatElu:
      map_run(in, size, out, [&](const Vec<A>& v) { return exponential_linear(v, one); });
      return map_run(in, size, out + size, [&](const Vec<A>& v) {
        return exponential_linear(v.neg(), one);
      });
    default:
      std::copy_n(in, size, out);
  }
}

// out = f(a) sigmoid(b) of the halves of `in`, `size` entries each.
template <typename A>
void gate_elements(PixelKind kind, const A* in, int64_t size, A* out) {
  each_of<A>(size, [&](int64_t i, int64_t count) {
    const Vec<A> a = vload(in + i, count), b = vload(in + size + i, count);
    if (kind == PixelKind::TanhGate) {
      vstore(out + i, gated_product(a, b), count);
    } else {
      vstore(out + i, a * logistic(b), count);
    }
  });
}

template <typename A>
void add_elements(const A* in, int64_t size, A* out) {
  each_of<A>(size, [&](int64_t i, int64_t count) {
    vstore(out + i, vload(out + i, count) + vload(in + i, count), count);
  });
}

// A step of an LSTM from its gates i, f, g, o, `size` entries each, and the cell before.
template <typename A>
void lstm_elements(const A* gates, const A* before, int64_t size, A* cell, A* hidden) {
  each_of<A>(size, [&](int64_t i, int64_t count) {
    const auto input = gate<false>(
        vload(gates + 2 * size + i, count), vload(gates + i, count));
    const Vec<A> kept = logistic(vload(gates + size + i, count)) * vload(before + i, count);
    const Vec<A> now = at::vec::fmadd(input.sigmoid, input.tanh, kept);
    vstore(cell + i, now, count);
    vstore(hidden + i, gated_product(now, vload(gates + 3 * size + i, count)), count);
  });
}

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
