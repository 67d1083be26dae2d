"""The rivals: what a good PyTorch user writes for each op, without this library.

Where the reference formula pays for limits that few users think of (rows of -inf, cancellation near
the prior), these take the faster, usual form, so that a speed-up is not won against our own care.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


def bernoulli_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    dtype = _compute(logits)
    loss = F.binary_cross_entropy_with_logits(logits.to(dtype), x.to(dtype), reduction="none")
    return -loss.sum(-1)


def gaussian_log_prob(x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    dtype = _compute(mean)
    mean, log_var = mean.to(dtype), log_var.to(dtype)
    terms = log_var + (x - mean).square() * torch.exp(-log_var)
    return -0.5 * (terms.sum(-1) + terms.shape[-1] * LOG_2PI)


def unit_gaussian_log_prob(x: Tensor, mean: Tensor) -> Tensor:
    diff = x - mean.to(_compute(mean))
    return -0.5 * (diff.square().sum(-1) + diff.shape[-1] * LOG_2PI)


def categorical_log_prob(logits: Tensor, x: Tensor) -> Tensor:
    """logits [B, C, D], x [B, D] -> [B]."""
    return -F.cross_entropy(logits.to(_compute(logits)), x, reduction="none").sum(-1)


def masked_linear(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    """mask [out, in]: 0 and 1 in the weight's dtype, kept by the module."""
    return F.linear(x, weight * mask, bias)


def fvsbn(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    return bernoulli_log_prob(masked_linear(x.to(weight.dtype), weight, bias, mask), x)


def gaussian_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    dtype = _compute(mean)
    mean, log_var = mean.to(dtype), log_var.to(dtype)
    return 0.5 * (mean.square() + log_var.exp() - 1.0 - log_var).sum(-1)


def reparameterize(mean: Tensor, log_var: Tensor, eps: Tensor) -> Tensor:
    """mean, log_var [B, L], eps [B, K, L]."""
    return mean.unsqueeze(1) + torch.exp(0.5 * log_var).unsqueeze(1) * eps


def log_mean_exp(log_w: Tensor) -> Tensor:
    log_w = log_w.to(_compute(log_w))
    return torch.logsumexp(log_w, -1) - math.log(log_w.shape[-1])


def elbo(x: Tensor, logits: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    return bernoulli_log_prob(logits, x) - gaussian_kl(mean, log_var)


def iwae_bernoulli(x: Tensor, logits: Tensor, z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    target = x.unsqueeze(1).expand(logits.shape)
    return _bound(bernoulli_log_prob(logits, target), z, mean, log_var)


def iwae_gaussian(
    x: Tensor, out_mean: Tensor, out_log_var: Tensor, z: Tensor, mean: Tensor, log_var: Tensor
) -> Tensor:
    return _bound(gaussian_log_prob(x.unsqueeze(1), out_mean, out_log_var), z, mean, log_var)


def iwae_unit_gaussian(
    x: Tensor, out_mean: Tensor, z: Tensor, mean: Tensor, log_var: Tensor
) -> Tensor:
    return _bound(unit_gaussian_log_prob(x.unsqueeze(1), out_mean), z, mean, log_var)


def iwae_categorical(x: Tensor, logits: Tensor, z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """logits [B, K, C, D], x [B, D] -> [B]."""
    batch, samples, _, dims = logits.shape
    target = x.unsqueeze(1).expand(batch, samples, dims).flatten(0, 1)
    log_prob = categorical_log_prob(logits.flatten(0, 1), target)
    return _bound(log_prob.view(batch, samples), z, mean, log_var)


def _bound(log_likelihood: Tensor, z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    dtype = _compute(z)
    z, mean, log_var = z.to(dtype), mean.to(dtype).unsqueeze(1), log_var.to(dtype).unsqueeze(1)
    # log p(z) - log q(z | x): the constants L/2 log(2 pi) of both cancel.
    log_q = log_var + (z - mean).square() * torch.exp(-log_var)
    log_ratio = 0.5 * (log_q - z.square()).sum(-1)
    return log_mean_exp(log_likelihood + log_ratio)


def discretized_logistic_mixture(params: Tensor, x: Tensor) -> Tensor:
    """params [B, 10 M or 3 M, H, W] in channel-major packing, x [B, C, H, W] -> [B]."""
    batch, channels, height, width = x.shape
    params = params.to(_compute(params))
    mixtures = params.shape[1] // (10 if channels == 3 else 3)
    logits, rest = params[:, :mixtures], params[:, mixtures:]
    rest = rest.view(batch, channels, -1, mixtures, height, width)
    means, log_scales = rest[:, :, 0], rest[:, :, 1].clamp(min=-7.0)  # [B, C, M, H, W]
    x = x.unsqueeze(2)
    if channels == 3:
        weight = torch.tanh(rest[:, :, 2])
        red, green = x[:, 0], x[:, 1]
        means = torch.stack(
            [
                means[:, 0],
                means[:, 1] + weight[:, 0] * red,
                means[:, 2] + weight[:, 1] * red + weight[:, 2] * green,
            ],
            1,
        )
    centre = x - means
    inverse = torch.exp(-log_scales)
    plus, minus = inverse * (centre + 1 / 255), inverse * (centre - 1 / 255)
    middle = inverse * centre
    difference = torch.sigmoid(plus) - torch.sigmoid(minus)
    density = middle - log_scales - 2.0 * F.softplus(middle) - math.log(127.5)
    interior = torch.where(difference > 1e-5, difference.clamp(min=1e-12).log(), density)
    log_prob = torch.where(
        x < -0.999, F.logsigmoid(plus), torch.where(x > 0.999, F.logsigmoid(-minus), interior)
    )
    joint = log_prob.sum(1) + torch.log_softmax(logits, 1)
    return torch.logsumexp(joint, 1).sum((1, 2))


def gaussian_mixture(z: Tensor, means: Tensor, log_vars: Tensor, logits: Tensor) -> Tensor:
    """z [N, L], means and log_vars [K, L], logits [K] -> [N]; the square expanded into products."""
    inverse = torch.exp(-log_vars)  # [K, L]
    quadratic = z.square() @ inverse.T - 2.0 * (z @ (means * inverse).T)  # [N, K]
    constant = (means.square() * inverse + log_vars).sum(1) + z.shape[1] * LOG_2PI
    return torch.logsumexp(torch.log_softmax(logits, 0) - 0.5 * (quadratic + constant), 1)


def gaussian_mixture_broadcast(
    z: Tensor, means: Tensor, log_vars: Tensor, logits: Tensor
) -> Tensor:
    """The same with every difference [N, K, L] formed, as homework solutions do it."""
    scaled = (z.unsqueeze(1) - means).square() * torch.exp(-log_vars)
    log_prob = -0.5 * (scaled + log_vars + LOG_2PI).sum(-1)
    return torch.logsumexp(log_prob + torch.log_softmax(logits, 0), 1)


def linear_bernoulli(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """h [B, K, H], weight [D, H], bias [D], x [B, D] -> [B, K]."""
    logits = F.linear(h, weight, bias)
    return bernoulli_log_prob(logits, x.unsqueeze(1).expand(logits.shape))


def linear_categorical_pixels(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """h [B, H, Y, X], weight [C, H], bias [C], x [B, Y, X] -> [B]."""
    logits = F.conv2d(h, weight[:, :, None, None], bias)
    return -F.cross_entropy(logits.to(_compute(logits)), x, reduction="none").sum((1, 2))


def linear_categorical(h: Tensor, weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """h [N, H], weight [C D, H], bias [C D], x [N, D] -> [N]; the classes of an entry D rows apart."""
    return categorical_log_prob(F.linear(h, weight, bias).unflatten(-1, (-1, x.shape[-1])), x)


def nade(x: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor) -> Tensor:
    """x [B, D], W [H, D], c [H], V [D, H], b [D] -> [B]; all pre-activations by a cumulative sum."""
    steps = x.unsqueeze(-1) * W.t()  # [B, D, H]
    return bernoulli_log_prob((_nade_units(steps, c) * V).sum(-1) + b, x)


def nade_loop(x: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor) -> Tensor:
    """The same by the recurrence, a dimension at a time."""
    W, c, V, b = (t.to(_compute(t)) for t in (W, c, V, b))
    a = c.expand(len(x), -1)
    logits = []
    for d in range(x.shape[1]):
        logits.append(torch.sigmoid(a) @ V[d] + b[d])
        a = torch.addcmul(a, x[:, d : d + 1], W[:, d])
    return bernoulli_log_prob(torch.stack(logits, 1), x)


def nade_categorical(x: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor) -> Tensor:
    """x [B, D], W [H, D, C], c [H], V [D, C, H], b [D, C] -> [B]."""
    steps = W.permute(1, 2, 0)[torch.arange(x.shape[1], device=x.device), x]  # [B, D, H]
    units = _nade_units(steps, c)
    logits = torch.einsum("bdh,dch->bcd", units, V) + b.t()
    return categorical_log_prob(logits, x)


def rnade(
    x: Tensor,
    W: Tensor,
    c: Tensor,
    V_logits: Tensor,
    b_logits: Tensor,
    V_means: Tensor,
    b_means: Tensor,
    V_log_scales: Tensor,
    b_log_scales: Tensor,
) -> Tensor:
    """x [B, D], heads [D, M, H] and [D, M] -> [B]; Gaussian components."""
    steps = x.unsqueeze(-1) * W.t()
    units = _nade_units(steps, c)

    def head(weight: Tensor, bias: Tensor) -> Tensor:
        return torch.einsum("bdh,dmh->bdm", units, weight) + bias

    log_scales = head(V_log_scales, b_log_scales)
    scaled = (x.unsqueeze(-1) - head(V_means, b_means)) * torch.exp(-log_scales)
    log_prob = -0.5 * (scaled.square() + LOG_2PI) - log_scales
    weights = torch.log_softmax(head(V_logits, b_logits), -1)
    return torch.logsumexp(weights + log_prob, -1).sum(-1)


def nade_sample(W: Tensor, c: Tensor, V: Tensor, b: Tensor, noise: Tensor) -> Tensor:
    """noise [B, D] -> x [B, D], a dimension at a time."""
    a = c.expand(len(noise), -1)
    drawn = []
    for d in range(noise.shape[1]):
        probability = torch.sigmoid(torch.sigmoid(a) @ V[d] + b[d])
        drawn.append((noise[:, d] < probability).to(a.dtype))
        a = torch.addcmul(a, drawn[-1].unsqueeze(1), W[:, d])
    return torch.stack(drawn, 1)


def nade_categorical_sample(W: Tensor, c: Tensor, V: Tensor, b: Tensor, noise: Tensor) -> Tensor:
    """noise [B, D] -> class indices [B, D]."""
    a = c.expand(len(noise), -1)
    by_class = W.permute(1, 2, 0)  # [D, C, H]
    drawn = []
    for d in range(noise.shape[1]):
        cdf = torch.softmax(torch.sigmoid(a) @ V[d].t() + b[d], -1).cumsum(-1)
        drawn.append((cdf <= noise[:, d : d + 1]).sum(-1).clamp(max=cdf.shape[1] - 1))
        a = a + by_class[d, drawn[-1]]
    return torch.stack(drawn, 1)


def rnade_sample(
    W: Tensor,
    c: Tensor,
    V_logits: Tensor,
    b_logits: Tensor,
    V_means: Tensor,
    b_means: Tensor,
    V_log_scales: Tensor,
    b_log_scales: Tensor,
    noise: Tensor,
) -> Tensor:
    """noise [B, D, 2], a uniform and a standard normal -> [B, D]; Gaussian components."""
    a = c.expand(len(noise), -1)
    drawn = []
    for d in range(noise.shape[1]):
        units = torch.sigmoid(a)
        cdf = torch.softmax(units @ V_logits[d].t() + b_logits[d], -1).cumsum(-1)
        component = (cdf <= noise[:, d, :1]).sum(-1, keepdim=True).clamp(max=cdf.shape[1] - 1)
        mean = (units @ V_means[d].t() + b_means[d]).gather(1, component).squeeze(1)
        log_scale = (units @ V_log_scales[d].t() + b_log_scales[d]).gather(1, component).squeeze(1)
        drawn.append(mean + torch.exp(log_scale) * noise[:, d, 1])
        a = torch.addcmul(a, drawn[-1].unsqueeze(1), W[:, d])
    return torch.stack(drawn, 1)


def made_sample(z: Tensor, **layers: Tensor) -> Tensor:
    """Uniforms z [B, D] -> binary x [B, D] by D passes; weights W1, W2, ... are masked already."""
    x = torch.zeros_like(z)
    for d in range(z.shape[1]):
        probability = torch.sigmoid(relu_network(x, layers)[:, d])
        x[:, d] = (z[:, d] < probability).to(x.dtype)
    return x


def pixel_cnn_sample(noise: Tensor, **layers: Tensor) -> Tensor:
    """Uniforms [B, 1, H, W] -> bits by a pass a pixel; kernels W1, W2, ... are masked already."""
    x = torch.zeros_like(noise)
    count = len(layers) // 2
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            h = x
            for k in range(1, count + 1):
                weight = layers[f"W{k}"]
                h = F.conv2d(h, weight, layers[f"b{k}"], padding=weight.shape[2] // 2)
                h = torch.relu(h) if k < count else h
            x[:, :, i, j] = (noise[:, :, i, j] < torch.sigmoid(h[:, :, i, j])).to(x.dtype)
    return x


def affine_flow_inverse(z: Tensor, **layers: Tensor) -> Tensor:
    """x_d = z_d exp(u_d) + shift_d by D passes -> [B, D + 1]: x and its log-determinant."""
    x = torch.zeros_like(z)
    for d in range(z.shape[1]):
        shift, u = relu_network(x, layers)[:, 2 * d : 2 * d + 2].unbind(1)
        x[:, d] = z[:, d] * torch.exp(u) + shift
    log_scale = relu_network(x, layers)[:, 1::2]
    return torch.cat([x, log_scale.sum(1, keepdim=True)], 1)


def maf_inverse(z: Tensor, **layers: Tensor) -> Tensor:
    """x_d = (z_d - shift_d) / (softplus(u_d) + 1e-3) by D passes -> [B, D + 1]: x, log-determinant."""
    x = torch.zeros_like(z)
    for _ in range(z.shape[1]):
        shift, u = relu_network(x, layers).unflatten(1, (-1, 2)).unbind(2)
        scale = F.softplus(u) + 1e-3
        x = (z - shift) / scale
    return torch.cat([x, -scale.log().sum(1, keepdim=True)], 1)


def spline_flow_inverse(z: Tensor, **layers: Tensor) -> Tensor:
    """x_d = s^-1(z_d), splines with linear tails at 3, by D passes -> [B, D + 1]: x, log-determinant."""
    x, (dims, count) = torch.zeros_like(z), (z.shape[1], len(layers) // 2)
    bins = (len(layers[f"b{count}"]) // dims + 1) // 3
    for _ in range(dims):
        params = relu_network(x, layers).unflatten(1, (dims, 3 * bins - 1))
        widths, heights, derivatives = params.split([bins, bins, bins - 1], -1)
        x, log_det = rational_quadratic_spline(z, widths, heights, derivatives, inverse=True)
    return torch.cat([x, log_det.sum(1, keepdim=True)], 1)


def relu_network(x: Tensor, layers: dict[str, Tensor]) -> Tensor:
    count = len(layers) // 2
    for i in range(1, count + 1):
        x = F.linear(x, layers[f"W{i}"], layers[f"b{i}"])
        x = torch.relu(x) if i < count else x
    return x


def _nade_units(steps: Tensor, c: Tensor) -> Tensor:
    """sigmoid(c + the steps [B, D, H] of the dimensions before)."""
    return torch.sigmoid(F.pad(steps[:, :-1], (0, 0, 1, 0)).cumsum(1) + c)


def rational_quadratic_spline(
    x: Tensor,
    widths: Tensor,
    heights: Tensor,
    derivatives: Tensor,
    *,
    bound: float = 3.0,
    inverse: bool = False,
    parameterization: str = "nflows",
) -> tuple[Tensor, Tensor]:
    """Linear tails. No branches, no masked selection and no search: bins unrolled, as compilers like it."""
    minimum, bins, own = 1e-3, widths.shape[-1], x.dtype
    x, widths, heights, derivatives = (t.to(_compute(x)) for t in (x, widths, heights, derivatives))
    inside = (x >= -bound) & (x <= bound)
    at = x.clamp(-bound, bound)
    if parameterization == "zuko":
        clip = 1 / abs(math.log(minimum))
        widths, heights = (t / (1 + 2 * clip * t.abs()) for t in (widths, heights))
        slopes = [torch.exp(d / (1 + clip * d.abs())) for d in derivatives.unbind(-1)]
        minimum = 0.0
    else:
        slopes = [minimum + F.softplus(d) for d in derivatives.unbind(-1)]
    one = torch.ones_like(x)
    slopes = [one, *slopes, one]
    sides = []
    for raw in (widths, heights):
        shares = minimum + (1 - minimum * bins) * torch.softmax(raw, -1)
        knots = [torch.full_like(x, -bound)]
        for share in shares.unbind(-1)[:-1]:
            knots.append(knots[-1] + 2 * bound * share)
        sides.append([*knots, torch.full_like(x, bound)])
    along = sides[1] if inverse else sides[0]
    chosen = [sides[0][0], sides[0][1], sides[1][0], sides[1][1], slopes[0], slopes[1]]
    for k in range(1, bins):
        reached = at >= along[k]
        candidates = (
            sides[0][k], sides[0][k + 1], sides[1][k], sides[1][k + 1], slopes[k], slopes[k + 1]
        )  # fmt: skip
        chosen = [torch.where(reached, c, old) for c, old in zip(candidates, chosen, strict=True)]
    x0, x1, y0, y1, d0, d1 = chosen
    width, height = x1 - x0, y1 - y0
    delta = height / width
    bend = d0 + d1 - 2 * delta
    if inverse:
        a = (at - y0) * bend + height * (delta - d0)
        b = height * d0 - (at - y0) * bend
        c = -delta * (at - y0)
        theta = 2 * c / (-b - torch.sqrt(b * b - 4 * a * c))
    else:
        theta = (at - x0) / width
    rest = theta * (1 - theta)
    denominator = delta + bend * rest
    out = (
        x0 + theta * width
        if inverse
        else y0 + height * (delta * theta * theta + d0 * rest) / denominator
    )
    numerator = delta * delta * (d1 * theta * theta + 2 * delta * rest + d0 * (1 - theta) ** 2)
    log_det = torch.log(numerator) - 2 * torch.log(denominator)
    log_det = -log_det if inverse else log_det
    return torch.where(inside, out, x).to(own), torch.where(inside, log_det, 0.0)


def affine_coupling(x: Tensor, log_scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    return exp_coupling(x, 2.0 * torch.tanh(log_scale / 2.0), shift)


def exp_coupling(x: Tensor, log_scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    log_scale = log_scale.to(_compute(x))
    return (x * torch.exp(log_scale) + shift).to(x.dtype), log_scale.flatten(1).sum(1)


def exp_coupling_inverse(x: Tensor, log_scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    log_scale = log_scale.to(_compute(x))
    return ((x - shift) * torch.exp(-log_scale)).to(x.dtype), -log_scale.flatten(1).sum(1)


def actnorm(x: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    shape = (-1,) + (1,) * (x.ndim - 2)
    log_scale, bias = log_scale.to(_compute(x)), bias.to(_compute(x))
    return (x * torch.exp(log_scale).reshape(shape) + bias.reshape(shape)).to(x.dtype)


def logistic_mixture_cdf(
    x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor
) -> tuple[Tensor, Tensor]:
    own = x.dtype
    x, logits, means, log_scales = (t.to(_compute(x)) for t in (x, logits, means, log_scales))
    log_weights = torch.log_softmax(logits, -1)
    scaled = (x.unsqueeze(-1) - means) * torch.exp(-log_scales)
    log_cdf = F.logsigmoid(scaled)
    z = torch.exp(torch.logsumexp(log_weights + log_cdf, -1))
    log_pdf = log_cdf + F.logsigmoid(-scaled) - log_scales
    return z.to(own), torch.logsumexp(log_weights + log_pdf, -1)


def logistic_mixture_quantile(
    x: Tensor, logits: Tensor, means: Tensor, log_scales: Tensor
) -> tuple[Tensor, Tensor]:
    """A hundred halvings of a wide bracket, as survae and Flow++ do; a step carries gradients."""
    with torch.no_grad():
        log_weights = torch.log_softmax(logits, -1)
        scales = torch.exp(log_scales)
        low = (means - 20 * scales).amin(-1)
        high = (means + 20 * scales).amax(-1)
        for _ in range(100):
            middle = 0.5 * (low + high)
            scaled = (middle.unsqueeze(-1) - means) / scales
            short = torch.exp(torch.logsumexp(log_weights + F.logsigmoid(scaled), -1)) < x
            low, high = torch.where(short, middle, low), torch.where(short, high, middle)
        root = 0.5 * (low + high)
    z, log_density = logistic_mixture_cdf(root, logits, means, log_scales)
    root = root - (z - x) * torch.exp(-log_density)
    return root, -logistic_mixture_cdf(root, logits, means, log_scales)[1]


def _compute(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def masked_conv(x: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    """The usual masked convolution: the whole kernel, times its mask; 2-d or 1-d by the weight."""
    padding = [k // 2 for k in weight.shape[2:]]
    conv = F.conv2d if weight.ndim == 4 else F.conv1d
    return conv(x, weight * mask, bias, padding=padding)


def shifted_conv(x: Tensor, weight: Tensor, bias: Tensor, *, first: tuple[int, int]) -> Tensor:
    """Convolution of a padded image, its first tap at ``first`` from the output pixel."""
    (top, left), (rows, columns) = first, weight.shape[2:]
    padded = F.pad(x, (-left, left + columns - 1, -top, top + rows - 1))
    return F.conv2d(padded, weight, bias)


def gated_activation(
    x: Tensor, bias: Tensor | None = None, condition: Tensor | None = None
) -> Tensor:
    """x [B, 2 C, H, W], bias [2 C], condition [B, 2 C]."""
    if bias is not None:
        x = x + bias.view(-1, 1, 1)
    if condition is not None:
        x = x + condition[:, :, None, None]
    a, b = x.chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(b)
