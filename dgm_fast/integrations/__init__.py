"""Models of other libraries with the ops of this one."""

from dgm_fast.integrations import activations, layers
from dgm_fast.integrations.accelerate import AccelerationReport, Kept, Replacement, accelerate

__all__ = ["AccelerationReport", "Kept", "Replacement", "accelerate", "activations", "layers"]
