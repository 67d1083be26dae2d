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
  int64_t centre; // its index in the kernel
  std::vector<int64_t> index; // in the kernel
  std::vector<int64_t> rows, columns; // from the output pixel, rows <= 0
  // How far taps reach beyond the pixel: above, and to both sides.
  int64_t top = 0, left = 0, right = 0;

  explicit LiveGeometry(const MaskedConvArgs& args)
      : centre(args.kernel_rows * args.kernel_columns / 2) {
    const int64_t last = args.mask.centre_dead() ? centre - 1 : centre;
    for (int64_t tap = 0; tap <= last; ++tap) {
      const int64_t row =
          (tap / args.kernel_columns - args.kernel_rows / 2) * args.dilation;
      const int64_t column =
          (tap % args.kernel_columns - args.kernel_columns / 2) * args.dilation;
      if (-row >= args.height || std::abs(column) >= args.width) {
        continue;
      }
      index.push_back(tap);
      rows.push_back(row);
      columns.push_back(column);
      top = std::max(top, -row);
      left = std::max(left, -column);
      right = std::max(right, column);
    }
  }

  int64_t taps() const {
    return static_cast<int64_t>(index.size());
  }
  int64_t sides() const {
    return left + right;
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
        (args.width + live.sides()) * std::max(args.in_channels, args.out_channels);
    const int64_t fitting = kEntries / row_entries - live.top;
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
