// Memory of large outputs, kept for the next output of like size.
#pragma once

#include <cstddef>

#include <c10/core/Allocator.h>

namespace dgm_fast {

// Outputs of at least this size come from the pool. malloc returns freed blocks of a megabyte and more to the
// system whenever they end up at the top of its heap, and the page faults of fresh memory then cost several
// times what a kernel does.
inline constexpr size_t kPooledBytes = 1 << 20;

c10::Allocator* output_pool();

// Return what no tensor uses to the system.
void empty_output_pool();

// Bytes that are kept and in no tensor's use.
size_t output_pool_idle_bytes();

// The most that is kept so.
size_t output_pool_limit();

} // namespace dgm_fast
