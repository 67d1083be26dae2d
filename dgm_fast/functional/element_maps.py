"""Maps of one dimension, x_d = map(z_d; parameters_d): draws from a conditional, and flows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dgm_fast import ops
from dgm_fast.functional.spline import (
    TAILS,
    check_domain,
    check_options,
    rational_quadratic_spline,
)
from dgm_fast.reference import autoregressive as formulas


class ElementMap:
    """What :func:`autoregressive_inverse` applies to each dimension, with a compiled kernel.

    Any callable of the same signature does as well, without one: (z_d [B] or [B, n], parameters [B, P]) ->
    (x_d [B], log|dx_d/dz_d| [B] or None).

    Attributes:
        params_per_dim: P, parameters of a dimension.
        noise_per_dim: n, entries of z of a dimension; z is [B, D] for 1 and [B, D, n] otherwise.
        differentiable: whether x_d has gradients in z_d and the parameters.
        bijective: whether it is one-to-one and differentiable: it has a log-derivative and ``inverted``, by
            which :func:`autoregressive_inverse` finds its gradients.
    """

    noise_per_dim: int = 1
    differentiable: bool = False
    bijective: bool = False

    @property
    def params_per_dim(self) -> int:
        raise NotImplementedError

    def __call__(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError

    def draw_noise(
        self,
        shape: tuple[int, int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """z for ``shape`` = (B, D): uniforms where z is bounded, else standard normals."""
        raise NotImplementedError

    def inverted(self) -> ElementMap:
        """The way back: (x_d [...], parameters [..., P]) -> (z_d, log|dz_d/dx_d|); of bijective maps."""
        raise NotImplementedError

    def domain(self) -> tuple[float, float] | None:
        """The interval in which z must lie, None for any z."""
        return None

    def kernel(self) -> tuple[int, list[int], list[float], bool]:
        """The arguments (transform, modes, options, inverse) of the op ``autoregressive_inverse``."""
        raise NotImplementedError


@dataclass(frozen=True)
class BernoulliDraw(ElementMap):
    """x_d = [z_d < sigmoid(logit)], z uniform; one parameter, the logit."""

    @property
    def params_per_dim(self) -> int:
        return 1

    def __call__(self, z: Tensor, params: Tensor) -> tuple[Tensor, None]:
        return formulas.bernoulli_draw(z, params)

    def draw_noise(
        self,
        shape: tuple[int, int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return torch.rand(shape, dtype=dtype, device=device, generator=generator)

    def kernel(self) -> tuple[int, list[int], list[float], bool]:
        return ops.ELEMENT_MAPS["bernoulli"], [], [], False


@dataclass(frozen=True)
class CategoricalDraw(ElementMap):
    """The first class whose cumulative probability passes the uniform z_d; parameters are the logits.

    The network sees a class as a one-hot vector: it has ``num_classes`` inputs a dimension.
    """

    num_classes: int

    def __post_init__(self) -> None:
        _check_count("num_classes", self.num_classes)

    @property
    def params_per_dim(self) -> int:
        return self.num_classes

    def __call__(self, z: Tensor, params: Tensor) -> tuple[Tensor, None]:
        return formulas.categorical_draw(z, params)

    def draw_noise(
        self,
        shape: tuple[int, int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return torch.rand(shape, dtype=dtype, device=device, generator=generator)

    def kernel(self) -> tuple[int, list[int], list[float], bool]:
        return ops.ELEMENT_MAPS["categorical"], [], [], False


@dataclass(frozen=True)
class MixtureDraw(ElementMap):
    """A draw from a mixture of Gaussians or logistics, the component by inverting the cumulative weights.

    Parameters of a dimension: M weight logits (none with ``uniform_weights``), M means, M log-scales. z
    holds a uniform for the component, and a standard normal ("gaussian") or a uniform in (0, 1)
    ("logistic").
    """

    num_mixtures: int
    mixture: str = "gaussian"
    uniform_weights: bool = False

    noise_per_dim = 2
    differentiable = True

    def __post_init__(self) -> None:
        _check_count("num_mixtures", self.num_mixtures)
        if self.mixture not in ops.MIXTURES:
            raise ValueError(f"mixture must be one of {tuple(ops.MIXTURES)}, got {self.mixture!r}")

    @property
    def params_per_dim(self) -> int:
        return self.num_mixtures * (2 if self.uniform_weights else 3)

    def __call__(self, z: Tensor, params: Tensor) -> tuple[Tensor, None]:
        return formulas.mixture_draw(
            z, params, mixture=self.mixture, uniform_weights=self.uniform_weights
        )

    def draw_noise(
        self,
        shape: tuple[int, int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        uniform = torch.rand(shape, dtype=dtype, device=device, generator=generator)
        if self.mixture == "gaussian":
            value = torch.randn(shape, dtype=dtype, device=device, generator=generator)
        else:
            value = torch.rand(shape, dtype=dtype, device=device, generator=generator)
            # A uniform of exactly 0 would be a sample at minus infinity.
            value.clamp_(min=0.5 * torch.finfo(dtype).eps)
        return torch.stack([uniform, value], -1)

    def kernel(self) -> tuple[int, list[int], list[float], bool]:
        code = ops.ELEMENT_MAPS[f"{self.mixture}_mixture"]
        return code, [int(self.uniform_weights)], [], False


@dataclass(frozen=True)
class AffineMap(ElementMap):
    """x_d = z_d * scale + shift, or with ``inverse`` (z_d - shift) / scale; log|dx_d/dz_d| = +-log scale.

    Parameters of a dimension: the shift and u, from which the scale is formed: "exp": exp(u), "sigmoid2":
    sigmoid(u + 2) + 1e-3, "softplus": softplus(u) + 1e-3, "tanh": exp(clamp tanh(u / clamp)), "atan":
    exp(clamp 2/pi atan(u)), "softsign": exp(u / (1 + abs(u) / clamp)). With standard normal z and "exp" it
    draws from Gaussians of given mean and log-scale; it inverts masked autoregressive flows (Papamakarios
    et al., 2017).
    """

    scale: str = "exp"
    clamp: float = 2.0
    inverse: bool = False

    differentiable = True
    bijective = True

    def __post_init__(self) -> None:
        if self.scale not in ops.SCALES:
            raise ValueError(f"scale must be one of {tuple(ops.SCALES)}, got {self.scale!r}")
        if not self.clamp > 0:
            raise ValueError(f"clamp must be positive, got {self.clamp}")

    @property
    def params_per_dim(self) -> int:
        return 2

    def __call__(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return formulas.affine_map(
            z, params, scale=self.scale, clamp=self.clamp, inverse=self.inverse
        )

    def inverted(self) -> AffineMap:
        return AffineMap(self.scale, self.clamp, not self.inverse)

    def draw_noise(
        self,
        shape: tuple[int, int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device, generator=generator)

    def kernel(self) -> tuple[int, list[int], list[float], bool]:
        return ops.ELEMENT_MAPS["affine"], [ops.SCALES[self.scale]], [self.clamp], self.inverse


@dataclass(frozen=True)
class SplineMap(ElementMap):
    """x_d = s(z_d), a monotone rational-quadratic spline, or with ``inverse`` s^-1(z_d); log|dx_d/dz_d|.

    Parameters of a dimension, in nflows' order: K widths, K heights, and K - 1 slopes for linear tails, K
    for circular ones, K + 1 without tails. With ``inverse`` it inverts the autoregressive spline flow
    z_d = s(x_d; parameters(x before d)) (Durkan et al., 2019).

    Attributes:
        num_bins: K.
        tails: "linear", "circular", or None: z must then lie in the domain (with ``inverse`` in the image).
        tail_bound, left, right, bottom, top, min_bin_width, min_bin_height, min_derivative,
            parameterization: as in :func:`rational_quadratic_spline`.
        logit_scale: factor of the parameters of widths and heights; nflows takes H^-1/2 for conditioners of
            H hidden features.
    """

    num_bins: int
    tails: str | None = "linear"
    tail_bound: float = 1.0
    left: float = 0.0
    right: float = 1.0
    bottom: float = 0.0
    top: float = 1.0
    min_bin_width: float = 1e-3
    min_bin_height: float = 1e-3
    min_derivative: float = 1e-3
    parameterization: str = "nflows"
    logit_scale: float = 1.0
    inverse: bool = False

    differentiable = True
    bijective = True

    def __post_init__(self) -> None:
        _check_count("num_bins", self.num_bins)
        if self.tails not in (*TAILS, None):
            raise ValueError(f"tails must be one of {TAILS} or None, got {self.tails!r}")
        check_options(
            self.num_bins,
            self.min_bin_width,
            self.min_bin_height,
            self.min_derivative,
            self.parameterization,
        )
        if self.tails is None:
            check_domain(self.left, self.right, self.bottom, self.top)
        elif not self.tail_bound > 0:
            raise ValueError(f"tail_bound must be positive, got {self.tail_bound}")

    @property
    def params_per_dim(self) -> int:
        return 3 * self.num_bins - 1 + ops.SPLINE_ENDS[self._ends]

    @property
    def _ends(self) -> str:
        return {"linear": "fixed", "circular": "periodic", None: "free"}[self.tails]

    def __call__(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        bins = self.num_bins
        widths, heights, derivatives = params.tensor_split((bins, 2 * bins), -1)
        return rational_quadratic_spline(
            z,
            self.logit_scale * widths,
            self.logit_scale * heights,
            derivatives,
            inverse=self.inverse,
            tails=self.tails,
            tail_bound=self.tail_bound,
            left=self.left,
            right=self.right,
            bottom=self.bottom,
            top=self.top,
            min_bin_width=self.min_bin_width,
            min_bin_height=self.min_bin_height,
            min_derivative=self.min_derivative,
            parameterization=self.parameterization,
        )

    def inverted(self) -> SplineMap:
        return replace(self, inverse=not self.inverse)

    def domain(self) -> tuple[float, float] | None:
        if self.tails is not None:
            return None
        return (self.bottom, self.top) if self.inverse else (self.left, self.right)

    def draw_noise(
        self,
        shape: tuple[int, int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        domain = self.domain()
        if domain is None:
            return torch.randn(shape, dtype=dtype, device=device, generator=generator)
        low, high = domain
        uniform = torch.rand(shape, dtype=dtype, device=device, generator=generator)
        return (low + (high - low) * uniform).clamp(low, high)

    def kernel(self) -> tuple[int, list[int], list[float], bool]:
        modes = [
            ops.SPLINE_ENDS[self._ends],
            int(self.tails is not None),
            ops.PARAMETERIZATIONS[self.parameterization],
        ]
        bound = self.tail_bound
        if self.tails is None:
            box = [self.left, self.right, self.bottom, self.top]
        else:
            box = [-bound, bound, -bound, bound]
        least = [self.min_bin_width, self.min_bin_height, self.min_derivative]
        options = [float(v) for v in (*box, *least, self.logit_scale)]
        return ops.ELEMENT_MAPS["spline"], modes, options, self.inverse


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
