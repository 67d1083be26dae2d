// The hidden pre-activations a_1 = c, a_{d+1} = a_d + W_d x_d, and what all kernels of NADE need around them.
#pragma once

#include "dispatch.h"

#include <new>
#include <vector>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

// What a thread's scratch was made of, kept for its next call: malloc gives memory at the end of its heap back to the
// system, and the page faults of taking it again cost as much as a small kernel.
class ScratchPool {
 public:
  struct Piece {
    void* data;
    size_t bytes;
  };

  static ScratchPool& of_thread() {
    static thread_local ScratchPool pool;
    return pool;
  }

  ScratchPool() = default;
  ScratchPool(const ScratchPool&) = delete;
  ScratchPool& operator=(const ScratchPool&) = delete;

  ~ScratchPool() {
    for (const Piece& piece : free_) {
      release(piece);
    }
  }

  // The smallest piece that is large enough, and not so large that another will want it more.
  Piece take(size_t bytes) {
    auto best = free_.end();
    for (auto piece = free_.begin(); piece != free_.end(); ++piece) {
      if (piece->bytes >= bytes && piece->bytes <= 4 * bytes + kAlignment &&
          (best == free_.end() || piece->bytes < best->bytes)) {
        best = piece;
      }
    }
    if (best == free_.end()) {
      return {::operator new(bytes, std::align_val_t(kAlignment)), bytes};
    }
    const Piece found = *best;
    free_.erase(best);
    kept_ -= found.bytes;
    return found;
  }

  void give(Piece piece) {
    while (!free_.empty() && kept_ + piece.bytes > kMaxKept) {
      kept_ -= free_.front().bytes;
      release(free_.front());
      free_.erase(free_.begin());
    }
    if (piece.bytes > kMaxKept) {
      release(piece);
      return;
    }
    free_.push_back(piece);
    kept_ += piece.bytes;
  }

 private:
  static constexpr size_t kAlignment = 64;
  static constexpr size_t kMaxKept = 16 << 20;

  static void release(Piece piece) {
    ::operator delete(piece.data, std::align_val_t(kAlignment));
  }

  std::vector<Piece> free_; // oldest first
  size_t kept_ = 0;
};

// Room for numbers, aligned to cache lines, not initialised.
template <typename A>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : piece_(ScratchPool::of_thread().take(std::max<int64_t>(1, count) * sizeof(A))) {}

  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  ~Scratch() {
    ScratchPool::of_thread().give(piece_);
  }

  A* data() const {
    return static_cast<A*>(piece_.data);
  }

 private:
  ScratchPool::Piece piece_;
};

inline int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Infinite biases act as very large ones: a sum that has been infinite could not be compensated.
template <typename A>
inline A finite_bias(A value) {
  const A kLargest = A(1e30);
  return std::min(std::max(value, -kLargest), kLargest);
}

// sigmoid(v) with an exponential to the last bit (what passes through many units should not show theirs), and 0 where it
// would be denormal.
inline Vec<float> hidden_unit(const Vec<float>& v) {
  const Vec<float> power = fast_exp(v.neg());
  return select(
      less(v, Vec<float>(-86.0f)), Vec<float>(0), reciprocal(Vec<float>(1) + power));
}

inline Vec<double> hidden_unit(const Vec<double>& v) {
  return Vec<double>(1) / (Vec<double>(1) + v.neg().exp());
}

// A sum with the rounding errors of its additions beside it. Float alone would drift by the size of the largest
// pre-activation, where a cumulative sum of PyTorch keeps its sums in double.
template <typename A>
struct CompensatedSum {
  Vec<A> sum, error;

  static CompensatedSum load(const A* sum, const A* error) {
    return {Vec<A>::loadu(sum), Vec<A>::loadu(error)};
  }

  void store(A* to_sum, A* to_error) const {
    sum.store(to_sum);
    error.store(to_error);
  }

  Vec<A> value() const {
    if constexpr (std::is_same_v<A, double>) {
      return sum;
    } else {
      return sum + error;
    }
  }

  // Knuth's two-sum: exact for any order of magnitudes.
  void add(const Vec<A>& term) {
    if constexpr (std::is_same_v<A, double>) {
      sum = sum + term;
    } else {
      const Vec<A> total = sum + term;
      const Vec<A> used = total - sum;
      error = error + ((sum - (total - used)) + (term - used));
      sum = total;
    }
  }

  void add_product(const Vec<A>& x, const Vec<A>& w) {
    if constexpr (std::is_same_v<A, double>) {
      sum = at::vec::fmadd(x, w, sum);
    } else {
      const Vec<A> product = x * w;
      error = error + at::vec::fmsub(x, w, product);
      add(product);
    }
  }
};

// to[c, r] = from[r, c]
template <typename A>
inline void transpose(
    const A* from, int64_t from_stride, int64_t rows, int64_t columns, A* to, int64_t to_stride) {
  constexpr int64_t kTile = 16;
  for (int64_t c = 0; c < columns; c += kTile) {
    for (int64_t r = 0; r < rows; r += kTile) {
      at::vec::transpose_mxn<A>(
          from + r * from_stride + c,
          from_stride,
          to + c * to_stride + r,
          to_stride,
          static_cast<int>(std::min(kTile, rows - r)),
          static_cast<int>(std::min(kTile, columns - c)));
    }
  }
}

// Sums over the rows of from [rows, size], in blocks of rows: shorter sums round less.
template <typename A>
inline void sum_rows(const A* from, int64_t rows, int64_t size, A* to) {
  constexpr int64_t kRows = 32;
  at::parallel_for(0, size, grain_rows(rows), [&](int64_t begin, int64_t end) {
    std::vector<A> part(end - begin);
    std::fill(to + begin, to + end, A(0));
    for (int64_t first = 0; first < rows; first += kRows) {
      std::fill(part.begin(), part.end(), A(0));
      for (int64_t r = first; r < std::min(rows, first + kRows); ++r) {
        for (int64_t d = begin; d < end; ++d) {
          part[d - begin] += from[r * size + d];
        }
      }
      for (int64_t d = begin; d < end; ++d) {
        to[d] += part[d - begin];
      }
    }
  });
}

// Sums over the lanes of `count` vectors that lie one after the other.
template <typename A>
inline void sum_lanes_of(const A* vectors, int64_t count, A* out) {
  int64_t i = 0;
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<A, float>) {
    // Sixteen at a time: pairs are interleaved and added, four times over.
    for (; i + 16 <= count; i += 16) {
      const float* from = vectors + i * 16;
      __m512 a[16];
#pragma GCC unroll 16
      for (int j = 0; j < 16; ++j) {
        a[j] = _mm512_loadu_ps(from + j * 16);
      }
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) {
        a[j] = _mm512_add_ps(
            _mm512_shuffle_f32x4(a[j], a[j + 8], 0x44), _mm512_shuffle_f32x4(a[j], a[j + 8], 0xee));
      }
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        a[j] = _mm512_add_ps(
            _mm512_shuffle_f32x4(a[j], a[j + 4], 0x88), _mm512_shuffle_f32x4(a[j], a[j + 4], 0xdd));
      }
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
        a[j] = _mm512_add_ps(_mm512_unpacklo_ps(a[j], a[j + 2]), _mm512_unpackhi_ps(a[j], a[j + 2]));
      }
      a[0] = _mm512_add_ps(_mm512_unpacklo_ps(a[0], a[1]), _mm512_unpackhi_ps(a[0], a[1]));
      // Its quarters hold the sums of vectors 0-3, 8-11, 4-7 and 12-15.
      _mm512_storeu_ps(out + i, _mm512_shuffle_f32x4(a[0], a[0], 0xd8));
    }
  }
#endif
  for (; i < count; ++i) {
    out[i] = sum_lanes<A>(Vec<A>::loadu(vectors + i * kLanes<A>));
  }
}

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
