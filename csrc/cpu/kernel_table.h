// What a kernel library offers: one set of functions a family, filled by the family's files. Only what hands the
// table over includes this file, so that a change to one family compiles that family again and no other.
#pragma once

#include <tuple>

#include "adversarial_table.h"
#include "autoregressive_table.h"
#include "bounds_table.h"
#include "coupling_table.h"
#include "latent_table.h"
#include "likelihood_table.h"
#include "lstm_table.h"
#include "masked_table.h"
#include "mixture_table.h"
#include "nade_table.h"
#include "pixel_sampling_table.h"
#include "pixel_table.h"
#include "product_table.h"
#include "spline_table.h"

namespace dgm_fast {

using KernelTable = std::tuple<
    AdversarialKernels,
    AutoregressiveKernels,
    BoundsKernels,
    CouplingKernels,
    LatentKernels,
    LikelihoodKernels,
    LstmKernels,
    MaskedKernels,
    MixtureKernels,
    NadeKernels,
    PixelKernels,
    PixelSamplingKernels,
    ProductKernels,
    SplineKernels>;

} // namespace dgm_fast
