"""The element-wise map of Flow++: a mixture's CDF, its logit, and an affine map."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dgm_fast.nn.element_transform import (
    AffineElement,
    ElementTransform,
    LogisticMixtureElement,
)


@dataclass(frozen=True)
class MixtureAffineElement(ElementTransform):
    r"""z = logit(F(x)) e^l + shift, F the distribution function of a mixture of M logistics.

    3 M + 2 parameters: the shift and u, of which ``scale`` forms l, then logits, means and log-scales of
    the mixture.

    Args:
        num_mixtures: M.
        scale, clamp: as for :class:`AffineElement`.

    Source: Ho et al., "Flow++" (2019), section 3.2.
    """

    num_mixtures: int = 8
    scale: str = "tanh"
    clamp: float = 2.0
    _affine: AffineElement = field(init=False, repr=False)
    _mixture: LogisticMixtureElement = field(init=False, repr=False)

    params_first = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "_affine", AffineElement(self.scale, self.clamp))
        object.__setattr__(self, "_mixture", LogisticMixtureElement(self.num_mixtures))

    @property
    def params_per_dim(self) -> int:
        return 2 + 3 * self.num_mixtures

    def __call__(
        self, x: Tensor, params: Tensor, *, inverse: bool = False
    ) -> tuple[Tensor, Tensor]:
        affine, mixture = params[..., :2], params[..., 2:]
        if inverse:
            x, affine_log_det = self._affine(x, affine, inverse=True)
            x, log_det = self._mixture(x, mixture, inverse=True)
        else:
            x, log_det = self._mixture(x, mixture)
            x, affine_log_det = self._affine(x, affine)
        return x, log_det + affine_log_det

    def initial_params(self) -> Tensor:
        return torch.cat([self._affine.initial_params(), self._mixture.initial_params()])
