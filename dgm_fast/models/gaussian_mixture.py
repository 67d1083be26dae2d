"""Mixture of Gaussians as a density model."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from dgm_fast import functional
from dgm_fast.models import _em
from dgm_fast.models._em import EMResult, MixtureState
from dgm_fast.models._inputs import (
    check_choice,
    check_condition,
    check_count,
    check_finite,
    check_noise,
    flatten_data,
)
from dgm_fast.models._mixture import compute_dtype, draw_component, in_chunks

COVARIANCES = ("diagonal", "full")
INITS = ("kmeans++", "current")


class GaussianMixture(nn.Module):
    r"""Mixture of Gaussians with diagonal or full covariances.

    .. math:: p(x) = \sum_k w_k\, N(x; \mu_k, \Sigma_k), \qquad w = \mathrm{softmax}(\text{logits})

    Train it by :meth:`fit_em`, or by gradients of :meth:`loss` like any model; :meth:`initialize`
    puts the components into the data first, without which gradients seldom find all clusters.

    Data x is bool, integer or floating point, [B, D] or [B, *image_shape] with D entries per sample.
    Results are per sample and in nats. It is a density of continuous data: discrete data have to be
    dequantised, or it grows without bound where values repeat.

    Args:
        num_dims: D.
        num_components: K.
        covariance: "diagonal" or "full".

    The parameters are ``logits`` [K], ``means`` [K, D] and ``log_vars`` [K, D] ("diagonal") or
    ``factors`` [K, D, D] ("full"): of each covariance :math:`\Sigma = L L^T` the entries of L below
    the diagonal and the logarithms of those on it; what is above is not used. They start at equal
    weights, standard normal means and unit covariances.

    Raises:
        TypeError, ValueError: if an argument does not fit; the message names it.

    Source: Bishop, "Pattern Recognition and Machine Learning" (2006), section 9.2.
    """

    def __init__(self, num_dims: int, num_components: int, *, covariance: str = "diagonal") -> None:
        super().__init__()
        check_count("num_dims", num_dims)
        check_count("num_components", num_components)
        check_choice("covariance", covariance, COVARIANCES)
        self.num_dims = num_dims
        self.num_components = num_components
        self.covariance = covariance
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.means = nn.Parameter(torch.randn(num_components, num_dims))
        if covariance == "diagonal":
            self.log_vars = nn.Parameter(torch.zeros(num_components, num_dims))
        else:
            self.factors = nn.Parameter(torch.zeros(num_components, num_dims, num_dims))

    @property
    def weights(self) -> Tensor:
        """Probabilities of the components, [K]."""
        return torch.softmax(self.logits, 0)

    @property
    def scale_tril(self) -> Tensor:
        """Lower-triangular factors L of the covariances L L^T, [K, D, D]."""
        if self.covariance == "diagonal":
            return torch.diag_embed(torch.exp(0.5 * self.log_vars))
        return self.factors.tril(-1) + torch.diag_embed(self.factors.diagonal(dim1=1, dim2=2).exp())

    @property
    def covariances(self) -> Tensor:
        """Variances [K, D] ("diagonal") or covariance matrices [K, D, D] ("full")."""
        if self.covariance == "diagonal":
            return torch.exp(self.log_vars)
        lower = self.scale_tril
        return lower @ lower.mT

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), [B], differentiable in x and the parameters."""
        x = self._input(x)
        if self.covariance == "diagonal":
            return functional.gaussian_mixture_log_prob(x, self.means, self.log_vars, self.logits)

        def chunk(x: Tensor) -> Tensor:
            joint = self._component_log_prob(x) + self._log_weights()
            return functional.log_mean_exp(joint, 1) + math.log(self.num_components)

        return self._evaluate(chunk, x)

    def component_log_prob(self, x: Tensor) -> Tensor:
        """log p(x | k) of every component, [B, K], differentiable in x and the parameters."""
        return self._evaluate(self._component_log_prob, self._input(x))

    def bits_per_dim(self, x: Tensor) -> Tensor:
        """-log p(x) / (D log 2), [B] in bits per dimension."""
        return self.log_prob(x) / (-self.num_dims * math.log(2.0))

    def loss(self, x: Tensor) -> Tensor:
        """Negative log-likelihood averaged over the batch, a scalar in nats."""
        return -self.log_prob(x).mean()

    def forward(self, x: Tensor) -> Tensor:
        """The :meth:`loss`, for wrappers that call ``forward`` (data parallelism)."""
        return self.loss(x)

    @torch.no_grad()
    def responsibilities(self, x: Tensor) -> Tensor:
        """Probability of each component given x, [B, K], without gradients."""
        log_weights = self._log_weights()
        return self._evaluate(
            lambda x: torch.softmax(self._component_log_prob(x) + log_weights, 1), self._input(x)
        )

    def predict(self, x: Tensor) -> Tensor:
        """The most probable component of each row, int64 [B]."""
        return self.responsibilities(x).argmax(1)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        conditioned_on: tuple[Tensor, Tensor] | None = None,
        noise: tuple[Tensor, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        r"""n draws x ~ p(x), [n, D], without gradients.

        Args:
            n: how many.
            conditioned_on: the pair (values, given), each [D] or [n, D], ``given`` boolean: draws come
                from p(missing | given), a mixture of Gaussians again, and hold the values where
                ``given`` is True. Values elsewhere do not matter and may be NaN.
            noise: the pair (uniforms in [0, 1) [n], standard normals [n, D]). The component is drawn
                by inverting its cumulative weights, given the values if there are any; entry d of a
                row is missing or else its normal is not used.
            generator: source of the noise; the uniforms are drawn first.

        Raises:
            TypeError: if an argument has the wrong type.
            ValueError: if shapes or devices do not match, or a given value is not finite.
        """
        check_count("n", n)
        like, dtype = self.means, compute_dtype(self.means)
        if noise is None:
            uniforms = torch.rand(n, dtype=dtype, device=like.device, generator=generator)
            shape = (n, self.num_dims)
            eps = torch.randn(shape, dtype=dtype, device=like.device, generator=generator)
        else:
            if not isinstance(noise, tuple | list) or len(noise) != 2:
                raise TypeError("noise must be a pair (uniforms [n], standard normals [n, D])")
            uniforms = check_noise(noise[0], (n,), like, "noise of the component")
            eps = check_noise(noise[1], (n, self.num_dims), like, "noise of x").to(dtype)
        if conditioned_on is None:
            component = draw_component(self._log_weights(), uniforms)
            return self._draw(component, eps).to(like.dtype)
        values, given = check_condition(conditioned_on, (n, self.num_dims), like)
        check_finite(values)
        values = values.to(like.dtype)
        out = torch.empty_like(eps)
        # Rows with the same entries given share their matrices.
        patterns, pattern = torch.unique(given, dim=0, return_inverse=True)
        for i, mask in enumerate(patterns):
            rows = (pattern == i).nonzero().squeeze(1)
            out[rows] = self._draw_given(
                values[rows].to(dtype), mask, uniforms[rows].to(dtype), eps[rows]
            )
        return torch.where(given, values, out.to(like.dtype))

    @torch.no_grad()
    def initialize(
        self,
        x: Tensor,
        *,
        min_variance: float = 1e-6,
        generator: torch.Generator | None = None,
    ) -> None:
        """Put the components on clusters around k-means++ centres, with one pooled covariance.

        Args:
            x: data, at least K rows.
            min_variance: floor of the variances (or of the eigenvalues of a covariance).
            generator: source of the centres.
        """
        x = self._training_rows(x, min_variance)
        self._set_state(self._initial_state(x, min_variance, generator))

    @torch.no_grad()
    def fit_em(
        self,
        x: Tensor,
        *,
        max_iterations: int = 100,
        tolerance: float = 1e-4,
        min_variance: float = 1e-6,
        init: str = "kmeans++",
        generator: torch.Generator | None = None,
    ) -> EMResult:
        """Maximise the likelihood of x by expectation-maximisation.

        Iterates in float64 over chunks of rows: memory beside x does not grow with B K. No iteration
        lowers the log-likelihood. A component that no longer explains any row is moved to the row that
        is explained least where that raises the log-likelihood, and stays without weight otherwise.

        Args:
            x: data, at least K rows.
            max_iterations: at most so many.
            tolerance: stop when the mean log-likelihood of a row gains less, in nats.
            min_variance: floor of the variances (or of the eigenvalues of a covariance), in units of x
                squared: without one the likelihood of a component that shrinks onto a row is unbounded.
            init: "kmeans++" as :meth:`initialize`, or "current" to go on from the parameters.
            generator: source of the centres.

        Returns:
            Iterations, log-likelihoods and whether the tolerance was reached.

        Source: Dempster, Laird, Rubin, "Maximum Likelihood from Incomplete Data via the EM Algorithm"
        (1977).
        """
        check_count("max_iterations", max_iterations)
        if not tolerance >= 0:
            raise ValueError(f"tolerance must be at least 0, got {tolerance}")
        check_choice("init", init, INITS)
        x = self._training_rows(x, min_variance)
        state = (
            self._state() if init == "current" else self._initial_state(x, min_variance, generator)
        )
        state, result = _em.fit(
            x,
            state,
            max_iterations=max_iterations,
            tolerance=tolerance,
            min_variance=min_variance,
        )
        self._set_state(state)
        return result

    @torch.no_grad()
    def em_step(self, x: Tensor, *, min_variance: float = 1e-6) -> Tensor:
        """One iteration of EM from the current parameters, for training loops of one's own.

        Returns:
            Mean log-likelihood of a row before the update, a float64 scalar in nats.
        """
        x = self._training_rows(x, min_variance)
        state = self._state()
        statistics = _em.expectation(x, state)
        state, _ = _em.maximization(x, state, statistics, min_variance)
        self._set_state(state)
        return statistics.log_likelihood

    def _log_weights(self) -> Tensor:
        return torch.log_softmax(self.logits.to(compute_dtype(self.logits)), 0)

    def _component_log_prob(self, x: Tensor) -> Tensor:
        if self.covariance == "diagonal":
            return functional.gaussian_log_prob(
                x.unsqueeze(1), self.means.unsqueeze(0), self.log_vars.unsqueeze(0)
            )
        # Matrix decompositions know no reduced precision.
        dtype = torch.promote_types(compute_dtype(self.means), x.dtype)
        return _em.full_log_prob(x.to(dtype), self.means.to(dtype), self.scale_tril.to(dtype))

    def _evaluate(self, call: Any, x: Tensor) -> Tensor:
        """``call`` on x, in chunks where no graph is kept."""
        if torch.is_grad_enabled():
            return call(x)
        return in_chunks(call, x, self.num_components * self.num_dims)

    def _input(self, x: Tensor, name: str = "x") -> Tensor:
        x = flatten_data(x, self.num_dims, self.means.device, name)
        if not x.dtype.is_floating_point:
            return x.to(self.means.dtype)
        # float64 data must not make a float32 model's log-density float64.
        return x.float() if x.dtype == torch.float64 != self.means.dtype else x

    def _training_rows(self, x: Tensor, min_variance: float) -> Tensor:
        if not (math.isfinite(min_variance) and min_variance > 0):
            raise ValueError(f"min_variance must be positive and finite, got {min_variance}")
        x = flatten_data(x, self.num_dims, self.means.device)
        if len(x) < self.num_components:
            raise ValueError(
                f"x must have at least num_components = {self.num_components} rows, got {len(x)}"
            )
        if not bool(torch.isfinite(x).all()):
            raise ValueError("x must be finite")
        return x

    def _initial_state(
        self, x: Tensor, min_variance: float, generator: torch.Generator | None
    ) -> MixtureState:
        return _em.initial_state(
            x,
            self.num_components,
            full=self.covariance == "full",
            min_variance=min_variance,
            generator=generator,
        )

    def _state(self) -> MixtureState:
        spread = self.log_vars if self.covariance == "diagonal" else self.scale_tril
        return MixtureState(
            torch.log_softmax(self.logits.detach().double(), 0),
            self.means.detach().double(),
            spread.detach().double(),
        )

    def _set_state(self, state: MixtureState) -> None:
        self.logits.copy_(state.log_weights)
        self.means.copy_(state.means)
        if self.covariance == "diagonal":
            self.log_vars.copy_(state.spread)
            return
        diagonal = state.spread.diagonal(dim1=1, dim2=2)
        self.factors.copy_(state.spread.tril(-1) + torch.diag_embed(diagonal.log()))

    def _draw(self, component: Tensor, eps: Tensor) -> Tensor:
        """mean + L eps of each row's component, [n, D] in the dtype of eps."""
        mean = self.means.to(eps.dtype)[component]
        if self.covariance == "diagonal":
            return mean + torch.exp(0.5 * self.log_vars.to(eps.dtype))[component] * eps
        lower = self.scale_tril.to(eps.dtype)
        # By component: [n, D, D] would be far larger than all factors.
        for k in component.unique().tolist():
            rows = (component == k).nonzero().squeeze(1)
            mean[rows] += eps[rows] @ lower[k].T
        return mean

    def _draw_given(self, values: Tensor, given: Tensor, uniforms: Tensor, eps: Tensor) -> Tensor:
        r"""Rows from p(missing | given) with the same entries ``given`` [D] in all of them.

        With the given entries first, the triangular factor of a component's covariance is
        :math:`[[A, 0], [B, C]]`, so that :math:`y = A^{-1}(x_g - \mu_g)` gives the density of
        what is given, and :math:`x_m = \mu_m + B y + C \epsilon`.
        """
        dtype = values.dtype
        known, missing = given.nonzero().squeeze(1), (~given).nonzero().squeeze(1)
        means, log_weights = self.means.to(dtype), self._log_weights().to(dtype)
        out = values.clone()
        if self.covariance == "diagonal":
            log_vars = self.log_vars.to(dtype)

            def posterior(rows: Tensor) -> Tensor:  # [n, g] -> [n, K]
                return log_weights + functional.gaussian_log_prob(
                    rows.unsqueeze(1), means[:, known].unsqueeze(0), log_vars[:, known].unsqueeze(0)
                )

            joint = in_chunks(posterior, values[:, known], means.numel())
            component = draw_component(joint, uniforms)
            scale = torch.exp(0.5 * log_vars[component][:, missing])
            out[:, missing] = means[component][:, missing] + scale * eps[:, missing]
            return out
        lower = _em.triangular(self.scale_tril.to(dtype)[:, torch.cat([known, missing])])
        count = len(known)
        first, below, last = (
            lower[:, :count, :count],
            lower[:, count:, :count],
            lower[:, count:, count:],
        )
        given_means = means[:, known]
        joint = in_chunks(
            lambda rows: log_weights + _em.full_log_prob(rows, given_means, first),
            values[:, known],
            means.numel(),
        )
        component = draw_component(joint, uniforms)
        for k in component.unique().tolist():
            rows = (component == k).nonzero().squeeze(1)
            diff = values[rows][:, known] - given_means[k]
            y = torch.linalg.solve_triangular(first[k], diff.T, upper=False).T  # [n, g]
            drawn = means[k, missing] + y @ below[k].T + eps[rows][:, missing] @ last[k].T
            out[rows.unsqueeze(1), missing] = drawn
        return out
