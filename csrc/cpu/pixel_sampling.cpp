// Cached sampling of causal pixel networks: every layer keeps its activations and computes what is new.
//
// Activations of a position lie together, image by image, channels contiguous: a convolution at a position is a product
// of a few rows with the packed weights of its live taps, and what depends on rows above alone is one product for
// all positions of a row. A thread draws a share of the batch from the first pixel to the last, without waiting for
// others; buffers keep the rows that are still read.

#include "dispatch.h"
#include "pixel_draw.h"
#include "pixel_elements.h"
#include "pixel_plan.h"
#include "pixel_sampling_table.h"

#include <atomic>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {
namespace {

// Images that a thread draws side by side, at most: their activations share the caches with the weights.
constexpr int64_t kMaxImages = 32;

template <typename A>
class Sampler {
 public:
  Sampler(const PixelSampleArgs& args, const Plan<A>& plan, int64_t first, int64_t images)
      : args_(args),
        plan_(plan),
        first_(first),
        images_(images),
        padded_(divide_up(images, kLanes<A>) * kLanes<A>),
        params_(plan.buffers[args.output].channels * padded_),
        noise_((1 + args.draw.colors) * padded_),
        drawn_(args.draw.colors * padded_),
        given_(args.draw.colors * padded_),
        values_(args.draw.colors * padded_),
        mixture_(args.draw) {
    int64_t size = 0;
    for (const BufferPlan& buffer : plan.buffers) {
      start_.push_back(size);
      // A cache line between buffers.
      size += divide_up(buffer.rows * buffer.row_size(images), 16) * 16 + 16;
    }
    memory_.assign(size, A(0));
    int64_t sources = 1;
    for (const auto* ops : {&plan.rows, &plan.pixels}) {
      for (const auto& op : *ops) {
        for (const auto& product : op.products) {
          sources = std::max<int64_t>(sources, product.sources.size());
        }
      }
    }
    sources_.resize(sources);
    std::fill_n(params_.data(), plan.buffers[args.output].channels * padded_, A(0));
    std::fill_n(noise_.data(), (1 + args.draw.colors) * padded_, A(0.5));
    std::fill_n(given_.data(), args.draw.colors * padded_, A(0));
    std::fill_n(values_.data(), args.draw.colors * padded_, A(0));
  }

  void run_row(int64_t y) {
    y_ = y;
    start_image_row();
    make_ready(plan_.rows, early_);
    make_ready(plan_.pixels, late_);
    for (size_t i = 0; i < early_.size();) {
      if (!early_[i].op->reversed) {
        run_at_row(early_[i++]);
        continue;
      }
      size_t end = i;
      while (end < early_.size() && early_[end].op->reversed) {
        ++end;
      }
      for (int64_t x = args_.width - 1; x >= 0; --x) {
        for (size_t k = i; k < end; ++k) {
          run_at_pixel(early_[k], x, kAllColors);
        }
      }
      i = end;
    }
    const int64_t steps = args_.draw.steps();
    for (int64_t x = 0; x < args_.width; ++x) {
      for (int64_t step = 0; step < steps; ++step) {
        for (const Ready& ready : late_) {
          run_at_pixel(ready, x, steps == 1 ? kAllColors : step);
        }
        draw(x, step);
      }
    }
  }

 private:
  static constexpr int64_t kAllColors = -1;

  // A buffer at a row, column 0.
  struct Place {
    A* data;
    int64_t step; // from column to column
    const BufferPlan* buffer;
  };

  struct ReadySource {
    const A* data; // at column 0
    int64_t step;
    int64_t stride, depth;
  };

  // An op at the row that is drawn.
  struct Ready {
    const OpPlan<A>* op;
    int64_t stride; // of the output
    Place out;
    std::vector<Place> inputs; // of element-wise ops; of Lstm gates, cell and the cell before
    const ProductPlan<A>* products; // of the row's parity
    std::vector<std::vector<ReadySource>> sources; // of each product
  };

  Place place(int64_t buffer, int64_t row, int64_t column) {
    const BufferPlan& plan = plan_.buffers[buffer];
    return {
        memory_.data() + start_[buffer] + plan.offset(row, column, images_),
        plan.step(images_),
        &plan};
  }

  int64_t newest(int64_t buffer) const {
    return y_ / plan_.buffers[buffer].stride;
  }

  // The ops that run at this row, and where they read and write.
  void make_ready(const std::vector<OpPlan<A>>& ops, std::vector<Ready>& to) {
    to.clear();
    for (const auto& op : ops) {
      const int64_t stride = plan_.buffers[op.output].stride;
      if (y_ % stride != 0) {
        continue;
      }
      const int64_t row = y_ / stride;
      Ready ready{&op, stride, place(op.output, row, 0), {}, nullptr, {}};
      if (op.kind == PixelKind::Convolution) {
        const int64_t count = op.parities * op.steps;
        ready.products = op.products.data() + row % op.parities * count;
        for (int64_t p = 0; p < count; ++p) {
          auto& sources = ready.sources.emplace_back();
          for (const SourcePlan& from : ready.products[p].sources) {
            const Place at = place(from.buffer, newest(from.buffer) + from.row, from.column);
            sources.push_back({at.data, at.step, at.buffer->channels, from.depth});
          }
        }
      } else {
        for (const int64_t b : op.inputs) {
          ready.inputs.push_back(place(b, row, 0));
        }
        if (op.kind == PixelKind::Lstm) {
          ready.inputs.push_back(place(op.inputs[1], row + op.tap.row, op.tap.column));
        }
      }
      to.push_back(std::move(ready));
    }
  }

  void start_image_row() {
    const BufferPlan& image = plan_.buffers[0];
    A* row = place(0, y_, 0).data;
    std::fill_n(row, image.columns * images_ * image.channels, A(0));
    // What is known before all comes first.
    for (int64_t i = 0; i < image.columns * images_; ++i) {
      std::fill_n(row + i * image.channels, args_.draw.ones, A(1));
    }
  }

  void run_at_row(const Ready& ready) {
    const OpPlan<A>& op = *ready.op;
    const int64_t columns = ready.out.buffer->columns;
    if (op.kind != PixelKind::Convolution) {
      elements(ready, 0, columns, kAllColors);
    } else if (op.parities == 1 && op.jump == 1) {
      convolve(ready, 0, columns, 0);
    } else {
      for (int64_t j = 0; j < columns; ++j) {
        convolve(ready, j, 1, 0);
      }
    }
  }

  void run_at_pixel(const Ready& ready, int64_t x, int64_t step) {
    int64_t column = x;
    if (ready.stride > 1) {
      if (x % ready.stride != 0) {
        return;
      }
      column = x / ready.stride;
    }
    if (ready.op->kind == PixelKind::Convolution) {
      convolve(ready, column, 1, step == kAllColors ? 0 : step);
    } else {
      elements(ready, column, 1, step);
    }
  }

  // At `columns` columns from `column` on.
  void convolve(const Ready& ready, int64_t column, int64_t columns, int64_t step) {
    const OpPlan<A>& op = *ready.op;
    const bool up = op.parities == 2;
    const int64_t at = (up ? column % 2 : 0) * op.steps + step;
    const ProductPlan<A>& product = ready.products[at];
    if (product.panels.units == 0 || (op.add && product.depth == 0)) {
      return;
    }
    const int64_t base = up ? column / 2 : column * op.jump;
    const auto& sources = ready.sources[at];
    for (size_t s = 0; s < sources.size(); ++s) {
      const ReadySource& from = sources[s];
      sources_[s] = {from.data + base * from.step, from.stride, from.depth};
    }
    const A* bias =
        op.add ? nullptr : op.bias.data() + first_ * op.bias_stride + product.first;
    multiply(
        sources_.data(),
        static_cast<int64_t>(sources.size()),
        product.depth,
        columns * images_,
        product.weight.data(),
        product.panels,
        ProductOutput<A>{
            ready.out.data + column * ready.out.step + product.first,
            ready.out.buffer->channels,
            bias,
            op.bias_stride,
            images_});
  }

  // Of all colours, or the channels of one.
  void elements(const Ready& ready, int64_t column, int64_t columns, int64_t step) {
    const int64_t rows = columns * images_;
    if (step == kAllColors) {
      for (int64_t g = 0; g < args_.draw.steps(); ++g) {
        elements_of(ready, column, rows, g);
      }
    } else {
      elements_of(ready, column, rows, step);
    }
  }

  // Where the channels of a colour begin.
  static A* channels_of(const Place& place, int64_t column, int64_t color) {
    return place.data + column * place.step + place.buffer->first[color];
  }

  void elements_of(const Ready& ready, int64_t column, int64_t rows, int64_t color) {
    const OpPlan<A>& op = *ready.op;
    const int64_t count = ready.out.buffer->first[color + 1] - ready.out.buffer->first[color];
    if (count == 0) {
      return;
    }
    const int64_t channels = ready.out.buffer->channels;
    const int64_t in_channels = ready.inputs[0].buffer->channels;
    A* to = channels_of(ready.out, column, color);
    const A* from = channels_of(ready.inputs[0], column, color);
    switch (op.kind) {
      case PixelKind::TanhGate:
      case PixelKind::LinearGate:
        for (int64_t r = 0; r < rows; ++r) {
          gate_elements(op.kind, from + r * in_channels, count, to + r * channels);
        }
        return;
      case PixelKind::ConcatElu:
        for (int64_t r = 0; r < rows; ++r) {
          map_elements(op.kind, from + r * in_channels, count / 2, to + r * channels);
        }
        return;
      case PixelKind::Lstm: {
        A* cell = channels_of(ready.inputs[1], column, color);
        const A* before = channels_of(ready.inputs[2], column, color);
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t offset = r * channels;
          lstm_elements(from + r * in_channels, before + offset, count, cell + offset, to + offset);
        }
        return;
      }
      case PixelKind::Concatenate:
        for (const Place& input : ready.inputs) {
          const BufferPlan& part = *input.buffer;
          const int64_t own = part.first[color + 1] - part.first[color];
          const A* data = channels_of(input, column, color);
          for (int64_t r = 0; r < rows; ++r) {
            std::copy_n(data + r * part.channels, own, to + r * channels);
          }
          to += own;
        }
        return;
      default:
        // Whole positions are one run.
        const bool whole = count == channels;
        const int64_t runs = whole ? 1 : rows;
        const int64_t size = whole ? rows * count : count;
        for (int64_t r = 0; r < runs; ++r) {
          map_elements(op.kind, from + r * channels, size, to + r * channels);
          for (size_t n = 1; n < ready.inputs.size(); ++n) {
            const A* term = channels_of(ready.inputs[n], column, color) + r * channels;
            add_elements(term, size, to + r * channels);
          }
        }
    }
  }

  // One colour of the pixel, or all colours of a mixture.
  void draw(int64_t x, int64_t step) {
    const PixelDraw& draw = args_.draw;
    const int64_t plane = args_.height * args_.width;
    const int64_t pixel = y_ * args_.width + x;
    const bool mixture = draw.kind == PixelDrawKind::LogisticMixture;
    const int64_t first = mixture ? 0 : step;
    const int64_t colors = mixture ? draw.colors : 1;
    load_noise(pixel, plane, step, mixture ? draw.noises() : 1);
    load_params(x, step);
    const bool some_given = mixture && load_given(pixel, plane);
    for (int64_t r = 0; r < padded_; r += kLanes<A>) {
      const A* uniforms = noise_.data() + r;
      A* params = params_.data() + r;
      A* drawn = drawn_.data() + r;
      if (mixture) {
        const GivenColors<A> known{given_.data() + r, values_.data() + r};
        mixture_.run(params, uniforms, padded_, some_given ? &known : nullptr, drawn);
      } else if (draw.kind == PixelDrawKind::Bernoulli) {
        pixel_bernoulli(params, Vec<A>::loadu(uniforms)).store(drawn);
      } else {
        class_draw(params, padded_, draw.levels, Vec<A>::loadu(uniforms)).store(drawn);
      }
    }
    for (int64_t c = 0; c < colors; ++c) {
      for (int64_t n = 0; n < images_; ++n) {
        const int64_t entry = ((first_ + n) * draw.colors + first + c) * plane + pixel;
        A value = drawn_.data()[c * padded_ + n];
        if (args_.given != nullptr && args_.given[entry]) {
          value = static_cast<const A*>(args_.values)[entry];
        }
        static_cast<A*>(args_.x)[entry] = value;
        encode(x, n, first + c, value);
      }
    }
  }

  // Which colours of a pixel are given in any image, and their values; false where none is.
  bool load_given(int64_t pixel, int64_t plane) {
    if (args_.given == nullptr) {
      return false;
    }
    const int64_t colors = args_.draw.colors;
    bool any = false;
    for (int64_t c = 0; c < colors; ++c) {
      for (int64_t n = 0; n < images_; ++n) {
        const int64_t entry = ((first_ + n) * colors + c) * plane + pixel;
        const bool given = args_.given[entry];
        any = any || given;
        given_.data()[c * padded_ + n] = given ? A(1) : A(0);
        values_.data()[c * padded_ + n] = given ? static_cast<const A*>(args_.values)[entry] : A(0);
      }
    }
    return any;
  }

  void load_noise(int64_t pixel, int64_t plane, int64_t first, int64_t count) {
    const auto* noise = static_cast<const A*>(args_.noise);
    const int64_t noises = args_.draw.noises();
    for (int64_t k = 0; k < count; ++k) {
      for (int64_t n = 0; n < images_; ++n) {
        noise_.data()[k * padded_ + n] = noise[((first_ + n) * noises + first + k) * plane + pixel];
      }
    }
  }

  // Parameters of a draw, parameter by parameter with an image in every lane.
  void load_params(int64_t x, int64_t step) {
    const PixelDraw& draw = args_.draw;
    const BufferPlan& buffer = plan_.buffers[args_.output];
    const A* from = place(args_.output, y_, x).data;
    const int64_t count = draw.kind == PixelDrawKind::Bernoulli ? 1
        : draw.kind == PixelDrawKind::Categorical               ? draw.levels
                                                                : buffer.channels;
    // Channels of a colour are mostly one after the other, in order.
    const int64_t jump = draw.kind == PixelDrawKind::LogisticMixture ? 1 : draw.colors;
    const int64_t place = buffer.place[step];
    if (buffer.place[step + (count - 1) * jump] == place + count - 1) {
      transpose(from + place, buffer.channels, images_, count, params_.data(), padded_);
      return;
    }
    for (int64_t k = 0; k < count; ++k) {
      const A* channel = from + buffer.place[step + k * jump];
      for (int64_t n = 0; n < images_; ++n) {
        params_.data()[k * padded_ + n] = channel[n * buffer.channels];
      }
    }
  }

  // The value as the network sees it.
  void encode(int64_t x, int64_t n, int64_t color, A value) {
    const PixelDraw& draw = args_.draw;
    const BufferPlan& image = plan_.buffers[0];
    A* channels = place(0, y_, x).data + n * image.channels;
    if (!draw.one_hot) {
      channels[image.place[color]] = static_cast<A>(draw.scale) * value + static_cast<A>(draw.shift);
      return;
    }
    channels[image.place[static_cast<int64_t>(value) * draw.colors + color]] = A(1);
  }

  const PixelSampleArgs& args_;
  const Plan<A>& plan_;
  int64_t first_, images_, padded_; // padded to whole vectors
  int64_t y_ = 0;
  std::vector<int64_t> start_; // of every buffer
  std::vector<A> memory_;
  std::vector<Ready> early_, late_;
  std::vector<Source<A>> sources_;
  Scratch<A> params_, noise_, drawn_; // [parameter or colour, image]
  Scratch<A> given_, values_; // of a mixture's colours, [colour, image]
  PixelMixture<A> mixture_;
};

template <typename A>
void sample_images(const PixelSampleArgs& args) {
  const Plan<A> plan(args);
  const int64_t threads = std::max(1, at::get_num_threads());
  // As many shares as threads, or a multiple of that.
  const int64_t shares = std::min(
      args.batch, threads * divide_up(divide_up(args.batch, threads), kMaxImages));
  std::atomic<bool> stopped{false};
  at::parallel_for(0, shares, 1, [&](int64_t begin, int64_t end) {
    for (int64_t share = begin; share < end; ++share) {
      const int64_t first = share * args.batch / shares;
      Sampler<A> sampler(args, plan, first, (share + 1) * args.batch / shares - first);
      for (int64_t y = 0; y < args.height; ++y) {
        if (stopped.load(std::memory_order_relaxed)) {
          return;
        }
        sampler.run_row(y);
        // The first share is the calling thread's.
        if (begin == 0 && args.row_done != nullptr) {
          const int64_t done = ((share - begin) * args.height + y + 1) / (end - begin);
          if (!args.row_done(done)) {
            stopped.store(true, std::memory_order_relaxed);
          }
        }
      }
    }
  });
}

void sample(const PixelSampleArgs& args) {
  with_sum_type(args.dtype, [&](auto t) { sample_images<typename decltype(t)::type>(args); });
}

} // namespace
} // namespace CPU_CAPABILITY

void fill(PixelSamplingKernels& kernels) {
  kernels.sample = sample;
}

} // namespace dgm_fast
