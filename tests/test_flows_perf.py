"""Flows as benchmarks build them: the plain form and nflows' model give the numbers of ours."""

from __future__ import annotations

import pytest
import torch

from dgm_fast.models import NSF
from dgm_fast.perf import flow_models


def model_and_noise() -> tuple[NSF, torch.Tensor]:
    torch.manual_seed(0)
    model = NSF(5, num_layers=3, hidden_size=16).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model, torch.randn(20, 5).double()


def test_plain_form() -> None:
    model, x = model_and_noise()
    loss, samples = model.loss(x), model.decode(x)
    flow_models.make_plain(model)
    torch.testing.assert_close(model.loss(x), loss)
    for got, want in zip(model.decode(x), samples, strict=True):
        torch.testing.assert_close(got, want)


def test_nflows_has_the_same_weights() -> None:
    pytest.importorskip("nflows")
    model, x = model_and_noise()
    theirs = flow_models.NFlows(model)
    torch.testing.assert_close(theirs.loss(x), model.loss(x), rtol=1e-9, atol=1e-9)
    for got, want in zip(theirs.inverse(x), model.decode(x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-7)
