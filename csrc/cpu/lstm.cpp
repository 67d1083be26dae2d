// The pointwise part of a step of an LSTM over images, between its matrix products.

#include "dispatch.h"
#include "lstm_table.h"
#include "masked.h"

namespace dgm_fast {
inline namespace CPU_CAPABILITY {
namespace {

void step(const LstmStepArgs& args) {
  with_sum_type(args.dtype, [&](auto t) {
    using A = typename decltype(t)::type;
    const int64_t h = args.hidden;
    const auto* recurrent = static_cast<const A*>(args.recurrent);
    for (int64_t p = 0; p < args.positions; ++p) {
      const int64_t pixel = p * args.stride;
      const A* x = static_cast<const A*>(args.gates) + pixel * 4 * h;
      const A* z = recurrent == nullptr ? nullptr : recurrent + p * 4 * h;
      A* a = static_cast<A*>(args.activated) + pixel * 4 * h;
      A* cell_state = static_cast<A*>(args.cell_state) + p * h;
      A* state = static_cast<A*>(args.state) + p * h;
      A* cells = static_cast<A*>(args.cells) + pixel * h;
      A* out = static_cast<A*>(args.out) + pixel * h;
      each_vector<A>(h, [&](int64_t u, int64_t count) {
        const auto gate = [&](int64_t k) {
          const Vec<A> v = vload(x + k * h + u, count);
          return z == nullptr ? v : v + vload(z + k * h + u, count);
        };
        const Vec<A> i = sigmoid(gate(0));
        const Vec<A> f = sigmoid(gate(1));
        const Vec<A> g = tanh_slope(gate(2)).value;
        const Vec<A> o = sigmoid(gate(3));
        const Vec<A> c = at::vec::fmadd(f, vload(cell_state + u, count), i * g);
        const Vec<A> result = o * tanh_slope(c).value;
        vstore(a + u, i, count);
        vstore(a + h + u, f, count);
        vstore(a + 2 * h + u, g, count);
        vstore(a + 3 * h + u, o, count);
        vstore(cell_state + u, c, count);
        vstore(cells + u, c, count);
        vstore(state + u, result, count);
        vstore(out + u, result, count);
      });
    }
  });
}

void step_grad(const LstmStepGradArgs& args) {
  with_sum_type(args.dtype, [&](auto t) {
    using A = typename decltype(t)::type;
    const int64_t h = args.hidden;
    const Vec<A> one(1), zero(0);
    for (int64_t p = 0; p < args.positions; ++p) {
      const int64_t pixel = p * args.stride;
      const A* grad = static_cast<const A*>(args.grad) + pixel * h;
      const A* later = static_cast<const A*>(args.later);
      const A* a = static_cast<const A*>(args.activated) + pixel * 4 * h;
      const A* cells = static_cast<const A*>(args.cells) + pixel * h;
      const A* previous =
          p < args.with_previous ? static_cast<const A*>(args.previous) + pixel * h : nullptr;
      A* cell_grad = static_cast<A*>(args.cell_grad) + p * h;
      A* to = static_cast<A*>(args.grad_gates) + pixel * 4 * h;
      each_vector<A>(h, [&](int64_t u, int64_t count) {
        Vec<A> dh = vload(grad + u, count);
        for (int64_t tap = 0; tap < args.taps; ++tap) {
          dh = dh + vload(later + ((p - tap + args.reach) * args.taps + tap) * h + u, count);
        }
        const Vec<A> i = vload(a + u, count);
        const Vec<A> f = vload(a + h + u, count);
        const Vec<A> g = vload(a + 2 * h + u, count);
        const Vec<A> o = vload(a + 3 * h + u, count);
        const auto c = tanh_slope(vload(cells + u, count));
        const Vec<A> before = previous == nullptr ? zero : vload(previous + u, count);
        const Vec<A> dc = at::vec::fmadd(dh * o, c.slope, vload(cell_grad + u, count));
        vstore(cell_grad + u, dc * f, count);
        vstore(to + u, dc * g * i * (one - i), count);
        vstore(to + h + u, dc * before * f * (one - f), count);
        vstore(to + 2 * h + u, dc * i * (one - g * g), count);
        vstore(to + 3 * h + u, dh * c.value * o * (one - o), count);
      });
    }
  });
}

} // namespace
} // namespace CPU_CAPABILITY

void fill(LstmKernels& kernels) {
  kernels.step = step;
  kernels.step_grad = step_grad;
}

} // namespace dgm_fast
