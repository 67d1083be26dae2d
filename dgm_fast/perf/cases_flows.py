"""Benchmark cases of whole flows: samples of a neural spline flow."""

from __future__ import annotations

import copy
import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor

from dgm_fast.models import NSF
from dgm_fast.perf import flow_models
from dgm_fast.perf.cases_likelihood import normal
from dgm_fast.perf.registry import Inputs, case

# D of a case: units and layers of its model.
MODELS = {8: (32, 2), 7: (24, 3), 43: (256, 10), 64: (512, 10)}


@functools.cache
def _model(num_dims: int, dtype: torch.dtype, device: torch.device, variant: str) -> Any:
    hidden, layers = MODELS[num_dims]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = NSF(num_dims, num_layers=layers, hidden_size=hidden)
        with torch.no_grad():
            # Splines that bend, as after training.
            for name, parameter in model.named_parameters():
                if "final_layer.bias" in name:
                    parameter.add_(torch.randn_like(parameter))
    model = model.to(device, dtype).eval()
    if variant == "nflows":
        return flow_models.NFlows(model).eval()
    if variant == "eager":
        model = copy.deepcopy(model)
        flow_models.make_plain(model)
    return model


def _decode(variant: str, z: Tensor) -> tuple[Tensor, Tensor]:
    model = _model(z.shape[1], z.dtype, z.device, variant)
    with torch.no_grad():
        return model.inverse(z) if variant == "nflows" else model.decode(z)


# Found without an import: nflows' own takes a second.
_PEERS = (
    {"nflows": functools.partial(_decode, "nflows")} if importlib.util.find_spec("nflows") else {}
)


def _flops(num_dims: int) -> int:
    """Of the networks and linear maps, a product and a sum for each weight, for one entry of z."""
    hidden, layers = MODELS[num_dims]
    half = num_dims / 2
    network = half * hidden + 4 * hidden**2 + hidden * 23 * half
    return int(2 * layers * (network + num_dims**2) / num_dims)


@case(
    "nsf_sample",
    family="flows",
    ours=functools.partial(_decode, "ours"),
    eager=functools.partial(_decode, "eager"),
    peers=_PEERS,
    sizes={"small": (32, 8), "medium": (512, 43), "large": (2048, 64), "odd": (33, 7)},  # B, D
    grads=(),
    # A model that is kept between calls; the compiled form is timed in the training step.
    compiled=False,
    flops_per_element=lambda shape: (_flops(shape[1]), 0),
)
def nsf_sample_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Inputs:
    return {"z": normal(generator, *shape).to(dtype)}
