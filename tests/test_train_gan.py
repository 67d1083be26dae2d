"""Adversarial training: alternation, exact resume, pictures, figures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner, Result

from dgm_fast.cli import main
from dgm_fast.data.toy import EIGHT_GAUSSIANS_SCALE, eight_gaussian_means, load_toy
from dgm_fast.metrics import sliced_wasserstein_distance
from dgm_fast.models import FGAN, GAN, KLGAN, WGAN, WGANGP, ConditionalGAN, NonSaturatingGAN
from dgm_fast.models._adversarial import AdversarialModel
from dgm_fast.train import AdversarialStep, load_checkpoint

SMALL = ["--latent-dim", "3", "--hidden-sizes", "8", "--channels", "2", "--batch-size", "200"]


def train(kind: str, out: Path, *more: object) -> Result:
    arguments = ["train", kind, "--out", out, *SMALL, *more]
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


def history(out: Path) -> list[dict]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("gan", []),
        ("ns-gan", ["--binarize"]),
        ("kl-gan", ["--architecture", "mlp"]),
        ("cgan", ["--loss-kind", "hinge"]),
        ("wgan", ["--clip", "0.02", "--num-critic-steps", "2"]),
        ("wgan-gp", ["--weight", "5"]),
        ("f-gan", ["--divergence", "pearson", "--form", "theoretical"]),
    ],
)
def test_end_to_end(tmp_path: Path, kind: str, more: list[str]) -> None:
    result = train(kind, tmp_path, "--epochs", 2, *more)
    assert result.exit_code == 0, result.output
    assert "sliced wasserstein" in result.output and "nats" not in result.output
    figures = json.loads((tmp_path / "results.json").read_text())
    assert figures["sliced_wasserstein"] > 0
    assert 0 <= figures["precision"] <= 1 and 0 <= figures["recall"] <= 1
    assert (tmp_path / "samples.png").exists()
    assert [p.name for p in sorted(tmp_path.glob("samples-epoch-*.png"))] == [
        "samples-epoch-00001.png",
        "samples-epoch-00002.png",
    ]


@pytest.mark.parametrize("kind", ["wgan-gp", "cgan"])
def test_resume_is_exact(tmp_path: Path, kind: str) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(kind, whole, "--epochs", 4).exit_code == 0
    assert train(kind, parts, "--epochs", 2).exit_code == 0
    result = train(kind, parts, "--epochs", 4, "--resume")
    assert result.exit_code == 0, result.output
    assert history(parts) == history(whole)
    one, other = (load_checkpoint(path / "last.pt")["model"] for path in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_rows_without_labels_are_refused_by_a_conditional_model(tmp_path: Path) -> None:
    result = train("cgan", tmp_path, "--data", "moons")
    assert result.exit_code == 1 and "has no labels" in result.output


@pytest.mark.parametrize("option", ["--compile", "--schedule=cosine", "--eval-samples=3"])
def test_options_of_likelihoods_do_not_apply(tmp_path: Path, option: str) -> None:
    result = train("gan", tmp_path, option)
    assert result.exit_code == 2 and "does not apply to gan" in result.output


def test_learning_rate_and_length_are_those_of_the_kind(tmp_path: Path) -> None:
    train("wgan", tmp_path, "--epochs", 1)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["lr"], config["epochs"], config["patience"]) == (5e-5, 1, None)


def test_the_generator_moves_after_every_few_updates_of_the_critic() -> None:
    torch.manual_seed(0)
    model = WGANGP(num_dims=2, latent_dim=2, hidden_sizes=(4,), data_range=None)
    step = AdversarialStep(
        model,
        torch.optim.SGD(model.discriminator.parameters(), 0.1),
        torch.optim.SGD(model.generator.parameters(), 0.1),
        num_critic_steps=3,
    )

    def states() -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(
            torch.cat([p.detach().flatten() for p in m.parameters()])
            for m in (model.discriminator, model.generator)
        )

    moved = []
    for _ in range(6):
        before = states()
        assert step(torch.randn(8, 2)).isfinite()
        moved.append([not torch.equal(a, b) for a, b in zip(before, states(), strict=True)])
    assert moved == [[True, False], [True, False], [True, True]] * 2
    with pytest.raises(ValueError, match="num_critic_steps"):
        AdversarialStep(model, *step.optimizers.values(), num_critic_steps=0)


@pytest.mark.slow
def test_wgan_gp_covers_eight_gaussians(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = load_toy("eight-gaussians").train
    model = WGANGP(
        num_dims=2,
        latent_dim=8,
        hidden_sizes=(128, 128),
        data_range=None,
        weight=1.0,
        average_decay=0.99,
    )
    step = AdversarialStep(
        model,
        torch.optim.Adam(model.discriminator.parameters(), 1e-3, (0.0, 0.9)),
        torch.optim.Adam(model.generator.parameters(), 1e-3, (0.0, 0.9)),
        num_critic_steps=3,
    )
    for _ in range(2400):
        step(data[torch.randint(len(data), (256,))])
    distance, mode = torch.cdist(model.sample(2000), eight_gaussian_means()).min(1)
    near = distance < 4 * EIGHT_GAUSSIANS_SCALE
    counts = torch.bincount(mode[near], minlength=8)
    assert near.float().mean() > 0.7
    assert (counts > 80).all(), counts.tolist()


# One offset and correlated Gaussian a class.
LEARNED_MEANS = torch.tensor([[2.0, -1.0], [-2.0, 0.0]])
LEARNED_FACTOR = torch.tensor([[0.8, 0.0], [0.5, 0.4]])


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Networks of 32 units only lose by sharing their products."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("kind", "options", "steps"),
    [
        (GAN, {}, 300),
        (NonSaturatingGAN, {}, 300),
        (KLGAN, {}, 300),
        (ConditionalGAN, {"num_classes": 2}, 300),
        (WGAN, {"clip": 0.1}, 600),
        (WGANGP, {"weight": 1.0}, 600),
        (FGAN, {"divergence": "jensen_shannon"}, 300),
        (FGAN, {"divergence": "pearson"}, 300),
    ],
)
def test_each_kind_learns_a_gaussian(
    kind: type[AdversarialModel], options: dict[str, Any], steps: int, one_thread: None
) -> None:
    """The generator's distribution comes to the data: per class, where there are labels."""
    torch.manual_seed(0)
    model = kind(
        num_dims=2,
        latent_dim=2,
        hidden_sizes=(32, 32),
        data_range=None,
        average_decay=0.98,
        **options,
    )
    step = AdversarialStep(
        model,
        torch.optim.Adam(model.discriminator.parameters(), 1e-3, (0.0, 0.9)),
        torch.optim.Adam(
            model.generator.parameters(), 2e-3 if kind is WGANGP else 1e-3, (0.0, 0.9)
        ),
        num_critic_steps=3 if issubclass(kind, WGAN | WGANGP) else 1,
    )
    classes = model.num_classes or 1

    def draw(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.randint(classes, (n,))
        return LEARNED_MEANS[labels] + torch.randn(n, 2) @ LEARNED_FACTOR.T, labels

    data, labels = draw(1000)

    def distance() -> float:
        samples = model.sample(1000, labels=labels if classes > 1 else None)
        return max(
            sliced_wasserstein_distance(samples[labels == c], data[labels == c]).item()
            for c in range(classes)
        )

    before = distance()
    for _ in range(steps):
        rows, row_labels = draw(128)
        step((rows, row_labels) if classes > 1 else rows)
    assert distance() < 0.4 * before
