// Word to Python from a call that takes long, and Python's word to stop it.
#pragma once

#include <cstdint>

namespace dgm_fast {

// Tells Python's listener how far the call is; false where that raised, or an interrupt has come. From the thread that
// Python called.
bool report_progress(int64_t done);

// Throws what stopped the call, if anything did.
void throw_interruption();

} // namespace dgm_fast
