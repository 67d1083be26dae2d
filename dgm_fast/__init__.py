"""dgm_fast: fused kernels for training, evaluating and sampling deep generative models."""

from dgm_fast import functional, models, nn, reference
from dgm_fast.integrations import accelerate
from dgm_fast.ops import backend, check_values, empty_cache, get_backend

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "accelerate",
    "backend",
    "check_values",
    "empty_cache",
    "functional",
    "get_backend",
    "models",
    "nn",
    "reference",
]
