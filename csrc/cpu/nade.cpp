// NADE of binary data.
//
// Hidden units are in lanes, a few vectors of them in registers while a block of dimensions passes. Within a block
// exp(-a) of binary data is updated by a factor exp(-W_d) where x_d is 1, in place of an exponential a step; every
// block starts anew from the pre-activations, which are summed beside it. Where weights or pre-activations could
// leave the range of such a product, and for data that are not binary, each step takes the exponential of its own
// sum. A block's decision depends on its numbers alone, so that results do not depend on threads.

#include "nade_state.h"
#include "rows.h"
#include "nade_table.h"

#include <atomic>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {
namespace {

// Dimensions between two exact starts: roundings of factors stay below that of one exponential.
constexpr int64_t kBlock = 16;
// Rows whose gradients are summed on their own, and whose states are in the second-level cache together.
constexpr int64_t kRowTile = 32;
#if defined(CPU_CAPABILITY_AVX512)
// Vectors of hidden units that are in registers together, and rows that share what is loaded for them.
constexpr int kWide = 8;
constexpr int kNarrow = 4;
constexpr int kShared = 4;
#else
constexpr int kWide = 4;
constexpr int kNarrow = 2;
constexpr int kShared = 2;
#endif

// |a| up to which exp(-a), its factors and 1 + exp(-a) are normal numbers.
template <typename A>
inline constexpr A kRange = std::is_same_v<A, double> ? A(600) : A(80);

inline int64_t num_blocks(int64_t size) {
  return divide_up(size, kBlock);
}

// The parameters of some dimensions and hidden units: rows of whole vectors of hidden units, padded with zeros.
template <typename A>
struct UnitTables {
  static constexpr int lanes = kLanes<A>;
  int64_t width; // hidden units, padding included
  Scratch<A> weight, factor, output; // W, exp(-W) and V: [dims, width]
  Scratch<A> fall, rise; // how far a can move within a block: [blocks, width]

  UnitTables(int64_t dims, int64_t width_in)
      : width(width_in),
        weight(dims * width),
        factor(dims * width),
        output(dims * width),
        fall(num_blocks(dims) * width),
        rise(num_blocks(dims) * width) {}

  // Dimensions [first, last), a block's beginning and end, and hidden units from h0 on.
  void fill(const NadeArgs& args, int64_t first, int64_t last, int64_t h0) {
    const int64_t units = std::min(width, args.hidden - h0);
    const auto* from_weight = static_cast<const A*>(args.weight) + h0 * args.size + first;
    const auto* from_output = static_cast<const A*>(args.output) + first * args.hidden + h0;
    const int64_t dims = last - first;
    transpose(from_weight, args.size, units, dims, weight.data(), width);
    for (int64_t d = 0; d < dims; ++d) {
      A* row = output.data() + d * width;
      std::copy_n(from_output + d * args.hidden, units, row);
      if (units < width) {
        std::fill(row + units, row + width, A(0));
        std::fill(weight.data() + d * width + units, weight.data() + (d + 1) * width, A(0));
      }
    }
    for (int64_t block = 0; block < num_blocks(dims); ++block) {
      for (int64_t h = 0; h < width; h += lanes) {
        fill_factors(block * kBlock, std::min(dims, (block + 1) * kBlock), h, block * width + h);
      }
    }
  }

 private:
  void fill_factors(int64_t first, int64_t last, int64_t h, int64_t bound) {
    Vec<A> down(0);
    Vec<A> up(0);
    Vec<A> largest(0);
    for (int64_t d = first; d < last; ++d) {
      const Vec<A> w = Vec<A>::loadu(weight.data() + d * width + h);
      fast_exp(w.neg()).store(factor.data() + d * width + h);
      down = down + at_most(w, A(0));
      up = up + at_least(w, A(0));
      largest = at::vec::maximum(largest, w.abs());
    }
    // A factor out of range spoils the block, however its sum turns out.
    const auto kept = less_equal(largest, Vec<A>(kRange<A>));
    const Vec<A> never(std::numeric_limits<A>::infinity());
    select(kept, down, never.neg()).store(fall.data() + bound);
    select(kept, up, never).store(rise.data() + bound);
  }
};

// Lanes outside of the mask keep `v`.
template <typename A>
inline Vec<A> multiply_where(const Mask<A>& mask, const Vec<A>& v, const Vec<A>& factor) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<A, float>) {
    return _mm512_mask_mul_ps(v, static_cast<__mmask16>(mask.bits), v, factor);
  }
#endif
  return select(mask, v * factor, v);
}

template <typename A>
inline Vec<A> add_where(const Mask<A>& mask, const Vec<A>& v, const Vec<A>& term) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<A, float>) {
    return _mm512_mask_add_ps(v, static_cast<__mmask16>(mask.bits), v, term);
  }
#endif
  return select(mask, v + term, v);
}

// exp(-a) by factors, and the sum of the block's weights.
template <typename A>
struct FactoredState {
  Vec<A> power, step;

  void start(const CompensatedSum<A>& a) {
    power = fast_exp(a.value().neg());
    step = Vec<A>(0);
  }

  Vec<A> unit() const {
    return reciprocal(Vec<A>(1) + power);
  }

  void advance(const Mask<A>& set, const Vec<A>&, const A* weight, const A* factor) {
    power = multiply_where(set, power, Vec<A>::loadu(factor));
    step = add_where(set, step, Vec<A>::loadu(weight));
  }

  CompensatedSum<A> finish(CompensatedSum<A> a) const {
    a.add(step);
    return a;
  }
};

template <typename A>
struct SummedState {
  CompensatedSum<A> a;

  void start(const CompensatedSum<A>& from) {
    a = from;
  }

  Vec<A> unit() const {
    return hidden_unit(a.value());
  }

  void advance(const Mask<A>&, const Vec<A>& x, const A* weight, const A*) {
    a.add_product(x, Vec<A>::loadu(weight));
  }

  CompensatedSum<A> finish(const CompensatedSum<A>&) const {
    return a;
  }
};

// Whether G vectors may take factors in a block.
template <int G, typename A>
inline bool in_range(const CompensatedSum<A>* a, const A* fall, const A* rise) {
  const Vec<A> bound(kRange<A>);
  auto inside = less_equal(Vec<A>(0), bound);
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g) {
    const Vec<A> lowest = a[g].sum + Vec<A>::loadu(fall + g * kLanes<A>);
    const Vec<A> highest = a[g].sum + Vec<A>::loadu(rise + g * kLanes<A>);
    inside = inside & less_equal(bound.neg(), lowest) & less_equal(highest, bound);
  }
  return inside.all();
}

// One row, G vectors of hidden units, `count` dimensions: visit(d, units) and on to the next dimension.
template <int G, typename State, typename A, typename F>
inline void sweep(
    CompensatedSum<A>* a,
    const A* x,
    const A* weight,
    const A* factor,
    int64_t stride,
    int64_t count,
    F&& visit) {
  State state[G];
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g) {
    state[g].start(a[g]);
  }
  for (int64_t d = 0; d < count; ++d) {
    Vec<A> unit[G];
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) {
      unit[g] = state[g].unit();
    }
    visit(d, unit);
    const Vec<A> value(x[d]);
    const auto set = less(Vec<A>(0), value);
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) {
      const int64_t at = d * stride + g * kLanes<A>;
      state[g].advance(set, value, weight + at, factor + at);
    }
  }
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g) {
    a[g] = state[g].finish(a[g]);
  }
}

// visit(tag of the number of vectors, first vector) over all vectors, as many at once as fit.
template <typename F>
inline void each_group(int64_t vectors, F&& visit) {
  int64_t v = 0;
  if constexpr (kWide == 8) {
    for (; v + 8 <= vectors; v += 8) {
      visit(std::integral_constant<int, 8>{}, v);
    }
  }
  for (; v + 4 <= vectors; v += 4) {
    visit(std::integral_constant<int, 4>{}, v);
  }
  for (; v + 2 <= vectors; v += 2) {
    visit(std::integral_constant<int, 2>{}, v);
  }
  if (v < vectors) {
    visit(std::integral_constant<int, 1>{}, v);
  }
}

template <typename A>
inline bool is_binary(const A* x, int64_t size) {
  int other = 0;
  for (int64_t i = 0; i < size; ++i) {
    other |= x[i] * x[i] != x[i];
  }
  return other == 0;
}

// What a part of the hidden units adds to the logits of a tile of rows.
template <typename A>
class LogitPart {
 public:
  static constexpr int lanes = kLanes<A>;

  LogitPart(const NadeArgs& args, int64_t width, int64_t tile)
      : args_(args),
        tables_(kBlock, width),
        sum_(tile * width),
        error_(tile * width),
        partial_(kBlock * lanes) {}

  // x and logits: [count, size]; hidden units from h on
  void run(int64_t h, const A* x, const bool* binary, A* logits, int64_t count) {
    const int64_t width = tables_.width;
    for (int64_t k = 0; k < width; ++k) {
      const auto* bias = static_cast<const A*>(args_.bias);
      sum_.data()[k] = h + k < args_.hidden ? finite_bias(bias[h + k]) : A(0);
    }
    for (int64_t r = 1; r < count; ++r) {
      std::copy_n(sum_.data(), width, sum_.data() + r * width);
    }
    std::fill_n(error_.data(), count * width, A(0));
    for (int64_t first = 0; first < args_.size; first += kBlock) {
      const int64_t last = std::min(args_.size, first + kBlock);
      tables_.fill(args_, first, last, h);
      for (int64_t r = 0; r < count; ++r) {
        const int64_t at = r * args_.size + first;
        each_group(width / lanes, [&](auto group, int64_t vector) {
          add_group<group.value>(x + at, binary[r], r, last - first, vector);
        });
        sum_lanes_of(partial_.data(), last - first, logits + at);
      }
    }
  }

 private:
  template <int G>
  void add_group(const A* x, bool binary, int64_t r, int64_t dims, int64_t vector) {
    const int64_t width = tables_.width;
    const int64_t h = vector * lanes;
    const A* output = tables_.output.data() + h;
    A* partial = partial_.data();
    const bool fresh = vector == 0;
    const auto dot = [&](int64_t d, const Vec<A>* unit) {
      Vec<A> even = fresh ? Vec<A>(0) : Vec<A>::loadu(partial + d * lanes);
      Vec<A> odd(0);
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) {
        Vec<A>& to = g % 2 == 0 ? even : odd;
        to = at::vec::fmadd(unit[g], Vec<A>::loadu(output + d * width + g * lanes), to);
      }
      (even + odd).store(partial + d * lanes);
    };
    CompensatedSum<A> a[G];
    A* sum = sum_.data() + r * width + h;
    A* error = error_.data() + r * width + h;
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) {
      a[g] = CompensatedSum<A>::load(sum + g * lanes, error + g * lanes);
    }
    const A* weight = tables_.weight.data() + h;
    const A* factor = tables_.factor.data() + h;
    if (binary && in_range<G>(a, tables_.fall.data() + h, tables_.rise.data() + h)) {
      sweep<G, FactoredState<A>>(a, x, weight, factor, width, dims, dot);
    } else {
      sweep<G, SummedState<A>>(a, x, weight, factor, width, dims, dot);
    }
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) {
      a[g].store(sum + g * lanes, error + g * lanes);
    }
  }

  const NadeArgs& args_;
  UnitTables<A> tables_; // of one block
  Scratch<A> sum_, error_; // [rows, width]
  Scratch<A> partial_; // [kBlock, lanes]
};

// How the logits are computed in parallel: by parts of the hidden units, whose tables stay in the first-level cache,
// and by tiles of rows. A function of the sizes alone.
struct Partition {
  int64_t width, parts, tile, tiles;

  Partition(int64_t rows, int64_t hidden, int64_t lanes) {
    constexpr int64_t kUnits = 128;
    constexpr int64_t kMaxTile = 64;
    // Tasks for which tiles are made smaller, down to a quarter.
    constexpr int64_t kTasks = 8;
    width = std::min(kUnits, divide_up(hidden, lanes) * lanes);
    parts = divide_up(hidden, width);
    const int64_t shared = divide_up(rows, divide_up(kTasks, parts));
    tile = std::clamp<int64_t>(shared, kMaxTile / 4, kMaxTile);
    tiles = divide_up(rows, tile);
  }
};

void nade(NadeArgs& args) {
  std::atomic<bool> invalid{false};
  with_sum_type(args.dtype, [&](auto t) {
    using A = typename decltype(t)::type;
    const Partition partition(args.rows, args.hidden, kLanes<A>);
    const auto* x = static_cast<const A*>(args.x);
    const auto* output_bias = static_cast<const A*>(args.output_bias);
    auto* logits = static_cast<A*>(args.logits);
    auto* out = static_cast<A*>(args.out);
    const int64_t size = args.size;
    const int64_t entries = args.rows * size;
    Scratch<bool> binary(args.rows);
    // The first part goes to the logits themselves.
    Scratch<A> others((partition.parts - 1) * entries);
    at::parallel_for(0, args.rows, grain_rows(size), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        binary.data()[r] = is_binary(x + r * size, size);
        if (!binary.data()[r] && !in_unit_interval(x + r * size, size)) {
          invalid.store(true, std::memory_order_relaxed);
        }
      }
    });
    if (invalid.load()) {
      return;
    }
    const int64_t tasks = partition.parts * partition.tiles;
    const int64_t grain = grain_rows(partition.tile * size * partition.width);
    at::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
      LogitPart<A> part(args, partition.width, partition.tile);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t p = task / partition.tiles;
        const int64_t first = task % partition.tiles * partition.tile;
        A* to = p == 0 ? logits : others.data() + (p - 1) * entries;
        part.run(
            p * partition.width,
            x + first * size,
            binary.data() + first,
            to + first * size,
            std::min(partition.tile, args.rows - first));
      }
    });
    at::parallel_for(0, args.rows, grain_rows(size * partition.parts), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        A* row = logits + r * size;
        for (int64_t p = 1; p < partition.parts; ++p) {
          const A* other = others.data() + (p - 1) * entries + r * size;
          for (int64_t d = 0; d < size; ++d) {
            row[d] += other[d];
          }
        }
        for (int64_t d = 0; d < size; ++d) {
          row[d] += output_bias[d];
        }
        out[r] = bernoulli_row(row, x + r * size, size);
      }
    });
  });
  args.invalid = invalid.load();
}

// Gradients with respect to one slice of hidden units, from those of the logits: nothing crosses slices. Rows come in
// tiles. A tile's pre-activations at the start of every block are kept; going back over the blocks, the units of a
// block are computed forwards once more, for a few rows at a time.
template <typename A, int G>
class GradientSlice {
 public:
  static constexpr int lanes = kLanes<A>;
  static constexpr int64_t kWidth = G * lanes;

  explicit GradientSlice(const NadeArgs& args)
      : grad_weight(args.size * kWidth),
        grad_output(args.size * kWidth),
        grad_bias(kWidth),
        args_(args),
        tables_(args.size, kWidth),
        start_(num_blocks(args.size) * kRowTile * 2 * kWidth),
        factored_(num_blocks(args.size) * kRowTile),
        unit_(kBlock * kShared * kWidth),
        grad_a_(kRowTile * kWidth),
        block_weight_(kBlock * kWidth),
        block_output_(kBlock * kWidth) {
    std::fill_n(zeros_, kBlock, A(0));
  }

  // The slice from unit h on.
  void begin(int64_t h) {
    const auto* bias = static_cast<const A*>(args_.bias);
    tables_.fill(args_, 0, args_.size, h);
    for (int64_t k = 0; k < kWidth; ++k) {
      bias_[k] = h + k < args_.hidden ? finite_bias(bias[h + k]) : A(0);
    }
    empty_ = true;
  }

  // x, and g the gradients of the logits: [count, size]
  void add(const A* x, const A* g, const bool* binary, int64_t count) {
    const int64_t size = args_.size;
    mark_starts(x, binary, count);
    std::fill_n(grad_a_.data(), kRowTile * kWidth, A(0));
    for (int64_t block = num_blocks(size) - 1; block >= 0; --block) {
      const int64_t first = block * kBlock;
      const int64_t dims = std::min(kBlock, size - first);
      std::fill_n(block_weight_.data(), dims * kWidth, A(0));
      std::fill_n(block_output_.data(), dims * kWidth, A(0));
      for (int64_t r = 0; r < count; r += kShared) {
        add_rows(block, dims, r, std::min<int64_t>(kShared, count - r), x, g);
      }
      // Sums of a tile, then of tiles: shorter sums round less.
      add_to(grad_weight.data() + first * kWidth, block_weight_.data(), dims);
      add_to(grad_output.data() + first * kWidth, block_output_.data(), dims);
    }
    for (int64_t r = 1; r < count; ++r) {
      for (int64_t i = 0; i < kWidth; ++i) {
        grad_a_.data()[i] += grad_a_.data()[r * kWidth + i];
      }
    }
    add_to(grad_bias.data(), grad_a_.data(), 1);
    empty_ = false;
  }

  // Sums of the tiles so far: zeros without any.
  void finish() {
    if (empty_) {
      std::fill_n(grad_weight.data(), args_.size * kWidth, A(0));
      std::fill_n(grad_output.data(), args_.size * kWidth, A(0));
      std::fill_n(grad_bias.data(), kWidth, A(0));
    }
  }

  Scratch<A> grad_weight, grad_output, grad_bias; // [size, kWidth], [kWidth]

 private:
  void add_to(A* to, const A* from, int64_t rows) const {
    if (empty_) {
      std::copy_n(from, rows * kWidth, to);
      return;
    }
    for (int64_t i = 0; i < rows * kWidth; i += lanes) {
      (Vec<A>::loadu(to + i) + Vec<A>::loadu(from + i)).store(to + i);
    }
  }

  A* start(int64_t block, int64_t r) const {
    return start_.data() + (block * kRowTile + r) * 2 * kWidth;
  }

  void mark_starts(const A* x, const bool* binary, int64_t count) {
    for (int64_t r = 0; r < count; ++r) {
      std::copy_n(bias_, kWidth, start(0, r));
      std::fill_n(start(0, r) + kWidth, kWidth, A(0));
    }
    const int64_t blocks = num_blocks(args_.size);
    for (int64_t block = 0; block < blocks; ++block) {
      for (int64_t r = 0; r < count; r += kShared) {
        step_block(block, x, binary, r, std::min<int64_t>(kShared, count - r), block + 1 < blocks);
      }
    }
  }

  // Of `rows` of at most kShared rows: which take factors, and where the next block starts.
  void step_block(
      int64_t block, const A* x, const bool* binary, int64_t r, int64_t rows, bool next) {
    const int64_t first = block * kBlock;
    const int64_t dims = std::min(kBlock, args_.size - first);
    const A* weight = tables_.weight.data() + first * kWidth;
    const A* x_row[kShared];
    Vec<A> step[kShared][G];
#pragma GCC unroll 8
    for (int i = 0; i < kShared; ++i) {
      x_row[i] = x + std::min<int64_t>(r + i, r + rows - 1) * args_.size + first;
#pragma GCC unroll 8
      for (int k = 0; k < G; ++k) {
        step[i][k] = Vec<A>(0);
      }
    }
    for (int64_t d = 0; next && d < dims; ++d) {
      Vec<A> w[G];
#pragma GCC unroll 8
      for (int k = 0; k < G; ++k) {
        w[k] = Vec<A>::loadu(weight + d * kWidth + k * lanes);
      }
#pragma GCC unroll 8
      for (int i = 0; i < kShared; ++i) {
        const Vec<A> value(x_row[i][d]);
#pragma GCC unroll 8
        for (int k = 0; k < G; ++k) {
          step[i][k] = at::vec::fmadd(value, w[k], step[i][k]);
        }
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kShared; ++i) {
      if (i >= rows) {
        break;
      }
      CompensatedSum<A> a[G];
      load_start(block, r + i, a);
      const bool factored = binary[r + i] &&
          in_range<G>(
              a, tables_.fall.data() + block * kWidth, tables_.rise.data() + block * kWidth);
      factored_.data()[block * kRowTile + r + i] = factored;
      if (!next) {
        continue;
      }
      if (factored) {
#pragma GCC unroll 8
        for (int k = 0; k < G; ++k) {
          a[k].add(step[i][k]);
        }
      } else {
        for (int64_t d = 0; d < dims; ++d) {
          const Vec<A> value(x_row[i][d]);
#pragma GCC unroll 8
          for (int k = 0; k < G; ++k) {
            a[k].add_product(value, Vec<A>::loadu(weight + d * kWidth + k * lanes));
          }
        }
      }
      A* to = start(block + 1, r + i);
#pragma GCC unroll 8
      for (int k = 0; k < G; ++k) {
        a[k].store(to + k * lanes, to + kWidth + k * lanes);
      }
    }
  }

  void load_start(int64_t block, int64_t r, CompensatedSum<A>* a) const {
    const A* from = start(block, r);
#pragma GCC unroll 8
    for (int k = 0; k < G; ++k) {
      a[k] = CompensatedSum<A>::load(from + k * lanes, from + kWidth + k * lanes);
    }
  }

  // `rows` of at most kShared rows from r on, one block.
  void add_rows(int64_t block, int64_t dims, int64_t r, int64_t rows, const A* x, const A* g) {
    const int64_t first = block * kBlock;
    const int64_t at = first * kWidth;
    const A* weight = tables_.weight.data() + at;
    const A* factor = tables_.factor.data() + at;
    const A* x_row[kShared];
    const A* g_row[kShared];
    for (int64_t i = 0; i < kShared; ++i) {
      // Rows past the end weigh nothing.
      const bool real = i < rows;
      const int64_t row = real ? r + i : r;
      x_row[i] = real ? x + row * args_.size + first : zeros_;
      g_row[i] = real ? g + row * args_.size + first : zeros_;
      A* unit = unit_.data() + i * kWidth;
      const auto keep = [&](int64_t d, const Vec<A>* units) {
#pragma GCC unroll 8
        for (int k = 0; k < G; ++k) {
          units[k].store(unit + d * kShared * kWidth + k * lanes);
        }
      };
      CompensatedSum<A> a[G];
      load_start(block, row, a);
      if (factored_.data()[block * kRowTile + row]) {
        sweep<G, FactoredState<A>>(a, x_row[i], weight, factor, kWidth, dims, keep);
      } else {
        sweep<G, SummedState<A>>(a, x_row[i], weight, factor, kWidth, dims, keep);
      }
    }
    go_back(x_row, g_row, tables_.output.data() + at, dims, grad_a_.data() + r * kWidth);
  }

  void go_back(
      const A* const* x, const A* const* g, const A* output, int64_t dims, A* grad_a) {
    Vec<A> grad[kShared][G];
#pragma GCC unroll 8
    for (int i = 0; i < kShared; ++i) {
#pragma GCC unroll 8
      for (int k = 0; k < G; ++k) {
        grad[i][k] = Vec<A>::loadu(grad_a + i * kWidth + k * lanes);
      }
    }
    for (int64_t d = dims - 1; d >= 0; --d) {
      const A* unit = unit_.data() + d * kShared * kWidth;
      A* const weight_at = block_weight_.data() + d * kWidth;
      A* const output_at = block_output_.data() + d * kWidth;
      Vec<A> x_value[kShared];
      Vec<A> g_value[kShared];
#pragma GCC unroll 8
      for (int i = 0; i < kShared; ++i) {
        x_value[i] = Vec<A>(x[i][d]);
        g_value[i] = Vec<A>(g[i][d]);
      }
#pragma GCC unroll 8
      for (int k = 0; k < G; ++k) {
        const Vec<A> minus_v = Vec<A>::loadu(output + d * kWidth + k * lanes).neg();
        Vec<A> to_weight = Vec<A>::loadu(weight_at + k * lanes);
        Vec<A> to_output = Vec<A>::loadu(output_at + k * lanes);
#pragma GCC unroll 8
        for (int i = 0; i < kShared; ++i) {
          const Vec<A> h = Vec<A>::loadu(unit + i * kWidth + k * lanes);
          to_weight = at::vec::fmadd(x_value[i], grad[i][k], to_weight);
          to_output = at::vec::fmadd(g_value[i], h, to_output);
          // g v h (1 - h)
          grad[i][k] =
              at::vec::fmadd(g_value[i] * minus_v, at::vec::fmsub(h, h, h), grad[i][k]);
        }
        to_weight.store(weight_at + k * lanes);
        to_output.store(output_at + k * lanes);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kShared; ++i) {
#pragma GCC unroll 8
      for (int k = 0; k < G; ++k) {
        grad[i][k].store(grad_a + i * kWidth + k * lanes);
      }
    }
  }

  const NadeArgs& args_;
  UnitTables<A> tables_; // of all dimensions
  A bias_[kWidth];
  A zeros_[kBlock];
  bool empty_ = true;
  Scratch<A> start_; // [blocks, rows, 2, kWidth]: sum and error
  Scratch<bool> factored_; // [blocks, rows]
  Scratch<A> unit_; // [kBlock, kShared, kWidth]
  Scratch<A> grad_a_; // [rows, kWidth]
  Scratch<A> block_weight_, block_output_; // [kBlock, kWidth]
};

void nade_grad(const NadeGradArgs& args) {
  with_sum_type(args.in.dtype, [&](auto t) {
    using A = typename decltype(t)::type;
    using Slice = GradientSlice<A, kNarrow>;
    const NadeArgs& in = args.in;
    const int64_t size = in.size;
    const int64_t hidden = in.hidden;
    const auto* x = static_cast<const A*>(in.x);
    const auto* logits = static_cast<const A*>(in.logits);
    const auto* grad = static_cast<const A*>(args.grad);
    Scratch<A> grad_logits(in.rows * size);
    Scratch<bool> binary(in.rows);
    at::parallel_for(0, in.rows, grain_rows(size), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const int64_t at = r * size;
        A* const to = grad_logits.data() + at;
        binary.data()[r] = is_binary(x + at, size);
        bernoulli_row_grad(
            grad[r], logits + at, x + at, to, static_cast<A*>(nullptr), size, false);
      }
    });
    auto* to_weight = static_cast<A*>(args.grad_weight);
    auto* to_bias = static_cast<A*>(args.grad_bias);
    auto* to_output = static_cast<A*>(args.grad_output);
    const int64_t slices = divide_up(hidden, Slice::kWidth);
    const int64_t tiles = divide_up(in.rows, kRowTile);
    at::parallel_for(0, slices * args.parts, 1, [&](int64_t begin, int64_t end) {
      Slice slice(in);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t h = task / args.parts * Slice::kWidth;
        const int64_t part = task % args.parts;
        const auto range = chunk_range(tiles, args.parts, part);
        slice.begin(h);
        for (int64_t tile = range.begin; tile < range.end; ++tile) {
          const int64_t first = tile * kRowTile;
          slice.add(
              x + first * size,
              grad_logits.data() + first * size,
              binary.data() + first,
              std::min(kRowTile, in.rows - first));
        }
        slice.finish();
        const int64_t units = std::min(Slice::kWidth, hidden - h);
        for (int64_t d = 0; d < size; ++d) {
          std::copy_n(
              slice.grad_output.data() + d * Slice::kWidth,
              units,
              to_output + (part * size + d) * hidden + h);
        }
        transpose(
            slice.grad_weight.data(),
            Slice::kWidth,
            size,
            units,
            to_weight + (part * hidden + h) * size,
            size);
        std::copy_n(slice.grad_bias.data(), units, to_bias + part * hidden + h);
      }
    });
    sum_rows(grad_logits.data(), in.rows, size, static_cast<A*>(args.grad_output_bias));
  });
}

} // namespace
} // namespace CPU_CAPABILITY

void fill_binary(NadeKernels& kernels) {
  kernels.nade = nade;
  kernels.nade_grad = nade_grad;
}

} // namespace dgm_fast
