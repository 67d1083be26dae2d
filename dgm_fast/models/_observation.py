"""Observation models p(x | z): what the decoder network's output means for each likelihood."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dgm_fast import functional
from dgm_fast.models._inputs import check_choice, check_count

DecoderOut = Tensor | tuple[Tensor, Tensor]

LIKELIHOODS = ("bernoulli", "gaussian", "categorical")
DECODER_VARIANCES = ("unit", "shared", "full")
FUSED_HEADS = ("bernoulli", "categorical")
NO_FUSED_HEAD = (
    "fused_head=True is for the Bernoulli and the categorical likelihood: no op joins a linear "
    "layer with the {likelihood} likelihood"
)

# Output biases start no further out than the logit of this frequency: a pixel that is never on in
# the training data must not start with an infinite loss.
MIN_FREQUENCY = 1e-3


def _compute(t: Tensor) -> Tensor:
    """Reduced precision as float32: probabilities are compared with uniforms of that precision."""
    return t if t.dtype == torch.float64 else t.float()


class Observation(nn.Module):
    """p(x | z) over ``num_dims`` dimensions; ``out_features`` numbers per sample parametrise it."""

    likelihood: str
    num_dims: int
    out_features: int

    def encoder_input(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Data [B, D] as the encoder network sees it."""
        return x.to(dtype)

    def decoder_out(self, raw: Any, lead: tuple[int, ...]) -> DecoderOut:
        """Output of the decoder network for N = prod(lead) latents in the functional layout."""
        return self._flat(raw, self.out_features, lead).reshape(*lead, self.num_dims)

    def log_prob(self, x: Tensor, out: DecoderOut) -> Tensor:
        """log p(x | z) in nats: x [B, D], outputs of z [B, L] or [B, K, L] -> [B] or [B, K]."""
        raise NotImplementedError

    def linear_log_prob(self, x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """:meth:`log_prob` of the outputs weight h + bias, h [B, H] or [B, K, H], without them."""
        raise ValueError(NO_FUSED_HEAD.format(likelihood=self.likelihood))

    def mean(self, out: DecoderOut) -> Tensor:
        """The point that stands for p(x | z)."""
        raise NotImplementedError

    def draw_noise(
        self, shape: tuple[int, int], like: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """The noise [n, D] that :meth:`sample` consumes, for a model like ``like``."""
        dtype = _compute(like).dtype
        return torch.rand(shape, dtype=dtype, device=like.device, generator=generator)

    def sample(self, out: DecoderOut, noise: Tensor) -> Tensor:
        """x ~ p(x | z), a deterministic function of the noise."""
        raise NotImplementedError

    def output_bias(self, data_mean: Tensor) -> Tensor:
        """Bias [out_features] of a decoder that gives the data's marginals at zero weights."""
        raise NotImplementedError

    def _flat(self, raw: Any, features: int, lead: tuple[int, ...]) -> Tensor:
        count = math.prod(lead)
        if not isinstance(raw, Tensor):
            raise TypeError(
                f"decoder must return a tensor for the {self.likelihood} likelihood, "
                f"got {type(raw).__name__}"
            )
        if raw.ndim < 2 or raw.shape[0] != count or math.prod(raw.shape[1:]) != features:
            raise ValueError(
                f"decoder must return [N, {features}] (or [N, ...] with as many entries) for "
                f"N = {count} latents, got {tuple(raw.shape)}"
            )
        return raw

    def _marginal(self, data_mean: Tensor, entries: int) -> Tensor:
        if data_mean.numel() != entries:
            raise ValueError(
                f"data_mean must have {entries} entries for the {self.likelihood} likelihood, "
                f"got shape {tuple(data_mean.shape)}"
            )
        return data_mean.detach().reshape(-1)


class BernoulliObservation(Observation):
    """Independent Bernoulli variables; the decoder gives logits [N, D]."""

    likelihood = "bernoulli"

    def __init__(self, num_dims: int) -> None:
        super().__init__()
        self.num_dims = self.out_features = num_dims

    def log_prob(self, x: Tensor, out: DecoderOut) -> Tensor:
        assert isinstance(out, Tensor)
        return functional.bernoulli_log_prob(out, x.unsqueeze(1) if out.ndim == 3 else x)

    def linear_log_prob(self, x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = x.unsqueeze(1) if h.ndim == 3 else x
        return functional.linear_bernoulli_log_prob(h, weight, bias, x)

    def mean(self, out: DecoderOut) -> Tensor:
        assert isinstance(out, Tensor)
        return torch.sigmoid(out)

    def sample(self, out: DecoderOut, noise: Tensor) -> Tensor:
        assert isinstance(out, Tensor)
        return (noise < torch.sigmoid(_compute(out))).to(out.dtype)

    def output_bias(self, data_mean: Tensor) -> Tensor:
        mean = _compute(self._marginal(data_mean, self.num_dims))
        return torch.logit(mean, eps=MIN_FREQUENCY)


class GaussianObservation(Observation):
    """Independent Gaussian variables with unit, one shared learned, or decoded variances.

    The decoder gives means [N, D]; with ``variance="full"`` means and log-variances: [N, 2 D]
    (means first) or a pair of [N, D].
    """

    likelihood = "gaussian"

    def __init__(self, num_dims: int, variance: str) -> None:
        super().__init__()
        self.num_dims = num_dims
        self.variance = variance
        self.out_features = 2 * num_dims if variance == "full" else num_dims
        if variance == "shared":
            self.log_var = nn.Parameter(torch.zeros(()))

    def decoder_out(self, raw: Any, lead: tuple[int, ...]) -> DecoderOut:
        if self.variance != "full":
            mean = self._flat(raw, self.num_dims, lead).reshape(*lead, self.num_dims)
            return mean if self.variance == "unit" else (mean, self.log_var)
        if isinstance(raw, tuple | list):
            if len(raw) != 2:
                raise ValueError(
                    f"decoder must return a pair (mean, log_var), got {len(raw)} entries"
                )
            mean, log_var = (self._flat(part, self.num_dims, lead) for part in raw)
        else:
            flat = self._flat(raw, self.out_features, lead)
            mean, log_var = flat.reshape(math.prod(lead), 2, self.num_dims).unbind(1)
        return mean.reshape(*lead, self.num_dims), log_var.reshape(*lead, self.num_dims)

    def log_prob(self, x: Tensor, out: DecoderOut) -> Tensor:
        mean, log_var = out if isinstance(out, tuple) else (out, None)
        return functional.gaussian_log_prob(x.unsqueeze(1) if mean.ndim == 3 else x, mean, log_var)

    def mean(self, out: DecoderOut) -> Tensor:
        return out[0] if isinstance(out, tuple) else out

    def draw_noise(
        self, shape: tuple[int, int], like: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        return torch.randn(shape, dtype=like.dtype, device=like.device, generator=generator)

    def sample(self, out: DecoderOut, noise: Tensor) -> Tensor:
        mean, log_var = out if isinstance(out, tuple) else (out, None)
        if log_var is not None:
            noise = noise * torch.exp(0.5 * log_var)
        return mean + noise.to(mean.dtype)

    def output_bias(self, data_mean: Tensor) -> Tensor:
        mean = _compute(self._marginal(data_mean, self.num_dims))
        return torch.cat([mean, torch.zeros_like(mean)]) if self.variance == "full" else mean


class CategoricalObservation(Observation):
    """Independent categorical variables; the decoder gives logits [N, C * D], class-major."""

    likelihood = "categorical"

    def __init__(self, num_dims: int, num_classes: int) -> None:
        super().__init__()
        self.num_dims = num_dims
        self.num_classes = num_classes
        self.out_features = num_classes * num_dims

    def encoder_input(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype) / (self.num_classes - 1)

    def decoder_out(self, raw: Any, lead: tuple[int, ...]) -> DecoderOut:
        flat = self._flat(raw, self.out_features, lead)
        return flat.reshape(*lead, self.num_classes, self.num_dims)

    def log_prob(self, x: Tensor, out: DecoderOut) -> Tensor:
        assert isinstance(out, Tensor)
        if out.ndim == 4:
            x = x.unsqueeze(1)
        return functional.categorical_log_prob(out, x, class_dim=-2)

    def linear_log_prob(self, x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = x.unsqueeze(1) if h.ndim == 3 else x
        return functional.linear_categorical_log_prob(
            h, weight, bias, x, num_classes=self.num_classes, packing="class"
        )

    def mean(self, out: DecoderOut) -> Tensor:
        assert isinstance(out, Tensor)
        return out.argmax(-2)

    def sample(self, out: DecoderOut, noise: Tensor) -> Tensor:
        assert isinstance(out, Tensor)
        cdf = torch.softmax(_compute(out), -2).cumsum(-2)
        # Scaled by the rounded total, so that the last class is never drawn for its rounding error.
        level = (noise * cdf[..., -1, :]).unsqueeze(-2)
        return (cdf <= level).sum(-2).clamp_(max=self.num_classes - 1)

    def output_bias(self, data_mean: Tensor) -> Tensor:
        frequency = _compute(self._marginal(data_mean, self.out_features))
        return frequency.clamp(min=MIN_FREQUENCY).log()


def make_observation(
    likelihood: str, num_dims: int, num_classes: int | None, decoder_variance: str
) -> Observation:
    check_choice("likelihood", likelihood, LIKELIHOODS)
    check_choice("decoder_variance", decoder_variance, DECODER_VARIANCES)
    if likelihood != "gaussian" and decoder_variance != "unit":
        raise ValueError(
            f"decoder_variance={decoder_variance!r} is for the Gaussian likelihood, "
            f"got likelihood={likelihood!r}"
        )
    if likelihood == "categorical":
        if num_classes is None:
            raise ValueError("num_classes is missing: the categorical likelihood needs it")
        check_count("num_classes", num_classes, at_least=2)
        return CategoricalObservation(num_dims, num_classes)
    if num_classes is not None:
        raise ValueError(
            f"num_classes is for the categorical likelihood, got likelihood={likelihood!r}"
        )
    if likelihood == "gaussian":
        return GaussianObservation(num_dims, decoder_variance)
    return BernoulliObservation(num_dims)
