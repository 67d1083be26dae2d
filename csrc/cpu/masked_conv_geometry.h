// Where the live taps of a masked convolution lie, and how its rows are shared out.
#pragma once

#include "pixel_table.h"

#include <algorithm>
#include <cstdlib>
#include <vector>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

// Live taps that meet the image at all, in raster order.
struct LiveGeometry {
  int64_t centre; // of a masked kernel, its index in the kernel
  std::vector<int64_t> index; // in the kernel
  std::vector<int64_t> rows, columns; // from the output pixel
  // How far taps reach beyond the pixel.
  int64_t top = 0, bottom = 0, left = 0, right = 0;

  explicit LiveGeometry(const MaskedConvArgs& args)
      : centre(args.kernel_rows * args.kernel_columns / 2) {
    const int64_t taps = args.kernel_rows * args.kernel_columns;
    const int64_t end = !args.masked ? taps : args.mask.centre_dead() ? centre : centre + 1;
    for (int64_t tap = 0; tap < end; ++tap) {
      const int64_t row = args.first_row + tap / args.kernel_columns * args.dilation;
      const int64_t column = args.first_column + tap % args.kernel_columns * args.dilation;
      if (std::abs(row) >= args.height || std::abs(column) >= args.width) {
        continue;
      }
      index.push_back(tap);
      rows.push_back(row);
      columns.push_back(column);
      top = std::max(top, -row);
      bottom = std::max(bottom, row);
      left = std::max(left, -column);
      right = std::max(right, column);
    }
  }

  int64_t taps() const {
    return static_cast<int64_t>(index.size());
  }
  // Whether this tap joins all pairs of channels.
  bool whole(const MaskedConvArgs& args, int64_t tap) const {
    return !args.masked || index[tap] != centre ||
        (args.mask.includes_own && args.mask.data_channels == 1);
  }
  // Whether it joins this one.
  bool on(const MaskedConvArgs& args, int64_t tap, int64_t out, int64_t in) const {
    return whole(args, tap) ||
        args.mask.centre(out, args.out_channels, in, args.in_channels);
  }
  // Rows that a share of rows sees beyond itself, and pixels from one row of a copy to the next: the border at the
  // right of a row is that at the left of the next.
  int64_t reach() const {
    return top + bottom;
  }
  int64_t pitch(int64_t width) const {
    return width + std::max(left, right);
  }
};

// One pass of a convolution: from x to the output, or from the output's gradient to that of x.
struct ConvPass {
  const MaskedConvArgs& args;
  const LiveGeometry& live;
  bool forward;

  int64_t from_channels() const {
    return forward ? args.in_channels : args.out_channels;
  }
  int64_t to_channels() const {
    return forward ? args.out_channels : args.in_channels;
  }
  // Terms of a sum.
  int64_t terms() const {
    return live.taps() * from_channels();
  }
  // Rows above and below a share that it reads, and pixels to the left.
  int64_t above() const {
    return forward ? live.top : live.bottom;
  }
  int64_t below() const {
    return forward ? live.bottom : live.top;
  }
  int64_t before() const {
    return forward ? live.left : live.right;
  }
  // From a pixel of the result to what it reads by a tap, in a copy of this pitch.
  int64_t pixel_offset(int64_t tap, int64_t pitch) const {
    const int64_t offset = live.rows[tap] * pitch + live.columns[tap];
    return forward ? offset : -offset;
  }
};

// The rows of all images in shares whose copies fit into the second-level cache, several of them even for one image.
// The shares depend on the sizes alone, and so do the sums over them.
class Shares {
 public:
  struct Share {
    int64_t image, begin, end;
  };

  Shares(const MaskedConvArgs& args, const LiveGeometry& live) : height_(args.height) {
    constexpr int64_t kEntries = 96 * 1024;
    constexpr int64_t kFewest = 32;
    constexpr int64_t kLeastRows = 4;
    const int64_t row_entries =
        live.pitch(args.width) * std::max(args.in_channels, args.out_channels);
    const int64_t fitting = kEntries / row_entries - live.reach();
    const int64_t spread = (args.batch * height_ + kFewest - 1) / kFewest;
    const int64_t most = std::max(kLeastRows, std::min(fitting, spread));
    per_image_ = (height_ + most - 1) / most;
    rows_ = (height_ + per_image_ - 1) / per_image_;
    // Rounding up may leave nothing for the last ones.
    per_image_ = (height_ + rows_ - 1) / rows_;
    count_ = args.batch * per_image_;
  }

  int64_t count() const {
    return count_;
  }
  int64_t rows() const {
    return rows_;
  }

  Share operator[](int64_t i) const {
    const int64_t begin = i % per_image_ * rows_;
    return {i / per_image_, begin, std::min(height_, begin + rows_)};
  }

 private:
  int64_t height_, per_image_, rows_, count_;
};

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
