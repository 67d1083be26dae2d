"""Coupling layers of images: one half moves by parameters that a network reads off the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dgm_fast.nn._partition import partition
from dgm_fast.nn.conv_resnet import ConvResNet, GlowNet
from dgm_fast.nn.element_transform import (
    AdditiveElement,
    AffineElement,
    ElementTransform,
    SplineElement,
)
from dgm_fast.nn.mixture_element import MixtureAffineElement
from dgm_fast.nn.transform import Rewind, Transform, gradients

COUPLINGS = ("affine", "additive", "mixture", "spline")


class ImageCoupling(Transform):
    r"""Coupling layer of images: :math:`z_K = x_K`, :math:`z_M = g(x_M; \theta(x_K))` for two halves K, M.

    Args:
        num_channels: C of images [B, C, H, W].
        mask: which half is kept: "channel" (the first C // 2 channels) or "checkerboard" (pixels whose
            row and column have an even sum; W must be even). The colours of a checkerboard are pushed
            together to images [B, C, H, W / 2], so that nothing is computed for hidden pixels.
        flip: keep the other half.
        coupling: the map g: "affine", "additive", "mixture" (the logit of the CDF of a mixture of
            logistics, then affine: Flow++), "spline" (rational-quadratic), or an
            :class:`ElementTransform`.
        scale, clamp: of the affine maps, as for :func:`dgm_fast.functional.affine_coupling`.
        num_mixtures: of "mixture".
        num_bins, tail_bound: of "spline".
        network: (in_channels, out_channels) -> module of (image), or of (image, context) with a context;
            it runs on one half, and gives P parameters an entry, those of one kind side by side. None
            builds a :class:`ConvResNet`. A ConvResNet or :class:`GlowNet` starts so that g is near the
            identity.
        channels, num_blocks, gated: of the built network.
        context_dim: size of a context vector that the network hears.
        context_channels: channels of a context map [B, K, H, W] that it hears in place of a vector.

    Raises:
        ValueError: if an argument does not fit.

    Source: Dinh et al., "Density estimation using Real NVP" (2017), sections 3.2 to 3.4; Ho et al.,
    "Flow++" (2019), section 3.2; Durkan et al., "Neural Spline Flows" (2019).
    """

    def __init__(
        self,
        num_channels: int,
        mask: str = "channel",
        *,
        flip: bool = False,
        coupling: str | ElementTransform = "affine",
        scale: str = "tanh",
        clamp: float = 2.0,
        num_mixtures: int = 8,
        num_bins: int = 8,
        tail_bound: float = 3.0,
        network: Callable[[int, int], nn.Module] | None = None,
        channels: int = 32,
        num_blocks: int = 2,
        gated: bool = False,
        context_dim: int | None = None,
        context_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.mask = mask
        self.conditional = context_dim is not None or context_channels is not None
        self._partition = partition(mask, num_channels, flip)
        if isinstance(coupling, ElementTransform):
            self.element = coupling
        elif coupling == "mixture":
            self.element = MixtureAffineElement(num_mixtures, scale, clamp)
        elif coupling == "spline":
            self.element = SplineElement(num_bins, tail_bound)
        elif coupling in COUPLINGS:
            self.element = (
                AdditiveElement() if coupling == "additive" else AffineElement(scale, clamp)
            )
        else:
            raise ValueError(f"coupling must be one of {COUPLINGS}, got {coupling!r}")
        halves = self._partition
        map_channels = (
            None if context_channels is None else halves.context_channels(context_channels)
        )
        sizes = halves.kept_channels, halves.moved_channels * self.element.params_per_dim
        if network is not None:
            self.network = network(*sizes)
        else:
            self.network = ConvResNet(
                *sizes,
                channels=channels,
                num_blocks=num_blocks,
                context_dim=context_dim,
                context_channels=map_channels,
                gated=gated,
            )
        if isinstance(self.network, ConvResNet | GlowNet):
            initial = self.element.initial_params().repeat_interleave(halves.moved_channels)
            self.network.start_at(initial)

    def forward(self, x: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(x, context, False)

    def inverse(self, z: Tensor, *, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(z, context, True)

    def _run(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        kept, moved = self._partition.split(x)
        moved, log_det = self._map(moved, self._params(kept, context), inverse=inverse)
        return self._partition.join(kept, moved), log_det

    def _map(self, x: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """x [B, C, H, W], params [B, P C, H, W]."""
        rows = params.flatten(1).unflatten(1, (self.element.params_per_dim, -1)).transpose(1, 2)
        y, log_det = self.element(x.flatten(1), rows, inverse=inverse)
        return y.reshape(x.shape), log_det

    def _params(self, kept: Tensor, context: Tensor | None) -> Tensor:
        if not self.conditional:
            return self.network(kept)
        if context is None:
            raise ValueError("context is missing: the coupling was built with one")
        if context.ndim == 4:
            context = self._partition.context(context)
        return self.network(kept, context)

    def backward_from_output(
        self,
        z: Tensor,
        grad_z: Tensor | None,
        grad_log_det: Tensor | None,
        wanted: Sequence[Tensor],
        *,
        context: Tensor | None = None,
        inverse: bool = False,
        rewind: Rewind = lambda: None,
    ) -> tuple[Tensor, Tensor | None, list[Tensor | None]]:
        # The half that the network reads is in the output as it was: one run of it serves both directions.
        halves = self._partition
        kept, out = halves.split(z)
        with torch.enable_grad():
            kept_leaf = kept.detach().requires_grad_()
            rewind()
            params = self._params(kept_leaf, context)
            with torch.no_grad():
                moved, _ = self._map(out, params.detach(), inverse=not inverse)
            leaf = moved.detach().requires_grad_()
            again, log_det = self._map(leaf, params, inverse=inverse)
        grad_kept, grad_out = (None, None) if grad_z is None else halves.split(grad_z)
        of_kept, of_moved, *found = gradients(
            [(again, grad_out), (log_det, grad_log_det)], [kept_leaf, leaf, *wanted]
        )
        grad_x = None
        if grad_kept is not None or of_kept is not None or of_moved is not None:
            total = _sum(grad_kept, of_kept, kept)
            grad_x = halves.join(total, torch.zeros_like(moved) if of_moved is None else of_moved)
        return halves.join(kept, moved), grad_x, found

    def extra_repr(self) -> str:
        return f"mask={self.mask!r}, flip={self._partition.flip}, element={self.element}"


def _sum(a: Tensor | None, b: Tensor | None, like: Tensor) -> Tensor:
    if a is None:
        return torch.zeros_like(like) if b is None else b
    return a if b is None else a + b
