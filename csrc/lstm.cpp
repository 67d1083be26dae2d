// CPU functions of the LSTM layers over images, with the loop over time.
//
// Both layers are one recurrence: the state of a step at position p comes from those of the step before at positions
// p - reach ... p - reach + taps - 1, and its cell from the one at p. Of a Row LSTM steps are rows and positions
// columns; of a Diagonal LSTM steps are diagonals i + j and positions rows i, where those at i - 1 and i are the pixel
// above and the one to the left. States of one step lie next to each other, so that the taps of a position are a row
// of a matrix whose rows overlap.

#include "cpu/lstm_table.h"
#include "kernels.h"
#include "layout.h"
#include "product.h"

#include <ATen/Parallel.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>

namespace dgm_fast {
namespace {

using at::Tensor;

struct Scan {
  bool diagonal;
  int64_t height, width, taps, reach;

  Scan(bool diagonal, const Tensor& gates, const Tensor& weight)
      : diagonal(diagonal),
        height(gates.size(2)),
        width(gates.size(3)),
        taps(weight.size(2)),
        reach(diagonal ? 1 : taps / 2) {}

  int64_t steps() const {
    return diagonal ? height + width - 1 : height;
  }
  int64_t positions() const {
    return diagonal ? height : width;
  }
  // Positions of a step, [first, last).
  int64_t first(int64_t step) const {
    return diagonal ? std::max<int64_t>(0, step - width + 1) : 0;
  }
  int64_t last(int64_t step) const {
    return diagonal ? std::min(height, step + 1) : width;
  }
  int64_t pixel(int64_t step, int64_t position) const {
    return diagonal ? position * width + step - position : step * width + position;
  }
  // Pixels from a position to the next one, and back to the same position of the step before.
  int64_t stride() const {
    return diagonal ? width - 1 : 1;
  }
  int64_t back() const {
    return diagonal ? 1 : width;
  }
  // How many positions of a step had one before.
  int64_t with_previous(int64_t step) const {
    return std::min(last(step), diagonal ? step : step * width) - first(step);
  }
};

// The memory of an image with its channels innermost.
Tensor innermost(const Tensor& image, at::ScalarType dtype) {
  return image.to(dtype).permute({0, 2, 3, 1}).contiguous();
}

Tensor image_of(const Tensor& memory) {
  return memory.permute({0, 3, 1, 2});
}

// [taps, hidden, 4 hidden] as the left state's matrix.
Tensor recurrent_matrix(const Tensor& weight, at::ScalarType dtype) {
  return weight.to(dtype).permute({2, 1, 0}).reshape({-1, weight.size(0)});
}

template <typename F>
void with_type(at::ScalarType type, F&& visit) {
  if (type == at::kDouble) {
    visit(0.0);
  } else {
    visit(0.0F);
  }
}

std::tuple<Tensor, Tensor, Tensor> forward(
    bool diagonal, const Tensor& gates, const Tensor& weight) {
  const Scan scan(diagonal, gates, weight);
  const auto type = sum_dtype(gates);
  const int64_t batch = gates.size(0);
  const int64_t h = weight.size(1);
  const Tensor x = innermost(gates, type);
  Tensor activated = empty_output(x.sizes(), type);
  Tensor cells = empty_output({batch, scan.height, scan.width, h}, type);
  Tensor out = empty_output(cells.sizes(), type);
  if (x.numel() != 0) {
    const Factor factor(recurrent_matrix(weight, type));
    with_type(type, [&](auto zero) {
      using A = decltype(zero);
      const int64_t pixels = scan.height * scan.width;
      const int64_t width = scan.positions() + scan.taps - 1;
      at::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
        Tensor state = at::empty({width, h}, x.options());
        Tensor cell_state = at::empty({scan.positions(), h}, x.options());
        const Tensor recurrent = at::empty({scan.positions(), 4 * h}, x.options());
        A* states = state.mutable_data_ptr<A>();
        A* products = recurrent.mutable_data_ptr<A>();
        for (int64_t b = begin; b < end; ++b) {
          state.zero_();
          cell_state.zero_();
          for (int64_t step = 0; step < scan.steps(); ++step) {
            const int64_t first = scan.first(step);
            const int64_t count = scan.last(step) - first;
            if (step > 0) {
              factor.multiply(products, 4 * h, states + first * h, h, count);
            }
            const int64_t at = b * pixels + scan.pixel(step, first);
            kernels<LstmKernels>().step(
                {count,
                 h,
                 scan.stride(),
                 dtype_code(type),
                 x.const_data_ptr<A>() + at * 4 * h,
                 step > 0 ? products : nullptr,
                 states + (first + scan.reach) * h,
                 cell_state.mutable_data_ptr<A>() + first * h,
                 activated.mutable_data_ptr<A>() + at * 4 * h,
                 cells.mutable_data_ptr<A>() + at * h,
                 out.mutable_data_ptr<A>() + at * h});
          }
        }
      });
    });
  }
  return {image_of(out).to(gates.scalar_type()), activated, cells};
}

// States that each pixel's step took, [batch, pixels, taps hidden].
Tensor taken_states(const Scan& scan, const Tensor& out) {
  const int64_t h = out.size(3);
  const int64_t reach = scan.diagonal ? 1 : scan.reach;
  Tensor padded =
      at::zeros({out.size(0), scan.height + 1, scan.width + 2 * reach, h}, out.options());
  const auto part = [&](int64_t row, int64_t column) {
    return padded.narrow(1, row, scan.height).narrow(2, column, scan.width);
  };
  part(1, reach).copy_(out);
  std::vector<Tensor> taps;
  if (scan.diagonal) {
    taps = {part(0, 1), part(1, 0)};
  } else {
    for (int64_t tap = 0; tap < scan.taps; ++tap) {
      taps.push_back(part(0, tap));
    }
  }
  return at::cat(taps, 3).flatten(1, 2);
}

// The sum over pixels of gradients [batch, pixels, 4 hidden] times what they took, [4 hidden, taps hidden]. Its parts
// depend on the sizes alone, so that the result does not depend on the number of threads.
Tensor weight_gradient(const Tensor& grad_gates, const Tensor& states) {
  constexpr int64_t kParts = 16;
  const int64_t batch = states.size(0);
  const int64_t parts = std::clamp<int64_t>(batch, 1, kParts);
  Tensor sums = at::zeros({parts, grad_gates.size(2), states.size(2)}, states.options());
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      for (int64_t b = part * batch / parts; b < (part + 1) * batch / parts; ++b) {
        Factor(states[b]).multiply(sums[part], grad_gates[b].t(), true);
      }
    }
  });
  return sums.sum(0);
}

std::tuple<Tensor, Tensor> backward(
    bool diagonal,
    const Tensor& grad,
    const Tensor& out,
    const Tensor& activated,
    const Tensor& cells,
    const Tensor& gates,
    const Tensor& weight,
    std::array<bool, 2> mask) {
  const Scan scan(diagonal, gates, weight);
  const auto type = sum_dtype(gates);
  const int64_t batch = gates.size(0);
  const int64_t h = weight.size(1);
  const Tensor upstream = innermost(grad, type);
  const Tensor a = activated.contiguous();
  const Tensor c = cells.contiguous();
  Tensor grad_gates = empty_output(a.sizes(), type);
  if (a.numel() != 0) {
    const Factor factor(recurrent_matrix(weight, type).t());
    with_type(type, [&](auto zero) {
      using A = decltype(zero);
      const int64_t pixels = scan.height * scan.width;
      const int64_t taken = scan.taps * h;
      const int64_t before = scan.taps - 1 - scan.reach;
      at::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
        Tensor later = at::empty({scan.positions() + scan.taps - 1, taken}, a.options());
        Tensor cell_grad = at::empty({scan.positions(), h}, a.options());
        for (int64_t b = begin; b < end; ++b) {
          // Positions that the step after this one did not have stay 0.
          later.zero_();
          cell_grad.zero_();
          for (int64_t step = scan.steps() - 1; step >= 0; --step) {
            const int64_t first = scan.first(step);
            const int64_t count = scan.last(step) - first;
            const int64_t at = b * pixels + scan.pixel(step, first);
            A* latest = later.mutable_data_ptr<A>() + (first + before) * taken;
            A* to = grad_gates.mutable_data_ptr<A>() + at * 4 * h;
            const int64_t with_previous = std::max<int64_t>(0, scan.with_previous(step));
            kernels<LstmKernels>().step_grad(
                {count,
                 h,
                 scan.stride(),
                 scan.taps,
                 scan.reach,
                 dtype_code(type),
                 upstream.const_data_ptr<A>() + at * h,
                 latest,
                 a.const_data_ptr<A>() + at * 4 * h,
                 c.const_data_ptr<A>() + at * h,
                 with_previous > 0 ? c.const_data_ptr<A>() + (at - scan.back()) * h : nullptr,
                 with_previous,
                 cell_grad.mutable_data_ptr<A>() + first * h,
                 to});
            if (step > 0) {
              factor.multiply(latest, taken, to, scan.stride() * 4 * h, count);
            }
          }
        }
      });
    });
  }
  Tensor grad_weight = at::empty({0}, weight.options());
  if (mask[1]) {
    const Tensor states = taken_states(scan, innermost(out, type));
    grad_weight = weight_gradient(grad_gates.flatten(1, 2), states)
                      .view({4 * h, scan.taps, h})
                      .permute({0, 2, 1})
                      .contiguous()
                      .to(weight.scalar_type());
  }
  return {
      mask[0] ? image_of(grad_gates).to(gates.scalar_type()) : at::empty({0}, gates.options()),
      grad_weight};
}

template <bool Diagonal>
std::tuple<Tensor, Tensor, Tensor> lstm(const Tensor& gates, const Tensor& weight) {
  return forward(Diagonal, gates, weight);
}

template <bool Diagonal>
std::tuple<Tensor, Tensor> lstm_backward(
    const Tensor& grad,
    const Tensor& out,
    const Tensor& activated,
    const Tensor& cells,
    const Tensor& gates,
    const Tensor& weight,
    std::array<bool, 2> mask) {
  return backward(Diagonal, grad, out, activated, cells, gates, weight, mask);
}

} // namespace
} // namespace dgm_fast

TORCH_LIBRARY_IMPL(dgm_fast, CPU, m) {
  m.impl("row_lstm", &dgm_fast::lstm<false>);
  m.impl("row_lstm_backward", &dgm_fast::lstm_backward<false>);
  m.impl("diagonal_lstm", &dgm_fast::lstm<true>);
  m.impl("diagonal_lstm_backward", &dgm_fast::lstm_backward<true>);
}
