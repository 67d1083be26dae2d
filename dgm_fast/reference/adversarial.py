"""Reference formulas of adversarial training: losses, penalties, activations.

Every loss is the batch mean of one elementwise term over real outputs plus that of another over fake
outputs; ``TERMS`` names them. The rows of f-GAN come in two terms each, the output activation g_f(v) and
the conjugate composed with it, f*(g_f(v)) (Nowozin et al., "f-GAN", 2016, tables 2 and 6), in forms that
neither cancel nor overflow.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dgm_fast.reference._common import compute_dtype

# From here on exponentials continue along their tangent: e^64 is 6e27, so that the value at |v| = 1e4 and a
# sum over a batch stay finite in float32, and the gradient keeps its sign. No density ratio comes near it.
EXP_LIMIT = 64.0
# Beyond it softplus(-v) = e^-v in float64.
_TAIL = 40.0
_NEWTON_STEPS = 6
_LOG_2 = math.log(2.0)

DIVERGENCES = (
    "total_variation",
    "kl",
    "reverse_kl",
    "pearson",
    "neyman",
    "squared_hellinger",
    "jeffrey",
    "jensen_shannon",
    "weighted_jensen_shannon",
    "gan",
    "alpha",
)
TERMS = (
    "identity",
    "softplus",
    "softplus_negative",
    "hinge_real",
    "hinge_fake",
    "square_to_one",
    "square",
    *(f"{name}.activation" for name in DIVERGENCES),
    *(f"{name}.conjugate" for name in DIVERGENCES),
)

# kind -> (term of real outputs, term of fake outputs) of the discriminator's loss, each with its sign.
Term = tuple[int, str]
_LOGISTIC: tuple[Term, Term] = ((1, "softplus_negative"), (1, "softplus"))
DISCRIMINATOR_TERMS: dict[str, tuple[Term, Term]] = {
    "minimax": _LOGISTIC,
    "non_saturating": _LOGISTIC,
    "kl": _LOGISTIC,
    "wasserstein": ((-1, "identity"), (1, "identity")),
    "hinge": ((1, "hinge_real"), (1, "hinge_fake")),
    "least_squares": ((1, "square_to_one"), (1, "square")),
}
GENERATOR_TERMS: dict[str, Term] = {
    "minimax": (-1, "softplus"),
    "non_saturating": (1, "softplus_negative"),
    # softplus(-v) - softplus(v) = -v: the sum of the two above.
    "kl": (-1, "identity"),
    "wasserstein": (-1, "identity"),
    "hinge": (-1, "identity"),
    "least_squares": (1, "square_to_one"),
}


def f_divergence_terms(divergence: str) -> tuple[Term, Term]:
    """Terms of real and fake outputs of the discriminator's loss -E g(v_real) + E f*(g(v_fake))."""
    return (-1, f"{divergence}.activation"), (1, f"{divergence}.conjugate")


def f_divergence_generator_term(divergence: str, form: str) -> Term:
    return (-1, f"{divergence}.{'conjugate' if form == 'theoretical' else 'activation'}")


def softplus(v: Tensor) -> Tensor:
    """log(1 + e^v), to full precision (``F.softplus`` turns linear at 20)."""
    return -F.logsigmoid(-v)


def tangent_exp(v: Tensor) -> Tensor:
    """e^v, along its tangent beyond ``EXP_LIMIT``."""
    beyond = math.exp(EXP_LIMIT) * (1.0 + (v - EXP_LIMIT))
    return torch.where(v > EXP_LIMIT, beyond, v.clamp(max=EXP_LIMIT).exp())


def tangent_expm1(v: Tensor) -> Tensor:
    """e^v - 1, by the same rule."""
    beyond = math.exp(EXP_LIMIT) * (1.0 + (v - EXP_LIMIT))
    return torch.where(v > EXP_LIMIT, beyond, v.clamp(max=EXP_LIMIT).expm1())


def _jeffrey_log_ratio(v: Tensor) -> Tensor:
    """s with s - expm1(-s) = v: the logarithm of the density ratio to which v belongs.

    By Newton's method on y = -s, from above, where the convex expm1(y) + y + v falls monotonically to its
    root. The last two steps are differentiated: at the root they have the derivatives of the implicit
    function up to the third.
    """
    with torch.no_grad():
        a = 1.0 - v
        y = torch.where(a > 1.0, a.clamp(min=1.0).log(), a)
        for _ in range(_NEWTON_STEPS):
            e = y.expm1()
            y = y - (e + y + v) / (e + 2.0)
    for _ in range(2):
        e = y.expm1()
        y = y - (e + y + v) / (e + 2.0)
    return -y


def _power_of_softplus(v: Tensor, alpha: float) -> Tensor:
    """((1 - alpha) softplus(-v))^(alpha / (alpha - 1)), alpha < 1."""
    exponent = alpha / (alpha - 1.0)
    near = v.clamp(max=_TAIL)
    log_base = torch.where(v > _TAIL, -v, softplus(-near).log()) + math.log1p(-alpha)
    return tangent_exp(exponent * log_base)


def _alpha_conjugate(v: Tensor, alpha: float) -> Tensor:
    if alpha < 1.0:
        return (_power_of_softplus(v, alpha) - 1.0) / alpha
    exponent = alpha / (alpha - 1.0)
    base = v * (alpha - 1.0) + 1.0
    outside = base <= 0.0  # NaN is not, and stays
    safe = torch.where(outside, 1.0, base)
    log_power = exponent * safe.log()
    beyond = math.exp(EXP_LIMIT) * (1.0 + (log_power - EXP_LIMIT))
    bounded = torch.where(log_power > EXP_LIMIT, 1.0, safe)
    power = torch.where(log_power > EXP_LIMIT, beyond, bounded.pow(exponent))
    return (torch.where(outside, 0.0, power) - 1.0) / alpha


def _weighted_js_conjugate(v: Tensor, pi: float) -> Tensor:
    near = v.clamp(max=_TAIL)
    log_rest = torch.where(
        v > _TAIL, -v - math.log(pi), torch.log(-torch.expm1(-softplus(-near) / pi))
    )
    return (1.0 - pi) * (math.log1p(-pi) - log_rest)


def _activation(divergence: str, v: Tensor, alpha: float, pi: float) -> Tensor:
    """g_f(v)."""
    match divergence:
        case "total_variation":
            return 0.5 * v.tanh()
        case "kl" | "pearson" | "jeffrey":
            return v.clone()
        case "reverse_kl":
            return -tangent_exp(-v)
        case "neyman" | "squared_hellinger":
            return -tangent_expm1(-v)
        case "jensen_shannon":
            return _LOG_2 - softplus(-v)
        case "weighted_jensen_shannon":
            return -pi * math.log(pi) - softplus(-v)
        case "gan":
            return -softplus(-v)
        case _:
            return v.clone() if alpha > 1.0 else 1.0 / (1.0 - alpha) - softplus(-v)


def _conjugate(divergence: str, v: Tensor, alpha: float, pi: float) -> Tensor:
    """f*(g_f(v))."""
    match divergence:
        case "total_variation":
            return 0.5 * v.tanh()
        case "kl":
            return tangent_exp(v - 1.0)
        case "reverse_kl":
            return v - 1.0
        case "pearson":
            # Density ratios are not negative: below v = -2 the supremum is at u = 0.
            return torch.where(v <= -2.0, -1.0, 0.25 * v * v + v)
        case "neyman":
            return -2.0 * tangent_expm1(-0.5 * v)
        case "squared_hellinger":
            return tangent_expm1(v)
        case "jeffrey":
            s = _jeffrey_log_ratio(v)
            return tangent_expm1(s) + s
        case "jensen_shannon":
            return softplus(v) - _LOG_2
        case "weighted_jensen_shannon":
            return _weighted_js_conjugate(v, pi)
        case "gan":
            return softplus(v)
        case _:
            return _alpha_conjugate(v, alpha)


_ELEMENTARY: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda v: v,
    "softplus": softplus,
    "softplus_negative": lambda v: softplus(-v),
    "hinge_real": lambda v: F.relu(1.0 - v),
    "hinge_fake": lambda v: F.relu(1.0 + v),
    "square_to_one": lambda v: 0.5 * (v - 1.0).square(),
    "square": lambda v: 0.5 * v.square(),
}


def loss_term(name: str, v: Tensor, alpha: float = 2.0, pi: float = 0.5) -> Tensor:
    """One of ``TERMS``, element by element."""
    if name in _ELEMENTARY:
        return _ELEMENTARY[name](v)
    divergence, _, part = name.partition(".")
    return (_activation if part == "activation" else _conjugate)(divergence, v, alpha, pi)


def adversarial_loss(
    fake: Tensor,
    real: Tensor | None,
    fake_term: Term,
    real_term: Term | None = None,
    alpha: float = 2.0,
    pi: float = 0.5,
) -> Tensor:
    """Mean of the term of the fake outputs, plus that of the real ones."""
    dtype = compute_dtype(fake, real)
    sign, name = fake_term
    loss = sign * loss_term(name, fake.to(dtype), alpha, pi).mean()
    if real is not None and real_term is not None:
        sign, name = real_term
        loss = loss + sign * loss_term(name, real.to(dtype), alpha, pi).mean()
    return loss


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, kind: str) -> Tensor:
    real_term, fake_term = DISCRIMINATOR_TERMS[kind]
    return adversarial_loss(fake_logits, real_logits, fake_term, real_term)


def generator_loss(fake_logits: Tensor, kind: str) -> Tensor:
    return adversarial_loss(fake_logits, None, GENERATOR_TERMS[kind])


def f_divergence_loss(
    real_out: Tensor, fake_out: Tensor, divergence: str, *, alpha: float = 2.0, pi: float = 0.5
) -> Tensor:
    real_term, fake_term = f_divergence_terms(divergence)
    return adversarial_loss(fake_out, real_out, fake_term, real_term, alpha, pi)


def f_divergence_generator_loss(
    fake_out: Tensor,
    divergence: str,
    *,
    form: str = "theoretical",
    alpha: float = 2.0,
    pi: float = 0.5,
) -> Tensor:
    term = f_divergence_generator_term(divergence, form)
    return adversarial_loss(fake_out, None, term, None, alpha, pi)


def interpolate(real: Tensor, fake: Tensor, eps: Tensor) -> Tensor:
    """eps real + (1 - eps) fake, one eps a sample [B]. Of detached samples: a penalty's x is a leaf."""
    dtype = compute_dtype(real, fake, eps)
    eps = eps.to(dtype).reshape(-1, *(1,) * (real.ndim - 1))
    out = eps * real.detach().to(dtype) + (1.0 - eps) * fake.detach().to(dtype)
    return out.to(torch.promote_types(real.dtype, fake.dtype))


def norm_penalty(
    grad: Tensor, weight: float, center: float, one_sided: bool
) -> tuple[Tensor, Tensor]:
    """weight mean_i (||grad_i|| - center)^2, and the norms [B]; of zero gradient at zero norm.

    ``one_sided`` counts norms above the center only. At center 0 the square itself is summed.
    """
    rows = grad.to(compute_dtype(grad)).flatten(1)
    if center == 0.0:
        square = rows.square().sum(1)
        return weight * square.mean(), square.sqrt().detach()
    # vector_norm has the zero subgradient at 0, the root of a sum of squares NaN.
    norms = torch.linalg.vector_norm(rows, dim=1)
    excess = norms - center
    if one_sided:
        excess = F.relu(excess)
    return weight * excess.square().mean(), norms.detach()


def leaky_relu(x: Tensor, slope: float) -> Tensor:
    return F.leaky_relu(x, slope) if slope else F.relu(x)


def bias_leaky_relu(x: Tensor, bias: Tensor, slope: float) -> Tensor:
    """Leaky ReLU of x + bias, the bias along dimension 1."""
    return leaky_relu(x + bias.reshape(-1, *(1,) * (x.ndim - 2)), slope)
