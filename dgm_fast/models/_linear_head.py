"""A decoder taken apart before its last linear layer, for the fused linear heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dgm_fast.nn import MLP

_NEEDS = (
    "fused_head=True needs a decoder that ends in an nn.Linear: the default one, an nn.Sequential "
    "whose last module is an nn.Linear, or a module with decoder(z) = output(hidden(z)) for its "
    "attributes `hidden` and the nn.Linear `output`; got "
)


def split_decoder(decoder: nn.Module) -> tuple[Callable[[Tensor], Tensor], nn.Linear]:
    """(what comes before the last linear layer, that layer), without registering anything.

    Raises:
        TypeError: if the decoder does not end in an ``nn.Linear`` that can be found.
        ValueError: if decoder or layer have hooks, which the fused head would not run.
    """
    if isinstance(decoder, nn.Sequential) and type(decoder).forward is nn.Sequential.forward:
        modules = list(decoder)
        output: Any = modules.pop() if modules else None

        def run(z: Tensor) -> Tensor:
            for module in modules:
                z = module(z)
            return z

        hidden: Any = run
    else:
        hidden, output = getattr(decoder, "hidden", None), getattr(decoder, "output", None)
    if not callable(hidden) or not isinstance(output, nn.Linear):
        raise TypeError(f"{_NEEDS}{type(decoder).__name__}")
    plain = type(output).forward is nn.Linear.forward
    if not plain and not getattr(type(output), "plain_forward", False):
        raise TypeError(f"{_NEEDS}a last layer with a forward of its own, {type(output).__name__}")
    for name, module in (("the decoder", decoder), ("its last layer", output)):
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
            raise ValueError(f"{name} has hooks, which fused_head=True would not run")
    return hidden, output


def check_decoder(decoder: nn.Module, in_features: int, out_features: int) -> None:
    """Whether a fused head computes what the decoder does, as far as can be seen beforehand.

    Raises:
        TypeError, ValueError: if not.
    """
    hidden, output = split_decoder(decoder)
    if output.out_features != out_features:
        raise ValueError(
            f"the decoder's last layer must have {out_features} outputs, got {output.out_features}"
        )
    weight = output.weight
    known = isinstance(decoder, nn.Sequential) or type(decoder).forward is MLP.forward
    if known or weight.is_meta:
        return
    # A module of the user's: try on two latents whether something follows its `output`.
    modes = [(module, module.training) for module in decoder.modules()]
    z = torch.linspace(-1, 1, 2 * in_features, dtype=weight.dtype, device=weight.device)
    z = z.view(2, in_features)
    devices = [weight.device] if weight.is_cuda else []
    try:
        decoder.eval()
        outs = []
        for forward in (decoder, lambda z: output(hidden(z))):
            with torch.no_grad(), torch.random.fork_rng(devices):
                torch.manual_seed(0)  # a decoder may draw
                outs.append(forward(z))
    finally:
        for module, training in modes:
            module.training = training
    whole, parts = outs
    if not (
        isinstance(whole, Tensor)
        and whole.numel() == parts.numel()
        and torch.allclose(whole.reshape(-1), parts.reshape(-1), rtol=1e-3, atol=1e-5)
    ):
        raise ValueError(
            f"{_NEEDS}a {type(decoder).__name__} that does not equal output(hidden(z))"
        )
