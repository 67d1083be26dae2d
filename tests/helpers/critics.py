"""Critics of every kind that penalties are tested on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


class Residual(nn.Module):
    """Two residual blocks on vectors."""

    def __init__(self, size: int = 12) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(size, 16), nn.LeakyReLU(0.2), nn.Linear(16, size))
            for _ in range(2)
        )
        self.output = nn.Linear(size, 1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.output(x).squeeze(1)


class Conditional(nn.Module):
    """A projection discriminator: an output, plus the features' product with the label's embedding."""

    def __init__(self, size: int = 12, classes: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(size, 16), nn.LeakyReLU(0.2))
        self.output = nn.Linear(16, 1)
        self.embedding = nn.Embedding(classes, 16)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        h = self.features(x)
        return self.output(h).squeeze(1) + (h * self.embedding(labels)).sum(1)


class Attention(nn.Module):
    """One layer of self-attention over three tokens; the math backend is differentiable twice."""

    def __init__(self, size: int = 12, width: int = 8) -> None:
        super().__init__()
        self.tokens = nn.Linear(size // 3, width)
        self.project = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x.reshape(len(x), 3, -1))
        q, k, v = self.project(h).unsqueeze(1).chunk(3, -1)
        with sdpa_kernel(SDPBackend.MATH):
            h = h + nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1)
        return self.output(h.mean(1)).squeeze(1)


def mlp(activation: Callable[[], nn.Module] = lambda: nn.LeakyReLU(0.2)) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(12, 16), activation(), nn.Linear(16, 8), activation(), nn.Linear(8, 1)
    )


def conv() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(4, 6, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 1),
    )


CRITICS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "relu": lambda: mlp(nn.ReLU),
    "silu": lambda: mlp(nn.SiLU),
    "conv": conv,
    "residual": Residual,
    "conditional": Conditional,
    "attention": Attention,
}


def make(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(3)
    return CRITICS[name]().to(dtype)


def samples(name: str, dtype: torch.dtype = torch.float32, batch: int = 6) -> dict[str, Tensor]:
    """real, fake, eps and, where the critic takes them, labels; all float tensors in ``dtype``."""
    generator = torch.Generator().manual_seed(4)
    shape = (batch, 2, 8, 8) if name == "conv" else (batch, 12)
    real, fake = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    inputs = {"real": real, "fake": fake * 0.7 + 0.2}
    inputs["eps"] = torch.rand(batch, generator=generator, dtype=torch.float64)
    inputs = {key: t.to(torch.float32).to(dtype) for key, t in inputs.items()}
    if name == "conditional":
        inputs["labels"] = torch.randint(0, 3, (batch,), generator=generator)
    return inputs
