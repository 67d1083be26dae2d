#include "amx.h"

#if defined(DGM_FAST_AMX) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

#if defined(DGM_FAST_AMX)
namespace {

bool ask_for_tiles() {
#if defined(__linux__)
  constexpr unsigned kBfloat16Tiles = 1u << 22, kTiles = 1u << 24; // leaf 7, edx
  constexpr long kRequestPermission = 0x1023, kTileData = 18; // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kBfloat16Tiles) == 0 || (d & kTiles) == 0) {
    return false;
  }
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

struct alignas(64) TileConfiguration {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Registers 0 to 3 hold C, 4 and 5 A, 6 and 7 B.
template <int T>
[[gnu::always_inline]] inline void clear_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(T));
}

template <int T>
[[gnu::always_inline]] inline void load_tile(const Part* from, int64_t row_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(row_bytes), "i"(T) : "memory");
}

template <int T>
[[gnu::always_inline]] inline void store_tile(float* to, int64_t row_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(row_bytes), "i"(T) : "memory");
}

template <int C, int A, int B>
[[gnu::always_inline]] inline void multiply_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

template <int M, int N>
void tile_product(
    const SplitRows& a, const int64_t* offsets, int64_t steps, const SplitPairs& b, float* c, int64_t c_stride) {
  const int64_t row_bytes = a.row_stride * static_cast<int64_t>(sizeof(Part));
  const auto load_a = [&](const Part* from, int64_t part) {
    from += part * a.part_stride;
    load_tile<4>(from, row_bytes);
    if constexpr (M == 2) {
      load_tile<5>(from + kTileSide * a.row_stride, row_bytes);
    }
  };
  const auto load_b = [&](const Part* from, int64_t part) {
    from += part * b.part_stride;
    load_tile<6>(from, 64);
    if constexpr (N == 2) {
      load_tile<7>(from + b.tile_stride, 64);
    }
  };
  const auto multiply = [] {
    multiply_tiles<0, 4, 6>();
    if constexpr (N == 2) {
      multiply_tiles<1, 4, 7>();
    }
    if constexpr (M == 2) {
      multiply_tiles<2, 5, 6>();
    }
    if constexpr (M == 2 && N == 2) {
      multiply_tiles<3, 5, 7>();
    }
  };
  clear_tile<0>();
  clear_tile<1>();
  clear_tile<2>();
  clear_tile<3>();
  const Part* right = b.data;
  for (int64_t step = 0; step < steps; ++step, right += b.step_stride) {
    const Part* left = a.data + offsets[step];
    // In an order that reads seven operands, not twelve.
    load_a(left, 0);
    load_b(right, 2);
    multiply();
    load_b(right, 1);
    multiply();
    load_b(right, 0);
    multiply();
    load_a(left, 2);
    multiply();
    load_a(left, 1);
    multiply();
    load_b(right, 1);
    multiply();
  }
  const int64_t c_bytes = c_stride * static_cast<int64_t>(sizeof(float));
  store_tile<0>(c, c_bytes);
  if constexpr (N == 2) {
    store_tile<1>(c + kTileSide, c_bytes);
  }
  if constexpr (M == 2) {
    store_tile<2>(c + kTileSide * c_stride, c_bytes);
  }
  if constexpr (M == 2 && N == 2) {
    store_tile<3>(c + kTileSide * c_stride + kTileSide, c_bytes);
  }
}

// 32 bfloat16 of the upper halves of two vectors, one vector after the other.
[[gnu::always_inline]] inline __m512i upper_halves(__m512i first, __m512i second) {
  alignas(64) static constexpr auto kOdd = [] {
    std::array<uint16_t, 32> index{};
    for (int i = 0; i < 32; ++i) {
      index[i] = static_cast<uint16_t>(2 * i + 1);
    }
    return index;
  }();
  return _mm512_permutex2var_epi16(first, _mm512_load_si512(kOdd.data()), second);
}

// The largest magnitude of what it sees, as bits: the order of floats without their signs.
class Largest {
 public:
  [[gnu::always_inline]] void see(__m512 x) {
    largest_ = _mm512_max_epu32(
        largest_, _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff)));
  }
  uint32_t bits() const {
    return _mm512_reduce_max_epu32(largest_);
  }

 private:
  __m512i largest_ = _mm512_setzero_si512();
};

[[gnu::always_inline]] inline void split_step(
    const float* x, Part* to, int64_t part_stride, Largest& largest) {
  const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
  largest.see(a);
  largest.see(b);
  const Parts first = split(a), second = split(b);
#pragma GCC unroll 3
  for (int p = 0; p < kParts; ++p) {
    _mm512_storeu_si512(to + p * part_stride, upper_halves(first.part[p], second.part[p]));
  }
}

} // namespace

bool amx_available() {
  static const bool available = ask_for_tiles();
  return available;
}

TileRegisters::TileRegisters() {
  const TileConfiguration configuration;
  asm volatile("ldtilecfg %0" ::"m"(configuration));
}

TileRegisters::~TileRegisters() {
  asm volatile("tilerelease" ::: "memory");
}

TileProduct find_tile_product(int64_t tile_rows, int64_t tile_columns) {
  static constexpr TileProduct products[2][2] = {
      {tile_product<1, 1>, tile_product<1, 2>}, {tile_product<2, 1>, tile_product<2, 2>}};
  return products[tile_rows > 1][tile_columns > 1];
}

uint32_t split_run(const float* x, int64_t count, Part* to, int64_t part_stride) {
  Largest largest;
  for (int64_t i = 0; i < count; i += kStepDepth) {
    split_step(x + i, to + i, part_stride, largest);
  }
  return largest.bits();
}

uint32_t split_rows(const float* x, int64_t x_stride, int64_t rows, Part* to, int64_t part_stride) {
  Largest largest;
  for (int64_t row = 0; row < rows; ++row) {
    split_step(x + row * x_stride, to + row * kStepDepth, part_stride, largest);
  }
  return largest.bits();
}

uint32_t split_pairs(
    const float* x,
    int64_t x_stride,
    int64_t pairs,
    int64_t columns,
    Part* to,
    int64_t tile_stride,
    int64_t part_stride) {
  Largest largest;
  for (int64_t pair = 0; pair < pairs; ++pair, x += 2 * x_stride) {
    for (int64_t column = 0; column < columns; column += kTileSide) {
      const __m512 first = _mm512_loadu_ps(x + column), second = _mm512_loadu_ps(x + x_stride + column);
      largest.see(first);
      largest.see(second);
      const Parts even = split(first), odd = split(second);
      Part* tile = to + column / kTileSide * tile_stride + pair * kStepDepth;
#pragma GCC unroll 3
      for (int p = 0; p < kParts; ++p) {
        _mm512_storeu_si512(
            tile + p * part_stride,
            _mm512_or_si512(_mm512_srli_epi32(even.part[p], 16), odd.part[p]));
      }
    }
  }
  return largest.bits();
}

#else

bool amx_available() {
  return false;
}

#endif

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
