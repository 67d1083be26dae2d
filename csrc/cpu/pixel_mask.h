// Which entries of a masked convolution's weight are live.
#pragma once

#include <cstdint>

namespace dgm_fast {

enum class ChannelOrder : int32_t { Interleaved, Contiguous };

// Taps before the centre in raster order are live, taps after it dead; at the centre an output channel sees input
// channels of earlier data channels (type A) or of those and its own (type B).
struct PixelMask {
  bool includes_own; // type B
  int64_t data_channels;
  ChannelOrder order;

  int64_t group(int64_t channel, int64_t channels) const {
    return order == ChannelOrder::Interleaved ? channel % data_channels
                                              : channel * data_channels / channels;
  }

  bool centre(int64_t out, int64_t out_channels, int64_t in, int64_t in_channels) const {
    const int64_t seen = group(in, in_channels);
    const int64_t own = group(out, out_channels);
    return includes_own ? seen <= own : seen < own;
  }

  // No pair of channels is live at the centre.
  bool centre_dead() const {
    return !includes_own && data_channels == 1;
  }
};

} // namespace dgm_fast
