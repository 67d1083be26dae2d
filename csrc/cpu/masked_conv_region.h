// Copies of images for masked convolutions.
#pragma once

#include "masked_conv_tiles.h"
#include "pixel_table.h"
#include "scratch.h"
#include "transpose.h"

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

// Rows of an image with zeros around them, [block of channels][row][column][kBlock]: `before` pixels of zeros, then rows
// that are `pitch` pixels apart, so that those between two rows are the border of both. The border stays zero from one
// share of rows to the next; rows outside of the image are cleared.
template <typename A>
class Region {
 public:
  Region(int64_t channels, int64_t rows, int64_t width, int64_t before, int64_t pitch)
      : channels_(channels),
        width_(width),
        before_(before),
        row_stride_(pitch * kBlock<A>),
        plane_((before + rows * pitch) * kBlock<A>),
        // A pixel more, so that the last ones may be read in pairs.
        memory_(Scratch<A>::zeros(num_blocks(channels, kBlock<A>) * plane_ + kBlock<A>)) {}

  int64_t row_stride() const {
    return row_stride_;
  }
  int64_t plane() const {
    return plane_;
  }
  int64_t blocks() const {
    return num_blocks(channels_, kBlock<A>);
  }
  // Pixels of a block with the border, those before the first row, and those that the last load wrote.
  int64_t pixels() const {
    return plane_ / kBlock<A>;
  }
  int64_t before() const {
    return before_;
  }
  int64_t pitch() const {
    return row_stride_ / kBlock<A>;
  }
  int64_t loaded_rows() const {
    return loaded_rows_;
  }
  int64_t loaded_pixels() const {
    return before_ + loaded_rows_ * pitch();
  }
  const A* block(int64_t index) const {
    return memory_.data() + index * plane_;
  }

  // The first pixel of the image's column 0 in row `row` of the region, block 0.
  const A* at(int64_t row) const {
    return memory_.data() + row * row_stride_ + before_ * kBlock<A>;
  }

  // Rows [begin, end) of image `n`, whose rows are [0, height).
  void load(const ImageView& image, int64_t n, int64_t begin, int64_t end, int64_t height) {
    loaded_rows_ = end - begin;
    const int64_t first = std::max<int64_t>(begin, 0), last = std::min(end, height);
    const A* source = static_cast<const A*>(image.data) + n * image.batch_stride;
    for (int64_t c = 0; c < channels_; c += kBlock<A>) {
      A* plane = memory_.data() + c / kBlock<A> * plane_ + before_ * kBlock<A>;
      const int64_t count = std::min<int64_t>(kBlock<A>, channels_ - c);
      clear(plane, 0, std::min(first, end) - begin);
      clear(plane, std::max(last, begin) - begin, end - begin);
      const A* from = source + c * image.channel_stride;
      for (int64_t row = first; row < last; ++row) {
        load_row(image, from + row * image.row_stride, plane + (row - begin) * row_stride_, count);
      }
      // What pairs of pixels may read past the rows must be finite: rows of another share may lie there.
      std::fill_n(plane + (end - begin) * row_stride_, kBlock<A>, A(0));
    }
  }

 private:
  void clear(A* plane, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      std::fill_n(plane + row * row_stride_, width_ * kBlock<A>, A(0));
    }
  }

  void load_row(const ImageView& image, const A* from, A* to, int64_t count) const {
    constexpr int lanes = kLanes<A>;
    if (image.channel_stride == 1) {
      for (int64_t column = 0; column < width_; ++column) {
        const A* pixel = from + column * image.column_stride;
        A* target = to + column * kBlock<A>;
        if (count == kBlock<A>) {
          Vec<A>::loadu(pixel).store(target);
          Vec<A>::loadu(pixel + lanes).store(target + lanes);
        } else {
          std::copy_n(pixel, count, target);
        }
      }
    } else if (image.column_stride == 1) {
      transpose(from, image.channel_stride, to, kBlock<A>, count, width_);
    } else {
      for (int64_t column = 0; column < width_; ++column) {
        for (int64_t c = 0; c < count; ++c) {
          to[column * kBlock<A> + c] = from[c * image.channel_stride + column * image.column_stride];
        }
      }
    }
  }

  int64_t channels_, width_, before_, row_stride_, plane_;
  int64_t loaded_rows_ = 0;
  Scratch<A> memory_;
};

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
