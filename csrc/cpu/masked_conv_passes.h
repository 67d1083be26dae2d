// The passes of a masked convolution over a batch, for the units that do its arithmetic: Convolution takes rows of a
// region to rows of an image, Sums adds up the weight's gradient.
//
// A share of rows at a time is copied to blocks of channels with zeros around it, so that taps need no test for the border
// and any memory format is read the same way; the copy stays in the second-level cache.
#pragma once

#include "masked_conv_rows.h"

#include <optional>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

template <template <typename> class Convolution, typename A>
void conv_forward(const MaskedConvArgs& args) {
  const LiveGeometry live(args);
  const Shares shares(args, live);
  const ConvPass pass{args, live, true};
  const typename Convolution<A>::Weights weight(pass);
  const auto bias = Scratch<A>::zeros(num_blocks(args.out_channels, kBlock<A>) * kBlock<A>);
  if (args.bias != nullptr) {
    std::copy_n(static_cast<const A*>(args.bias), args.out_channels, bias.data());
  }
  at::parallel_for(0, shares.count(), 1, [&](int64_t begin, int64_t end) {
    Region<A> region(
        args.in_channels, shares.rows() + live.reach(), args.width, pass.before(), live.pitch(args.width));
    Convolution<A> convolution(pass, region, weight, bias.data());
    for (int64_t i = begin; i < end; ++i) {
      const auto share = shares[i];
      region.load(
          args.x, share.image, share.begin - pass.above(), share.end + pass.below(), args.height);
      convolution.run(region, pass.above(), args.out, share.image, share.begin, share.end);
    }
  });
}

// Numbers of a part's sums: those of the weight's gradient, then those of the bias's.
template <template <typename> class Sums, typename A>
int64_t part_size(const MaskedConvArgs& args) {
  return Sums<A>::size(args, LiveGeometry(args)) + num_blocks(args.out_channels, kBlock<A>) * kBlock<A>;
}

template <typename A>
void collect_bias(const MaskedConvGradArgs& args, int64_t first, int64_t part_stride) {
  const auto* sums = static_cast<const A*>(args.sums) + first;
  for (int64_t o = 0; o < args.in.out_channels; ++o) {
    double sum = 0;
    for (int64_t part = 0; part < args.parts; ++part) {
      sum += sums[part * part_stride + o];
    }
    static_cast<A*>(args.grad_bias)[o] = static_cast<A>(sum);
  }
}

template <template <typename> class Convolution, template <typename> class Sums, typename A>
void conv_backward(const MaskedConvGradArgs& args) {
  const auto& in = args.in;
  const LiveGeometry live(in);
  const Shares shares(in, live);
  const ConvPass pass{in, live, false};
  const bool with_x = args.grad_x.data != nullptr;
  const bool with_weight = args.grad_weight != nullptr;
  const bool with_bias = args.grad_bias != nullptr;
  std::optional<typename Convolution<A>::Weights> weight;
  if (with_x) {
    weight.emplace(pass);
  }
  const auto no_bias = Scratch<A>::zeros(num_blocks(in.in_channels, kBlock<A>) * kBlock<A>);
  const int64_t bias_first = Sums<A>::size(in, live), total = part_size<Sums, A>(in);
  const int64_t parts = args.sums == nullptr ? shares.count() : args.parts;
  const int64_t pitch = live.pitch(in.width), most_rows = shares.rows() + live.reach();
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    Region<A> x(with_weight ? in.in_channels : 0, most_rows, in.width, live.left, pitch);
    Region<A> grad(in.out_channels, most_rows, in.width, pass.before(), pitch);
    std::optional<Convolution<A>> convolution;
    if (with_x) {
      convolution.emplace(pass, grad, *weight, no_bias.data());
    }
    std::optional<Sums<A>> sums;
    if (with_weight) {
      sums.emplace(in, live);
    }
    // Rows of the gradient that only x's sees.
    const int64_t above = with_x ? pass.above() : 0, below = with_x ? pass.below() : 0;
    for (int64_t part = begin; part < end; ++part) {
      A* to = args.sums == nullptr ? nullptr : static_cast<A*>(args.sums) + part * total;
      if (with_weight) {
        sums->start(to);
      }
      BiasSums<A> bias(with_bias ? in.out_channels : 0);
      // In proportion, so that no part stays empty while others hold several shares.
      const int64_t last = shares.count() * (part + 1) / parts;
      for (int64_t i = shares.count() * part / parts; i < last; ++i) {
        const auto share = shares[i];
        const int64_t rows = share.end - share.begin;
        grad.load(args.grad, share.image, share.begin - above, share.end + below, in.height);
        if (with_x) {
          convolution->run(grad, above, args.grad_x, share.image, share.begin, share.end);
        }
        if (with_weight) {
          x.load(in.x, share.image, share.begin - live.top, share.end + live.bottom, in.height);
          sums->add(x, grad, above, rows);
        }
        if (with_bias) {
          bias.add(grad, above, rows, in.width);
        }
      }
      if (with_bias) {
        bias.store(to + bias_first);
      }
    }
  });
  if (with_weight) {
    Sums<A>::collect(args, live, total);
  }
  if (with_bias) {
    collect_bias<A>(args, bias_first, total);
  }
}

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
