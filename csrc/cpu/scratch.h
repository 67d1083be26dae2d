// Scratch memory of a thread, and the transposition into it.
#pragma once

#include "vec.h"

#include <cstring>
#include <new>
#include <utility>
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

  // With `count` zeros.
  static Scratch zeros(int64_t count) {
    Scratch scratch(count);
    std::memset(scratch.data(), 0, static_cast<size_t>(count) * sizeof(A));
    return scratch;
  }

  Scratch(Scratch&& other) noexcept : piece_(std::exchange(other.piece_, {nullptr, 0})) {}
  Scratch& operator=(Scratch&& other) noexcept {
    std::swap(piece_, other.piece_);
    return *this;
  }

  ~Scratch() {
    if (piece_.data != nullptr) {
      ScratchPool::of_thread().give(piece_);
    }
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

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
