"""dgm_fast: fused kernels for training, evaluating and sampling deep generative models."""

from dgm_fast import functional, models, nn, reference
from dgm_fast.integrations import accelerate
from dgm_fast.ops import (
    Tuning,
    backend,
    check_values,
    clear_tuning,
    empty_cache,
    get_backend,
    load_tuning,
)

tune = Tuning

__version__ = "0.1.0"

__all__ = [
    "Tuning",
    "__version__",
    "accelerate",
    "backend",
    "check_values",
    "clear_tuning",
    "empty_cache",
    "functional",
    "get_backend",
    "load_tuning",
    "models",
    "nn",
    "reference",
    "tune",
]
