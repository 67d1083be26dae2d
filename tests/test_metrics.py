"""Distances between sets of samples."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from dgm_fast.metrics import precision_recall, sliced_wasserstein_distance


def test_a_shift_is_its_length_over_the_root_of_the_dimension() -> None:
    # theta . v has mean square |v|^2 / D over the sphere.
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shift = torch.arange(8, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    distance = sliced_wasserstein_distance(x, x + shift, num_projections=20000, generator=generator)
    assert distance.item() == pytest.approx(shift.norm().item() / math.sqrt(8), rel=0.02)


@pytest.mark.parametrize(("n", "m"), [(50, 50), (50, 37), (8, 12), (1, 5)])
def test_one_dimension_is_the_wasserstein_distance(n: int, m: int) -> None:
    generator = torch.Generator().manual_seed(n + m)
    x = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    y = 1 + 2 * torch.randn(m, 1, generator=generator, dtype=torch.float64)
    ours = sliced_wasserstein_distance(x, y, p=1.0, num_projections=3)
    truth = stats.wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy())
    assert ours.item() == pytest.approx(truth, rel=1e-9)


def test_distance_is_zero_for_the_same_set_in_another_order_and_symmetric() -> None:
    x = torch.randint(0, 17, (40, 3, 4)).to(torch.uint8)
    assert sliced_wasserstein_distance(x, x.flip(0)).item() == 0
    y = torch.randint(0, 17, (25, 3, 4)).to(torch.uint8)
    there, back = (
        sliced_wasserstein_distance(a, b, generator=torch.Generator().manual_seed(3))
        for a, b in ((x, y), (y, x))
    )
    assert there.item() == pytest.approx(back.item(), rel=1e-5)
    assert there.item() > 0


def test_precision_and_recall_tell_lost_modes_from_wrong_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    two_modes = torch.randn(400, 2, generator=generator)
    two_modes[200:, 0] += 100
    one_mode = torch.randn(400, 2, generator=generator)
    far = torch.randn(400, 2, generator=generator) + 1000
    lost = precision_recall(two_modes, one_mode)
    assert lost.precision > 0.9 and 0.4 < lost.recall < 0.52
    wrong = precision_recall(two_modes, torch.cat([two_modes, far]))
    assert 0.45 < wrong.precision < 0.55 and wrong.recall == 1
    assert precision_recall(two_modes, far) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (
            ValueError,
            "x must have shape",
            lambda: sliced_wasserstein_distance(torch.ones(3), torch.ones(3, 1)),
        ),
        (
            ValueError,
            "2 dimensions",
            lambda: sliced_wasserstein_distance(torch.ones(3, 2), torch.ones(3, 1)),
        ),
        (
            ValueError,
            "p must",
            lambda: sliced_wasserstein_distance(torch.ones(3, 2), torch.ones(3, 2), p=0.5),
        ),
        (TypeError, "y must", lambda: sliced_wasserstein_distance(torch.ones(3, 2), [1.0])),
        (
            ValueError,
            "fake must have more",
            lambda: precision_recall(torch.ones(9, 2), torch.ones(3, 2)),
        ),
    ],
)
def test_bad_arguments(error: type[Exception], match: str, call) -> None:
    with pytest.raises(error, match=match):
        call()
