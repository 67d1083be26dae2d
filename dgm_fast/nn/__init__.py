"""Drop-in modules."""

from dgm_fast.nn.mlp import MLP

__all__ = ["MLP"]
