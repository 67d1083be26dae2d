// What a kernel library offers for recurrent layers over images.
#pragma once

#include "operand.h"

namespace dgm_fast {

// One step of an LSTM at `positions` pixels, `stride` pixels apart: gates i, f, g, o, c = f c + i g, h = o tanh(c).
// Tensors are float or double.
struct LstmStepArgs {
  int64_t positions, hidden, stride;
  Dtype dtype;
  const void* gates; // [4 hidden] a pixel, before their activations
  const void* recurrent; // [positions, 4 hidden], added to them; null for none
  void *state, *cell_state; // [positions, hidden]; the state is only written
  void *activated, *cells, *out; // [4 hidden], [hidden] and [hidden] a pixel
};

struct LstmStepGradArgs {
  int64_t positions, hidden, stride, taps, reach;
  Dtype dtype;
  // Of `out`, and of what the step after this one took from position p - reach + tap, [taps, hidden] a position p, from
  // the first position here on; it may be read taps - 1 positions around.
  const void *grad, *later;
  const void *activated, *cells;
  // Cells of the step before, of the first `with_previous` positions; the others had none.
  const void* previous;
  int64_t with_previous;
  void* cell_grad; // [positions, hidden]: in, from the step after; out, for the one before
  void* grad_gates; // [4 hidden] a pixel
};

struct LstmKernels {
  void (*step)(const LstmStepArgs&);
  void (*step_grad)(const LstmStepGradArgs&);
};

void fill(LstmKernels& kernels);

} // namespace dgm_fast
