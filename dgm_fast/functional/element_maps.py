"""Maps of one dimension, x_d = map(z_d; parameters_d): draws from a conditional, and flows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dgm_fast import ops
from dgm_fast.reference import autoregressive as formulas


class ElementMap:
    """What :func:`autoregressive_inverse` applies to each dimension, with a compiled kernel.

    Any callable of the same signature does as well, without one: (z_d [B] or [B, n], parameters [B, P]) ->
    (x_d [B], log|dx_d/dz_d| [B] or None).

    Attributes:
        params_per_dim: P, parameters of a dimension.
        noise_per_dim: n, entries of z of a dimension; z is [B, D] for 1 and [B, D, n] otherwise.
        differentiable: whether x_d has gradients in z_d and the parameters.
    """

    noise_per_dim: int = 1
    differentiable: bool = False

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
        """z for ``shape`` = (B, D): uniforms for draws by inverse CDF, else standard normals."""
        raise NotImplementedError

    def kernel(self) -> tuple[int, int, float, bool]:
        """The codes (transform, mode, clamp, inverse) of the op ``autoregressive_inverse``."""
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

    def kernel(self) -> tuple[int, int, float, bool]:
        return ops.ELEMENT_MAPS["bernoulli"], 0, 0.0, False


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

    def kernel(self) -> tuple[int, int, float, bool]:
        return ops.ELEMENT_MAPS["categorical"], 0, 0.0, False


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

    def kernel(self) -> tuple[int, int, float, bool]:
        code = ops.ELEMENT_MAPS[f"{self.mixture}_mixture"]
        return code, int(self.uniform_weights), 0.0, False


@dataclass(frozen=True)
class AffineMap(ElementMap):
    """x_d = z_d * scale + shift, or with ``inverse`` (z_d - shift) / scale; log|dx_d/dz_d| = +-log scale.

    Parameters of a dimension: the shift and u, from which the scale is formed: "exp": exp(u), "sigmoid2":
    sigmoid(u + 2) + 1e-3, "softplus": softplus(u) + 1e-3, "tanh": exp(clamp tanh(u / clamp)), "atan":
    exp(clamp 2/pi atan(u)). With standard normal z and "exp" it draws from Gaussians of given mean
    and log-scale; it inverts masked autoregressive flows (Papamakarios et al., 2017).
    """

    scale: str = "exp"
    clamp: float = 2.0
    inverse: bool = False

    differentiable = True

    def __post_init__(self) -> None:
        if self.scale not in ops.AFFINE_SCALES:
            raise ValueError(f"scale must be one of {tuple(ops.AFFINE_SCALES)}, got {self.scale!r}")
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
        """The map back: z_d from x_d."""
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

    def kernel(self) -> tuple[int, int, float, bool]:
        return ops.ELEMENT_MAPS["affine"], ops.AFFINE_SCALES[self.scale], self.clamp, self.inverse


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
