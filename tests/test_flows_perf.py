"""Flows as benchmarks build them: the plain form and nflows' model give the numbers of ours."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from dgm_fast.models import NSF
from dgm_fast.perf import flow_models, step, step_cases
from dgm_fast.perf.runner import Options
from dgm_fast.perf.timing import Plan

PLAN = Plan(min_round_s=0.0, min_rounds=3, max_rounds=4, budget_s=0.0, warm_up=0)


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


class Twin(nn.Module):
    """Another library's model: the same loss, but for a factor, under other names of parameters."""

    def __init__(self, model: NSF, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = model, factor

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * self.inner.loss(x)


def test_peers_of_a_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "TRAINED_STEPS", 2)
    monkeypatch.setattr(step, "PROFILED_STEPS", 1)
    tiny = step_cases.nsf_step("tiny", 4, 1, 8, 4, 16)
    options = Options(plan=PLAN, compiled=False)
    for factor in (1.0, 1.1):
        case = dataclasses.replace(tiny, peers={"twin": lambda m, f=factor: Twin(m, f)})
        record = step.run_step(case, options)
        assert record["status"] == "ok", record["failures"]
        if factor == 1.0:
            assert set(record["modes"]["step"]) == {"eager", "ours", "twin"}
            assert record["wrong"] == {}
        else:
            assert set(record["modes"]["step"]) == {"eager", "ours"}
            assert record["wrong"]["twin"].startswith("loss or gradients differ from eager")
