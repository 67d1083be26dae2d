"""The adversarial models of the course: one class for each pair of losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dgm_fast import functional
from dgm_fast.models._adversarial import AdversarialModel


class GAN(AdversarialModel):
    """Minimax GAN: D maximises, and G minimises, E log D(x) + E log(1 - D(G(z))).

    Arguments are those of :class:`AdversarialModel`.

    Source: Goodfellow et al., "Generative adversarial nets" (2014), equation 1.
    """

    loss_kind = "minimax"

    def discriminator_loss(
        self, x: Tensor, labels: Tensor | None = None, *, noise: Tensor | None = None
    ) -> Tensor:
        real = self.normalize(x)
        labels = self._check_labels(labels, len(real))
        with torch.no_grad():
            fake = self._generate(len(real), labels, noise)
        return self._discriminator_loss(real, fake, labels)

    def generator_loss(
        self, n: int, labels: Tensor | None = None, *, noise: Tensor | None = None
    ) -> Tensor:
        if self.num_classes is not None and labels is None:
            labels = torch.randint(self.num_classes, (n,), device=self._anchor.device)
        labels = self._check_labels(labels, n)
        return self._generator_loss(self._logits(self._generate(n, labels, noise), labels))

    def _discriminator_loss(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> Tensor:
        # One pass over both: half the launches, and the same normalisation statistics' state.
        both = torch.cat([real, fake])
        doubled = None if labels is None else torch.cat([labels, labels])
        real_logits, fake_logits = self._logits(both, doubled).chunk(2)
        return self._discriminator_objective(real_logits, fake_logits)

    def _discriminator_objective(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return functional.discriminator_loss(real_logits, fake_logits, self.loss_kind)

    def _generator_loss(self, fake_logits: Tensor) -> Tensor:
        return functional.generator_loss(fake_logits, self.loss_kind)

    def _check_objectives(self) -> None:
        """Names and parameters are checked where they are used: now, rather than at the first step."""
        probe = torch.zeros(1)
        self._discriminator_objective(probe, probe)
        self._generator_loss(probe)


class NonSaturatingGAN(GAN):
    """GAN whose generator maximises E log D(G(z)), with gradients where D is sure.

    Source: Goodfellow et al. (2014), section 3.
    """

    loss_kind = "non_saturating"


class KLGAN(GAN):
    """GAN whose generator minimises the sum of the minimax and the non-saturating loss, E -logit D(G(z)).

    With the optimal discriminator this is KL(p_model || p_data).
    """

    loss_kind = "kl"


class ConditionalGAN(GAN):
    """Class-conditional GAN with a projection discriminator, D(x, y) = psi(phi(x)) + <e(y), phi(x)>.

    Args:
        num_classes: number of labels.
        loss_kind: of the logits: "non_saturating", "hinge" or any of
            :func:`dgm_fast.functional.discriminator_loss`.
        kwargs: of :class:`AdversarialModel`.

    Source: Miyato & Koyama, "cGANs with projection discriminator" (2018).
    """

    def __init__(
        self,
        generator: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        *,
        num_classes: int,
        loss_kind: str = "non_saturating",
        **kwargs: Any,
    ) -> None:
        super().__init__(generator, discriminator, num_classes=num_classes, **kwargs)
        self.loss_kind = loss_kind
        self._check_objectives()


class WGAN(GAN):
    """Wasserstein GAN with weight clipping: the critic's parameters stay in [-clip, clip].

    Args:
        clip: the bound.
        kwargs: of :class:`AdversarialModel`.

    Source: Arjovsky et al., "Wasserstein GAN" (2017), algorithm 1.
    """

    loss_kind = "wasserstein"
    num_critic_steps = 5

    def __init__(
        self,
        generator: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        *,
        clip: float = 0.01,
        **kwargs: Any,
    ) -> None:
        super().__init__(generator, discriminator, **kwargs)
        if not clip > 0:
            raise ValueError(f"clip must be positive, got {clip}")
        self.clip = clip
        self.after_discriminator_update()

    @torch.no_grad()
    def after_discriminator_update(self) -> None:
        for parameter in self.discriminator.parameters():
            parameter.clamp_(-self.clip, self.clip)


class WGANGP(GAN):
    """Wasserstein GAN with gradient penalty; loss and penalty in one ``functional.critic_loss``.

    Args:
        weight: of the penalty, lambda.
        method: of the penalty's computation.
        kwargs: of :class:`AdversarialModel`.

    Source: Gulrajani et al., "Improved training of Wasserstein GANs" (2017), algorithm 1.
    """

    loss_kind = "wasserstein"
    num_critic_steps = 5

    def __init__(
        self,
        generator: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        *,
        weight: float = 10.0,
        method: str = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(generator, discriminator, **kwargs)
        self.weight = weight
        self.method = method

    def _discriminator_loss(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> Tensor:
        return functional.critic_loss(
            self.discriminator,
            real,
            fake,
            kind="wasserstein",
            penalty="gp",
            weight=self.weight,
            labels=labels,
            method=self.method,
        )


class FGAN(GAN):
    """f-GAN: the discriminator's bound on D_f(P || Q), E g(v(x)) - E f*(g(v(G(z)))).

    Args:
        divergence: one of :func:`dgm_fast.functional.f_divergence_loss`.
        form: of the generator's loss: "theoretical", the bound itself, or "practical", -E g(v(G(z))).
        alpha, pi: parameters of the divergences that have one.
        kwargs: of :class:`AdversarialModel`.

    Source: Nowozin et al., "f-GAN" (2016), equation 6 and section 3.2.
    """

    def __init__(
        self,
        generator: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        *,
        divergence: str = "jensen_shannon",
        form: str = "practical",
        alpha: float = 2.0,
        pi: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(generator, discriminator, **kwargs)
        self.divergence = divergence
        self.form = form
        self.parameters_of_divergence = {"alpha": alpha, "pi": pi}
        self._check_objectives()

    def _discriminator_objective(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return functional.f_divergence_loss(
            real_logits, fake_logits, self.divergence, **self.parameters_of_divergence
        )

    def _generator_loss(self, fake_logits: Tensor) -> Tensor:
        return functional.f_divergence_generator_loss(
            fake_logits, self.divergence, form=self.form, **self.parameters_of_divergence
        )
