"""dgm_fast.tune: what is measured, what it changes, files of choices."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch

import dgm_fast
from dgm_fast import functional as F
from dgm_fast import ops, reference
from dgm_fast.functional.pixel import _masked_conv_rule
from dgm_fast.ops import _tuning

needs_extension = pytest.mark.skipif(
    ops.active_isa() is None, reason="the C++ extension is not built"
)


@pytest.fixture(autouse=True)
def no_choices() -> Iterator[None]:
    dgm_fast.clear_tuning()
    yield
    dgm_fast.clear_tuning()


def convolution(channels: int = 4, size: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, size, size, generator=generator, requires_grad=True)
    weight = torch.randn(channels, channels, 3, 3, generator=generator, requires_grad=True)
    out = F.masked_conv2d(x, weight, mask_type="B")
    out.square().sum().backward()
    assert x.grad is not None
    return x.grad


def choose(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Measurements in which ``name`` is the fastest."""
    monkeypatch.setattr(
        _tuning,
        "_measure",
        lambda strategies, tensors, rounds: {n: 1.0 if n == name else 2.0 for n in strategies},
    )


@needs_extension
def test_every_kind_of_call_is_measured_once_where_it_is_made() -> None:
    with dgm_fast.tune(rounds=2) as tuning:
        for size in (6, 6, 7):
            convolution(size=size)
    assert [choice.call.partition(";")[0] for choice in tuning.choices] == ["masked_conv2d"] * 2
    for choice, size in zip(tuning.choices, (6, 7), strict=True):
        assert f"float32[2, 4, {size}, {size}] grad" in choice.call
        assert set(choice.milliseconds) == {"kernel", "library"}
        assert choice.strategy == min(choice.milliseconds, key=choice.milliseconds.__getitem__)
        assert min(choice.milliseconds.values()) > 0
        assert choice.call in str(tuning)
    with dgm_fast.tune(rounds=1) as again:
        convolution()
    assert again.choices == [] and str(again) == "no call with several implementations"


@needs_extension
@pytest.mark.parametrize("name", ["kernel", "library"])
def test_later_calls_take_the_choice(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    want = convolution()
    choose(monkeypatch, name)
    with dgm_fast.tune():
        torch.testing.assert_close(convolution(), want)
    taken = []
    monkeypatch.setattr(
        reference,
        "cropped_conv2d",
        lambda *a, **k: taken.append(1) or reference.masked_conv2d(*a, **k),
    )
    torch.testing.assert_close(convolution(), want)
    assert len(taken) == (name == "library")
    convolution(size=5)  # of another kind: the static rule
    assert len(taken) == (name == "library")
    with dgm_fast.backend("cpp"):
        convolution()  # asked for by name
    assert len(taken) == (name == "library")


@needs_extension
def test_choices_in_files(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    choose(monkeypatch, "library")
    with dgm_fast.tune() as tuning:
        convolution()
        F.shifted_conv2d(torch.randn(1, 16, 4, 4), torch.randn(16, 16, 2, 3), first=(-1, -1))
    assert [choice.call.partition(";")[0] for choice in tuning.choices] == [
        "masked_conv2d",
        "shifted_conv2d",
    ]
    path = tmp_path / "choices.json"
    tuning.save(path)
    dgm_fast.clear_tuning()
    assert not _tuning._measured
    dgm_fast.load_tuning(path)
    assert _tuning._measured == {choice.call: "library" for choice in tuning.choices}
    path.write_text(json.dumps({"schema": 99}))
    with pytest.raises(ValueError, match="no file of choices of schema 1"):
        dgm_fast.load_tuning(path)


@needs_extension
def test_compiled_graphs_take_choices_and_measure_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, "library")
    x, weight = torch.randn(2, 4, 6, 6), torch.randn(4, 4, 3, 3)
    graphs = []

    def backend(graph, _):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    def run() -> torch.Tensor:
        torch._dynamo.reset()
        return torch.compile(F.masked_conv2d, backend=backend, fullgraph=True)(
            x, weight, mask_type="B"
        )

    with dgm_fast.tune() as tuning:
        want = run()
        assert not tuning.choices
        F.masked_conv2d(x, weight, mask_type="B")
    torch.testing.assert_close(run(), want)
    assert any("masked_conv2d" in target for target in graphs[0])
    assert not any("masked_conv2d" in target for target in graphs[1])


def test_static_rule_of_masked_convolutions() -> None:
    image = torch.empty(1, 128, 4, 4, device="meta", dtype=torch.bfloat16)
    weight = torch.empty(128, 128, 3, 3, device="meta", dtype=torch.bfloat16)
    assert _masked_conv_rule(image, weight) == "kernel"  # not on CUDA

    class OnCuda:
        device = torch.device("cuda")
        dtype = torch.bfloat16

    assert _masked_conv_rule(OnCuda(), weight) == "library"  # type: ignore[arg-type]
    assert _masked_conv_rule(OnCuda(), weight[:64]) == "kernel"  # type: ignore[arg-type]
    OnCuda.dtype = torch.float32
    assert _masked_conv_rule(OnCuda(), weight) == "kernel"  # type: ignore[arg-type]


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        dgm_fast.tune(rounds=0)
    with dgm_fast.tune(), pytest.raises(RuntimeError, match="active already"), dgm_fast.tune():
        pass


@pytest.mark.parametrize("mask_type", ["A", "B"])
@pytest.mark.parametrize("kernel", [(1, 1), (1, 5), (3, 1), (3, 5)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_cropped_convolution_is_the_masked_one(mask_type, kernel, dilation) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 7, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(9, 6, *kernel, generator=generator, dtype=torch.float64)
    options = {"mask_type": mask_type, "data_channels": 3, "dilation": dilation}
    torch.testing.assert_close(
        reference.cropped_conv2d(x, weight, **options),
        reference.masked_conv2d(x, weight, **options),
    )
