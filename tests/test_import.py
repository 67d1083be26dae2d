"""What importing dgm_fast does and does not need, and how environment variables steer it."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dgm_fast
import dgm_fast.models
from dgm_fast import ops

ROOT = Path(__file__).parents[1]

# The names of the interface contract that belong to the families there are.
FUNCTIONS = {
    "bernoulli_log_prob": "logits x event_ndim",
    "gaussian_log_prob": "x mean log_var event_ndim",
    "categorical_log_prob": "logits x class_dim event_ndim",
    "gaussian_kl": "mean log_var prior_mean prior_log_var event_ndim",
    "reparameterize": "mean log_var num_samples generator",
    "log_mean_exp": "log_w dim",
    "elbo": "x decoder_out mean log_var likelihood beta",
    "iwae_bound": "x decoder_out z mean log_var likelihood prior estimator",
}
MODELS = ("VAE", "BetaVAE", "IWAE")
MODEL_METHODS = (
    "elbo",
    "iwae_bound",
    "log_prob",
    "loss",
    "sample",
    "reconstruct",
    "encode",
    "decode",
    "interpolate",
)


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, with ``environment`` on top of this one."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def output(code: str, **environment: str) -> str:
    result = run(code, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_functions_have_the_agreed_signature(name: str) -> None:
    function = getattr(dgm_fast.functional, name)
    agreed = FUNCTIONS[name].split()
    # More arguments are welcome; the agreed ones stay, in their order.
    assert [p for p in inspect.signature(function).parameters if p in agreed] == agreed
    assert function.__doc__
    assert name in dgm_fast.functional.__all__


@pytest.mark.parametrize("name", MODELS)
def test_public_models_have_the_agreed_methods(name: str) -> None:
    model = getattr(dgm_fast.models, name)
    assert [m for m in MODEL_METHODS if not callable(getattr(model, m, None))] == []
    assert list(inspect.signature(model).parameters)[:2] == ["num_dims", "latent_dim"]


def test_public_names_of_the_package() -> None:
    for name in dgm_fast.__all__:
        assert getattr(dgm_fast, name) is not None
    assert {"backend", "check_values", "functional"} <= set(dgm_fast.__all__)


def test_import_leaves_optional_packages_alone() -> None:
    loaded = json.loads(
        output(
            "import json, sys, torch; before = set(sys.modules); import dgm_fast\n"
            "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
            "print(json.dumps(sorted(new)))"
        )
    )
    optional = {"click", "matplotlib", "rich", "scipy", "sklearn", "triton"}
    assert optional.isdisjoint(loaded)
    assert "dgm_fast" in loaded


def test_import_under_the_interpreter_is_silent() -> None:
    if ops.active_isa() is None:
        pytest.skip("the C++ extension is not built")
    result = run("import dgm_fast", TRITON_INTERPRET="1")
    assert (result.returncode, result.stderr) == (0, "")


# None in sys.modules is what the import system takes for "there is no such package".
WITHOUT_TRITON = "import sys; sys.modules['triton'] = None\n"


def test_works_without_triton() -> None:
    text = output(
        WITHOUT_TRITON + "import torch, dgm_fast; from dgm_fast import functional as F, ops\n"
        "assert not ops._extension.triton_available()\n"
        "print(F.bernoulli_log_prob(torch.zeros(2, 8), torch.ones(2, 8)).tolist())"
    )
    assert json.loads(text) == pytest.approx([-5.545177, -5.545177])


def test_triton_backend_without_triton_says_what_is_missing() -> None:
    code = WITHOUT_TRITON + (
        "import torch, dgm_fast; from dgm_fast import functional as F\n"
        "with dgm_fast.backend('triton'): F.log_mean_exp(torch.zeros(2, 8))"
    )
    result = run(code, TRITON_INTERPRET="1")
    assert result.returncode != 0
    assert 'RuntimeError: backend "triton"' in result.stderr


CHECK_LEVEL = (
    "import sys; from dgm_fast import ops; from dgm_fast.health import run_doctor\n"
    "report = run_doctor()\n"
    "assert report.status == 'healthy', str(report)\n"
    "print(ops.active_isa())"
)


@pytest.mark.parametrize("level", ops.ISA_LEVELS)
def test_every_level_of_this_machine_can_be_forced(level: str) -> None:
    if ops.active_isa() is None:
        pytest.skip("the C++ extension is not built")
    if level not in ops.runnable_isas():
        result = run("import dgm_fast", DGM_FAST_ISA=level)
        assert result.returncode != 0
        assert f"instruction-set level must be one of {ops.runnable_isas()}" in (result.stderr)
        pytest.skip(f"this machine does not run {level}; its refusal is checked")
    assert output(CHECK_LEVEL, DGM_FAST_ISA=level).strip() == level


def test_highest_vector_level_is_the_default() -> None:
    if ops.active_isa() is None:
        pytest.skip("the C++ extension is not built")
    text = output("from dgm_fast import ops; print(ops.active_isa())", DGM_FAST_ISA="")
    assert text.strip() == [level for level in ops.runnable_isas() if level != "amx"][-1]


def test_unknown_level_is_a_clear_error() -> None:
    if ops.active_isa() is None:
        pytest.skip("the C++ extension is not built")
    result = run("import dgm_fast", DGM_FAST_ISA="sse9")
    assert result.returncode != 0
    assert "must be one of" in result.stderr
    assert "got 'sse9'" in result.stderr


def test_unknown_backend_is_a_clear_error() -> None:
    result = run("import dgm_fast", DGM_FAST_BACKEND="cuda")
    assert result.returncode != 0
    assert (
        f"ValueError: DGM_FAST_BACKEND: backend must be one of {ops.BACKENDS}, got 'cuda'"
        in result.stderr
    )
    with pytest.raises(ValueError, match="got 'cuda'"):
        ops.backend("cuda")


@pytest.mark.parametrize("name", ["auto", "reference"])
def test_backend_from_the_environment(name: str) -> None:
    text = output(
        "import torch, dgm_fast; from dgm_fast import functional as F\n"
        "print(dgm_fast.get_backend(), F.log_mean_exp(torch.zeros(1, 3)).item())",
        DGM_FAST_BACKEND=name,
    )
    assert text.split() == [name, "0.0"]


def test_required_extension_is_there() -> None:
    if os.environ.get("DGM_FAST_REQUIRE_EXTENSION") != "1":
        pytest.skip("set in `make test`, where a broken build must not pass as the reference")
    assert ops.active_isa() is not None, ops.missing()
