"""Real-valued neural autoregressive density estimator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dgm_fast import functional
from dgm_fast.models._autoregressive import AutoregressiveModel, Condition, real_data
from dgm_fast.models._inputs import check_choice, check_count, check_finite, flatten_data
from dgm_fast.models._mixture import compute_dtype
from dgm_fast.models.nade import fan_in_normal
from dgm_fast.reference import nade as formulas

MIXTURES = ("gaussian", "logistic")


class RNADE(AutoregressiveModel):
    r"""Neural autoregressive density estimator of real data: a mixture a dimension.

    .. math:: p(x_d \mid x_1 \dots x_{d-1}) = \sum_m \frac{w_{dm}}{s_{dm}}\,
        k\!\left(\frac{z_d - \mu_{dm}}{s_{dm}}\right) \frac{1}{\tau_d}, \qquad
        h_d = \sigma\Big(\rho_d \big(c + \sum_{k < d} W_{:,k}\, z_k\big)\Big), \quad
        z = \frac{x - \nu}{\tau}

    with weights w the softmax of ``V_logits`` h + ``b_logits``, means mu from ``V_means`` and ``b_means``,
    scales s the exponentials of ``V_log_scales`` h + ``b_log_scales``, and k the standard normal or the
    logistic density. rho, the learned ``activation_scale`` [D], keeps the hidden units out of saturation
    where many entries have been added up. nu and tau are the buffers ``location`` and ``scale`` [D], 0 and
    1 until :meth:`standardize` sets them: the network is made for entries of mean 0 and variance 1.

    Data x is bool, integer or floating point, [B, D] or [B, *image_shape]. Densities are those of x in its
    own units; they are differentiable in x. Discrete data have to be dequantised, or the density grows
    without bound where values repeat.

    Args:
        num_dims: D.
        hidden_size: H.
        num_mixtures: M, components a dimension.
        mixture: "gaussian" or "logistic".
        uniform_weights: all components weigh 1 / M.

    Noise of :meth:`sample` is [n, D, 2]: a uniform in [0, 1) for the component, and a standard normal
    ("gaussian") or a uniform in (0, 1) ("logistic") for the value.

    Weights start normal with variance 1 / fan-in, rho at 1 and biases at zero, but for those of the means,
    which start standard normal so that components differ, and those of the log-scales, which are shifted so
    that scales start near 1.

    Source: Uria, Murray and Larochelle, "RNADE: The real-valued neural autoregressive density-estimator"
    (2013), equations 3-9 and section 3.1.
    """

    location: Tensor
    scale: Tensor

    def __init__(
        self,
        num_dims: int,
        hidden_size: int,
        num_mixtures: int = 10,
        mixture: str = "gaussian",
        *,
        uniform_weights: bool = False,
    ) -> None:
        super().__init__()
        check_count("num_dims", num_dims)
        check_count("hidden_size", hidden_size)
        check_count("num_mixtures", num_mixtures)
        check_choice("mixture", mixture, MIXTURES)
        self.num_dims = num_dims
        self.hidden_size = hidden_size
        self.num_mixtures = num_mixtures
        self.mixture = mixture
        self.uniform_weights = uniform_weights
        self.W = fan_in_normal(hidden_size, num_dims, fan_in=num_dims)
        self.c = nn.Parameter(torch.zeros(hidden_size))
        self.activation_scale = nn.Parameter(torch.ones(num_dims))
        weights, biases = (num_dims, num_mixtures, hidden_size), (num_dims, num_mixtures)
        self.V_logits = None if uniform_weights else fan_in_normal(*weights, fan_in=hidden_size)
        self.b_logits = None if uniform_weights else nn.Parameter(torch.zeros(biases))
        self.V_means = fan_in_normal(*weights, fan_in=hidden_size)
        self.b_means = nn.Parameter(torch.randn(biases))
        self.V_log_scales = fan_in_normal(*weights, fan_in=hidden_size)
        self.b_log_scales = nn.Parameter(torch.zeros(biases))
        with torch.no_grad():
            # Hidden units start near one half; log-scales start at 0 with them.
            self.b_log_scales.copy_(-0.5 * self.V_log_scales.sum(-1))
        self.register_buffer("location", torch.zeros(num_dims))
        self.register_buffer("scale", torch.ones(num_dims))

    @torch.no_grad()
    def standardize(self, x: Tensor) -> None:
        """Set ``location`` and ``scale`` to the means and standard deviations of data x.

        A dimension that is constant in x keeps the scale 1.

        Raises:
            ValueError: if x has fewer than two rows or is not finite.
        """
        x = flatten_data(x, self.num_dims, self._anchor.device).double()
        if len(x) < 2 or not bool(torch.isfinite(x).all()):
            raise ValueError(f"x must be finite and have at least two rows, got {len(x)}")
        deviation = x.std(0)
        self.location.copy_(x.mean(0))
        self.scale.copy_(torch.where(deviation > 0, deviation, 1.0))

    def conditionals(
        self, x: Tensor, *, context: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Weight logits (None for equal weights), means and log-scales of all conditionals, [B, D, M] each.

        In the units of x, by the plain formula, which stores [B, D, H].
        """
        x = self._data(x)
        self._context(context, len(x))
        logits, means, log_scales = formulas.rnade_parameters(
            self._standard(x), **self._parameters_of_op()
        )
        scale = self.scale.to(means.dtype).unsqueeze(-1)
        return logits, means * scale + self.location.unsqueeze(-1), log_scales + scale.log()

    def _data(self, x: Tensor) -> Tensor:
        return real_data(super()._data(x), self._anchor)

    def _standard(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, compute_dtype(self._anchor))
        return (x.to(dtype) - self.location.to(dtype)) / self.scale.to(dtype)

    def _parameters_of_op(self) -> dict[str, Any]:
        return {
            "W": self.W,
            "c": self.c,
            "V_logits": self.V_logits,
            "b_logits": self.b_logits,
            "V_means": self.V_means,
            "b_means": self.b_means,
            "V_log_scales": self.V_log_scales,
            "b_log_scales": self.b_log_scales,
            "activation_scale": self.activation_scale,
        }

    def _log_prob(self, x: Tensor, context: Tensor | None) -> Tensor:
        log_prob = functional.rnade_log_prob(
            self._standard(x),
            **self._parameters_of_op(),
            mixture=self.mixture,
            uniform_weights=self.uniform_weights,
        )
        return log_prob - self.scale.to(log_prob.dtype).log().sum()

    def _sample(
        self,
        n: int,
        condition: Condition | None,
        context: Tensor | None,
        noise: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        standard = None
        if condition is not None:
            check_finite(condition[0])
            standard = (self._standard(real_data(condition[0], self._anchor)), condition[1])
        z = functional.rnade_sample(
            **self._parameters_of_op(),
            num_samples=n,
            mixture=self.mixture,
            uniform_weights=self.uniform_weights,
            conditioned_on=standard,
            generator=generator,
            noise=noise,
        )
        x = (z * self.scale.to(z.dtype) + self.location.to(z.dtype)).to(self._anchor.dtype)
        if condition is None:
            return x
        values, given = condition
        return torch.where(given, values.to(x.dtype), x)
