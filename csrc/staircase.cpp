#include "staircase.h"

#include "block_product.h"
#include "kernels.h"
#include "layout.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <atomic>
#include <numeric>

namespace dgm_fast {
namespace {

using at::Tensor;

// Rows of the weight that one thread takes at a time, and of those on the edge of the mask, where a smaller number
// wastes less on zeros.
constexpr int64_t kRowBlock = 64;
constexpr int64_t kEdgeRows = 16;
// Columns of a right factor, and its depth: 32 KiB, a share of the first-level cache.
constexpr int64_t kPanel = 64;
template <typename T>
constexpr int64_t kDepth = (32 << 10) / (kPanel * static_cast<int64_t>(sizeof(T)));
// Depths are multiples of this as far as zeros can fill them: few shapes of product, each compiled once.
constexpr int64_t kDepthStep = 32;
// Data in the columns of a right factor: at most so many, since every one is in use while the weight is read.
constexpr int64_t kMaxBatchPanel = 128;
// Tasks that a large problem has at least, for the threads.
constexpr int64_t kMinTasks = 16;
// Multiplications below which a second thread costs more than it brings.
constexpr int64_t kGrainProducts = 1 << 21;

// Weights of this size come from beyond the second-level cache.
constexpr size_t kNear = 4 << 20;

int64_t blocks(int64_t count, int64_t size) {
  return (count + size - 1) / size;
}

int64_t round_up(int64_t count, int64_t step) {
  return blocks(count, step) * step;
}

// run(task, workspace) for every task, in ascending order on each thread and each on one thread; several threads
// where there are enough multiplications. `make` makes the workspace of a thread.
template <typename Make, typename Run>
void each_task(int64_t tasks, int64_t products, at::ScalarType type, Make&& make, Run&& run) {
  std::atomic<int64_t> next{0};
  const int64_t workers =
      products < kGrainProducts ? 1 : std::min<int64_t>(tasks, at::get_num_threads());
  at::parallel_for(0, workers, 1, [&](int64_t, int64_t) {
    at::NoGradGuard no_grad;
    auto workspace = make();
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
      run(task, workspace);
    }
    end_block_products(type);
  });
}

// Room for numbers of one type, on a cache line.
template <typename T>
struct Room {
  Tensor held;
  T* data;

  explicit Room(int64_t count)
      : held(at::empty({std::max<int64_t>(1, count)}, at::CppTypeToScalarType<T>::value)),
        data(held.mutable_data_ptr<T>()) {}
};

template <typename T, typename Sum>
struct Workspace {
  Room<T> block; // of a factor
  Room<Sum> result;
};

template <typename T>
using SumOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Right factors whose rows are interleaved in pairs.
template <typename T>
constexpr bool kPaired = std::is_same_v<T, at::BFloat16>;

// Columns of a right factor that holds `count` rows of data: whole vectors, which a product takes at its full rate.
template <typename T>
int64_t batch_panel(int64_t count) {
  constexpr int64_t kVector = 16;
  const int64_t most = kPaired<T> ? kPanel : kMaxBatchPanel;
  return round_up(blocks(count, blocks(count, most)), kVector);
}

// Ask for a block that the next product reads: rows that lie far apart are streams too many for the processor to
// follow on its own.
template <typename T>
void prefetch(const T* from, int64_t stride, int64_t rows, int64_t columns) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; c += kLine) {
      __builtin_prefetch(from + r * stride + c, 0, 2);
    }
  }
}

// x^T as right factors: [panel][depth][width].
template <typename T>
Room<T> transposed_panels(
    const Tensor& x, const int64_t* selected, int64_t width, int64_t depth) {
  const int64_t rows = x.size(0);
  const int64_t columns = x.size(1);
  const int64_t panels = blocks(rows, width);
  const int64_t steps = blocks(depth, kDepth<T>);
  Room<T> room(panels * depth * width);
  const auto& table = kernels<MaskedKernels>();
  at::parallel_for(0, panels * steps, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i / steps * width;
      const int64_t c = i % steps * kDepth<T>;
      table.transpose(
          {dtype_code(x.scalar_type()),
           x.const_data_ptr<T>() + first * columns,
           columns,
           selected,
           c,
           std::min(width, rows - first),
           std::clamp<int64_t>(columns - c, 0, kDepth<T>),
           width,
           std::min(kDepth<T>, depth - c),
           room.data + first * depth + c * width,
           width,
           kPaired<T>});
    }
  });
  return room;
}

template <typename T>
void product(
    const Staircase& stairs,
    const Tensor& x,
    const Tensor& weight,
    const Tensor& bias,
    const Tensor& out) {
  using Sum = SumOf<T>;
  const auto& table = kernels<MaskedKernels>();
  const Selection selection = stairs.selection();
  const bool ordered = selection.rows == nullptr && selection.columns == nullptr;
  const int64_t batch = x.size(0);
  const int64_t rows = stairs.rows();
  const int64_t columns = stairs.columns;
  const int64_t width = batch_panel<T>(batch);
  const int64_t panels = blocks(batch, width);
  const int64_t depth = round_up(columns, kDepthStep);
  const Room<T> right = transposed_panels<T>(x, selection.columns, width, depth);
  const T* from = weight.const_data_ptr<T>();
  const Dtype dtype = dtype_code(x.scalar_type());
  const int64_t row_blocks = blocks(rows, kRowBlock);
  const int64_t groups = std::clamp<int64_t>(blocks(kMinTasks, row_blocks), 1, panels);
  const bool far = ordered && weight.nbytes() > kNear;

  const auto copy = [&](int64_t first, int64_t count, int64_t k, int64_t steps, T* to) {
    table.block(
        {dtype,
         from,
         columns,
         selection,
         stairs.ends.data(),
         first,
         k,
         count,
         std::min(steps, columns - k),
         count,
         steps,
         to,
         kDepth<T>,
         false});
  };
  each_task(
      row_blocks * groups,
      batch * rows * columns,
      x.scalar_type(),
      [&] {
        return Workspace<T, Sum>{
            Room<T>(kRowBlock * kDepth<T>), Room<Sum>(kRowBlock * width)};
      },
      [&](int64_t task, Workspace<T, Sum>& room) {
        // The longest rows first, so that the threads end together.
        const int64_t first = (row_blocks - 1 - task / groups) * kRowBlock;
        const int64_t group = task % groups;
        const int64_t count = std::min(kRowBlock, rows - first);
        // Up to here no row of the block is masked.
        const int64_t whole = stairs.ends[first] / kDepthStep * kDepthStep;
        Sum* result = room.result.data;
        for (int64_t panel = panels * group / groups; panel < panels * (group + 1) / groups;
             ++panel) {
          const T* b = right.data + panel * width * depth;
          for (int64_t k = 0; k < whole; k += kDepth<T>) {
            const int64_t steps = std::min(kDepth<T>, whole - k);
            const T* a = room.block.data;
            if (ordered) {
              a = from + first * columns + k;
            } else {
              copy(first, count, k, steps, room.block.data);
            }
            if (far && k + steps < whole) {
              prefetch(a + steps, columns, count, std::min(kDepth<T>, whole - k - steps));
            }
            block_product(
                count, width, steps, a, ordered ? columns : kDepth<T>, b + k * width, width, result, width, k > 0);
          }
          for (int64_t r = 0; r < count; r += kEdgeRows) {
            const int64_t edge = std::min(kEdgeRows, count - r);
            const int64_t end = stairs.ends[first + r + edge - 1];
            if (end == 0) {
              std::fill_n(result + r * width, edge * width, Sum(0));
            }
            for (int64_t k = whole; k < end; k += kDepth<T>) {
              const int64_t steps = std::min(kDepth<T>, round_up(end - k, kDepthStep));
              copy(first + r, edge, k, steps, room.block.data);
              block_product(
                  edge,
                  width,
                  steps,
                  static_cast<const T*>(room.block.data),
                  kDepth<T>,
                  b + k * width,
                  width,
                  result + r * width,
                  width,
                  k > 0);
            }
          }
          table.store_transposed(
              {dtype_code(out.scalar_type()),
               result,
               width,
               selection.rows,
               first,
               std::min(width, batch - panel * width),
               count,
               bias.defined() ? bias.const_data_ptr() : nullptr,
               static_cast<char*>(out.mutable_data_ptr()) +
                   panel * width * rows * out.element_size(),
               rows});
        }
      });
}

template <typename T>
void input_gradient(
    const Staircase& stairs, const Tensor& grad, const Tensor& weight, const Tensor& out) {
  using Sum = SumOf<T>;
  constexpr int64_t kBatch = 256;
  constexpr int64_t kMaxGroup = 4;
  const auto& table = kernels<MaskedKernels>();
  const Selection selection = stairs.selection();
  const int64_t batch = grad.size(0);
  const int64_t rows = stairs.rows();
  const int64_t columns = stairs.columns;
  const Dtype dtype = dtype_code(grad.scalar_type());

  // The left factor: grad itself, or its columns in the order of the stairs, an even number of them.
  const bool as_is = selection.rows == nullptr && !(kPaired<T> && rows % 2 != 0);
  const int64_t stride = as_is ? rows : round_up(rows, kDepthStep);
  const Room<T> copied(as_is ? 0 : batch * stride);
  if (!as_is) {
    at::parallel_for(0, batch, 16, [&](int64_t begin, int64_t end) {
      table.block(
          {dtype,
           grad.const_data_ptr<T>(),
           rows,
           {nullptr, selection.rows},
           nullptr,
           begin,
           0,
           end - begin,
           rows,
           end - begin,
           stride,
           copied.data + begin * stride,
           stride,
           false});
    });
  }
  const T* left = as_is ? grad.const_data_ptr<T>() : copied.data;

  const int64_t panels = blocks(columns, kPanel);
  const int64_t group = std::clamp<int64_t>(panels / kMinTasks, 1, kMaxGroup);
  each_task(
      blocks(panels, group),
      batch * rows * columns,
      grad.scalar_type(),
      [&] {
        return Workspace<T, Sum>{
            Room<T>(kDepth<T> * kPanel), Room<Sum>(group * batch * kPanel)};
      },
      [&](int64_t task, Workspace<T, Sum>& room) {
        const int64_t first = task * group * kPanel;
        const int64_t last = std::min(columns, first + group * kPanel);
        const int64_t start = stairs.first_row(first);
        const int64_t begin = start / kDepthStep * kDepthStep;
        for (int64_t k = begin; k < rows;) {
          // Depths end on the same grid in every task.
          const int64_t next = std::min(rows, k / kDepth<T> * kDepth<T> + kDepth<T>);
          const int64_t steps = kPaired<T> ? round_up(next - k, 2) : next - k;
          for (int64_t c = first; c < last; c += kPanel) {
            Sum* result = room.result.data + (c - first) * batch;
            if (stairs.ends[next - 1] <= c) {
              // All masked, and so is all before.
              continue;
            }
            const int64_t count = std::min(kPanel, last - c);
            table.block(
                {dtype,
                 weight.const_data_ptr<T>(),
                 columns,
                 selection,
                 stairs.ends.data(),
                 k,
                 c,
                 next - k,
                 count,
                 steps,
                 kPanel,
                 room.block.data,
                 kPanel,
                 kPaired<T>});
            const bool add = k > begin && stairs.ends[k - 1] > c;
            for (int64_t b = 0; b < batch; b += kBatch) {
              block_product(
                  std::min(kBatch, batch - b),
                  kPanel,
                  steps,
                  left + b * stride + k,
                  stride,
                  static_cast<const T*>(room.block.data),
                  kPanel,
                  result + b * kPanel,
                  kPanel,
                  add);
            }
          }
          k = next;
        }
        for (int64_t c = first; c < last; c += kPanel) {
          const bool heard = stairs.first_row(c) < rows;
          table.store(
              {dtype_code(out.scalar_type()),
               heard ? room.result.data + (c - first) * batch : nullptr,
               kPanel,
               {nullptr, selection.columns},
               nullptr,
               0,
               c,
               batch,
               std::min(kPanel, last - c),
               out.mutable_data_ptr(),
               columns,
               false});
        }
      });
}

template <typename T>
void weight_gradient(
    const Staircase& stairs, const Tensor& grad, const Tensor& x, const Tensor& out) {
  using Sum = SumOf<T>;
  constexpr int64_t kBatch = 256;
  const auto& table = kernels<MaskedKernels>();
  const Selection selection = stairs.selection();
  const int64_t rows = stairs.rows();
  const int64_t columns = stairs.columns;
  const int64_t batch = x.size(0);
  const int64_t depth = kPaired<T> ? round_up(batch, 2) : batch;
  const Dtype dtype = dtype_code(x.scalar_type());

  const Room<T> left(rows * depth); // grad^T, in the order of the stairs
  const int64_t row_blocks = blocks(rows, kRowBlock);
  const int64_t panels = blocks(columns, kPanel);
  const Room<T> right(panels * depth * kPanel); // x: [panel][depth][kPanel]
  at::parallel_for(0, row_blocks + panels, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (i < row_blocks) {
        const int64_t first = i * kRowBlock;
        const int64_t count = std::min(kRowBlock, rows - first);
        table.transpose(
            {dtype,
             grad.const_data_ptr<T>(),
             rows,
             selection.rows,
             first,
             batch,
             count,
             depth,
             count,
             left.data + first * depth,
             depth,
             false});
      } else {
        const int64_t first = (i - row_blocks) * kPanel;
        table.block(
            {dtype,
             x.const_data_ptr<T>(),
             columns,
             {nullptr, selection.columns},
             nullptr,
             0,
             first,
             batch,
             std::min(kPanel, columns - first),
             depth,
             kPanel,
             right.data + first * depth,
             kPanel,
             kPaired<T>});
      }
    }
  });

  const bool stream = worth_streaming(out);
  each_task(
      row_blocks,
      batch * rows * columns,
      x.scalar_type(),
      [&] {
        return Workspace<T, Sum>{Room<T>(0), Room<Sum>(kRowBlock * kPanel)};
      },
      [&](int64_t task, Workspace<T, Sum>& room) {
        const int64_t block = row_blocks - 1 - task;
        const int64_t begin = block * kRowBlock;
        const int64_t end = std::min(rows, begin + kRowBlock);
        for (int64_t panel = 0; panel < panels; ++panel) {
          const int64_t c = panel * kPanel;
          const T* b = right.data + c * depth;
          // Rows before this one have nothing in the panel.
          const int64_t start = std::clamp(stairs.first_row(c), begin, end);
          const int64_t used = begin + (start - begin) / kEdgeRows * kEdgeRows;
          const auto put = [&](const Sum* from, int64_t first, int64_t last) {
            table.store(
                {dtype_code(out.scalar_type()),
                 from,
                 kPanel,
                 selection,
                 stairs.ends.data(),
                 first,
                 c,
                 last - first,
                 std::min(kPanel, columns - c),
                 out.mutable_data_ptr(),
                 columns,
                 stream});
          };
          for (int64_t k = 0; used < end && k < depth; k += kBatch) {
            block_product(
                end - used,
                kPanel,
                std::min(kBatch, depth - k),
                static_cast<const T*>(left.data) + used * depth + k,
                depth,
                b + k * kPanel,
                kPanel,
                room.result.data,
                kPanel,
                k > 0);
          }
          put(nullptr, begin, used);
          put(depth > 0 ? room.result.data : nullptr, used, end);
        }
      });
}

// run(T{}) for the type of the operands.
template <typename F>
void with_block_type(at::ScalarType type, F&& run) {
  switch (type) {
    case at::kDouble:
      return run(double{});
    case at::kBFloat16:
      return run(at::BFloat16{});
    default:
      return run(float{});
  }
}

std::vector<int64_t> ascending_order(const int64_t* degrees, int64_t count) {
  if (std::is_sorted(degrees, degrees + count)) {
    return {};
  }
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return degrees[a] < degrees[b];
  });
  return order;
}

} // namespace

Staircase Staircase::of_degrees(
    const Tensor& in_degrees, const Tensor& out_degrees, bool strict) {
  const Tensor in = in_degrees.to(at::kLong).contiguous();
  const Tensor out = out_degrees.to(at::kLong).contiguous();
  const auto* d = in.const_data_ptr<int64_t>();
  const auto* m = out.const_data_ptr<int64_t>();
  Staircase stairs;
  stairs.columns = in.numel();
  stairs.row_order = ascending_order(m, out.numel());
  stairs.column_order = ascending_order(d, in.numel());
  stairs.ends.reserve(out.numel());
  int64_t end = 0;
  for (int64_t r = 0; r < out.numel(); ++r) {
    const int64_t degree = m[stairs.row_order.empty() ? r : stairs.row_order[r]];
    const auto kept = [&](int64_t i) {
      const int64_t other = d[stairs.column_order.empty() ? i : stairs.column_order[i]];
      return strict ? other < degree : other <= degree;
    };
    while (end < stairs.columns && kept(end)) {
      ++end;
    }
    stairs.ends.push_back(end);
  }
  return stairs;
}

Staircase Staircase::strictly_lower(int64_t size) {
  Staircase stairs;
  stairs.columns = size;
  stairs.ends.resize(size);
  std::iota(stairs.ends.begin(), stairs.ends.end(), 0);
  return stairs;
}

Tensor Staircase::masked(const Tensor& matrix) const {
  if (!row_order.empty() || !column_order.empty()) {
    Tensor out = matrix.clone();
    clear(out);
    return out;
  }
  Tensor out = at::empty({rows(), columns}, matrix.options());
  kernels<MaskedKernels>().block(
      {dtype_code(matrix.scalar_type()),
       matrix.const_data_ptr(),
       columns,
       selection(),
       ends.data(),
       0,
       0,
       rows(),
       columns,
       rows(),
       columns,
       out.mutable_data_ptr(),
       columns,
       false});
  return out;
}

void Staircase::clear(Tensor& matrix) const {
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, matrix.scalar_type(), "clear", [&] {
    auto* data = matrix.mutable_data_ptr<scalar_t>();
    for (int64_t r = 0; r < rows(); ++r) {
      auto* row = data + (row_order.empty() ? r : row_order[r]) * columns;
      if (column_order.empty()) {
        std::fill(row + ends[r], row + columns, scalar_t(0));
        continue;
      }
      for (int64_t c = ends[r]; c < columns; ++c) {
        row[column_order[c]] = scalar_t(0);
      }
    }
  });
}

int64_t Staircase::first_row(int64_t column) const {
  return std::upper_bound(ends.begin(), ends.end(), column) - ends.begin();
}

Tensor staircase_product(
    const Staircase& stairs,
    const Tensor& x,
    const Tensor& weight,
    const Tensor& bias,
    at::ScalarType to) {
  Tensor out = empty_output({x.size(0), stairs.rows()}, to);
  if (out.numel() > 0) {
    with_block_type(x.scalar_type(), [&](auto t) {
      product<decltype(t)>(stairs, x, weight, bias, out);
    });
  }
  return out;
}

Tensor staircase_input_gradient(
    const Staircase& stairs, const Tensor& grad, const Tensor& weight, at::ScalarType to) {
  Tensor out = empty_output({grad.size(0), stairs.columns}, to);
  if (out.numel() > 0) {
    with_block_type(grad.scalar_type(), [&](auto t) {
      input_gradient<decltype(t)>(stairs, grad, weight, out);
    });
  }
  return out;
}

Tensor staircase_weight_gradient(
    const Staircase& stairs, const Tensor& grad, const Tensor& x, at::ScalarType to) {
  Tensor out = empty_output({stairs.rows(), stairs.columns}, to);
  if (out.numel() > 0) {
    with_block_type(x.scalar_type(), [&](auto t) {
      weight_gradient<decltype(t)>(stairs, grad, x, out);
    });
  }
  return out;
}

} // namespace dgm_fast
