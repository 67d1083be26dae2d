"""Paths between latent codes."""

from __future__ import annotations

import torch
from torch import Tensor

MODES = ("linear", "spherical")


def interpolate_latents(z1: Tensor, z2: Tensor, steps: int, mode: str) -> Tensor:
    r"""Points from z1 to z2, both [B, L], as [B, steps, L] with the ends included.

    "spherical" is

    .. math:: \frac{\sin((1-t)\omega)}{\sin\omega} z_1 + \frac{\sin(t\omega)}{\sin\omega} z_2

    with :math:`\omega` the angle between the two (White, "Sampling Generative Networks", 2016).
    Where the path is not defined (a zero code, opposite codes) or is a line to rounding (parallel
    codes), the linear one is taken.
    """
    t = torch.linspace(0, 1, steps, dtype=z1.dtype, device=z1.device).view(1, steps, 1)
    start, end = z1.unsqueeze(1), z2.unsqueeze(1)
    linear = torch.lerp(start, end, t)
    if mode == "linear":
        return linear
    lengths = torch.linalg.vector_norm(start, dim=-1, keepdim=True) * torch.linalg.vector_norm(
        end, dim=-1, keepdim=True
    )
    tiny = torch.finfo(z1.dtype).tiny
    cosine = (start * end).sum(-1, keepdim=True) / lengths.clamp(min=tiny)
    omega = torch.acos(cosine.clamp(-1, 1))
    sine = torch.sin(omega)
    curved = (lengths > tiny) & (sine > torch.finfo(z1.dtype).eps ** 0.5)
    arc = (torch.sin((1 - t) * omega) * start + torch.sin(t * omega) * end) / torch.where(
        curved, sine, 1.0
    )
    return torch.where(curved, arc, linear)
