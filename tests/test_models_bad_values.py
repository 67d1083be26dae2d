"""Bad data values reach the user of a model as a ValueError, whichever implementation runs."""

from __future__ import annotations

import pytest
import torch

import dgm_fast
from dgm_fast.models import IWAE


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "categorical"])
def test_bad_values_raise(backend: str, likelihood: str) -> None:
    classes = 3 if likelihood == "categorical" else None
    model = IWAE(6, 2, hidden_sizes=(4,), likelihood=likelihood, num_classes=classes, num_samples=3)
    x = torch.zeros(5, 6)
    x[2, 1] = 7
    with dgm_fast.backend(backend):
        for call in (model.loss, model.elbo, lambda data: model.log_prob(data, num_samples=4)):
            with pytest.raises(ValueError, match=r"x must hold|x has|values"):
                call(x)
