// Products of float32 matrices on the matrix units (AMX), which multiply bfloat16 and add in float32.
//
// A float is the sum of three bfloat16: x = h + m + l, 8 bits of its 24 each. Of the nine products of two such sums six
// are formed, h h + h m + m h + m m + h l + l h; the other three lie below 2^-26 of x y, under float32's own rounding.
// Six products of these units take 3/8 of the time of one on the vector units.
//
// Only files of the AVX-512 level use this, where the assembler knows the instructions (DGM_FAST_AMX), and only after
// amx_available(): they are written as assembly, so that no file needs a compiler flag that would let them into shared
// inline functions.
#pragma once

#include "vec.h"

#include <array>
#include <cstdint>

namespace dgm_fast {
inline namespace CPU_CAPABILITY {

// The processor has bfloat16 tiles and the system lets this process use them; asks for it once.
bool amx_available();

#if defined(DGM_FAST_AMX)

// Rows of a tile, floats of a row of C; a step of a product adds up kStepDepth terms.
inline constexpr int64_t kTileSide = 16;
inline constexpr int64_t kStepDepth = 32;
inline constexpr int64_t kParts = 3;
// Entries of a tile of A or B.
inline constexpr int64_t kTileEntries = kTileSide * kStepDepth;

using Part = uint16_t; // a bfloat16's bits

// The tile registers of this thread, all 16 rows of 64 bytes, from construction to destruction.
class TileRegisters {
 public:
  TileRegisters();
  ~TileRegisters();
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

// Left factor: rows of kStepDepth entries at `data`, strides in entries.
struct SplitRows {
  const Part* data;
  int64_t row_stride; // a tile takes 16 of them, the second one the next 16
  int64_t part_stride;
};

// Right factor: tiles [16 pairs of terms][16 columns][2], strides in entries.
struct SplitPairs {
  const Part* data;
  int64_t tile_stride; // to the next 16 columns
  int64_t step_stride; // to the next 32 terms
  int64_t part_stride;
};

// c [16 tile_rows, 16 tile_columns] = sum over steps of a (moved by offsets[step] entries) times b; one or two tiles
// each way. The sum is one run of float32 additions: callers add up no more than a few hundred terms so.
using TileProduct = void (*)(
    const SplitRows& a, const int64_t* offsets, int64_t steps, const SplitPairs& b, float* c, int64_t c_stride);

TileProduct find_tile_product(int64_t tile_rows, int64_t tile_columns);

// Whether every float of largest magnitude `largest_bits` (as bits) and below may be split: none is infinite or NaN, and
// what the units flush to zero (below 2^-126) is far below the rounding of products with another such factor.
inline bool splits(uint32_t largest_bits) {
  constexpr uint32_t lower = (127u - 50u) << 23, upper = (127u + 60u) << 23;
  return largest_bits == 0 || (largest_bits >= lower && largest_bits <= upper);
}

// The three parts of 16 floats, each as a float whose lower half is zero.
struct Parts {
  __m512i part[kParts];
};

[[gnu::always_inline]] inline Parts split(__m512 x) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  Parts parts;
  // Rounded, so that the rest is of either sign and the dropped products cancel; the other two are exact when cut.
  parts.part[0] =
      _mm512_and_si512(_mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000)), upper);
  const __m512 rest = _mm512_sub_ps(x, _mm512_castsi512_ps(parts.part[0]));
  parts.part[1] = _mm512_and_si512(_mm512_castps_si512(rest), upper);
  parts.part[2] = _mm512_castps_si512(_mm512_sub_ps(rest, _mm512_castsi512_ps(parts.part[1])));
  return parts;
}

// The following write parts and return the largest magnitude that they met, as bits.

// to[part] [rows][32] = rows of 32 floats.
uint32_t split_rows(const float* x, int64_t x_stride, int64_t rows, Part* to, int64_t part_stride);

// to[part] [columns / 16][pairs][16][2] from rows of `columns` floats (a multiple of 16), two rows a pair; tile_stride
// entries from one block of 16 columns to the next.
uint32_t split_pairs(
    const float* x,
    int64_t x_stride,
    int64_t pairs,
    int64_t columns,
    Part* to,
    int64_t tile_stride,
    int64_t part_stride);

// to[part] [count] = floats one after the other; count is a multiple of 32.
uint32_t split_run(const float* x, int64_t count, Part* to, int64_t part_stride);

#endif

} // namespace CPU_CAPABILITY
} // namespace dgm_fast
