"""Bad arguments get an error that names them; backends are chosen and refused as documented."""

from __future__ import annotations

import pytest
import torch

import dgm_fast
from dgm_fast import functional as F
from dgm_fast import ops

B, K, D, L, C = 4, 4, 6, 2, 3  # B == K on purpose: alignment must not depend on luck
LOGITS = torch.zeros(B, K, D)
X = torch.zeros(B, D)
Z = torch.zeros(B, K, L)
LATENT = torch.zeros(B, L)
ONE = torch.zeros(B, 1)
FLOAT8 = torch.float8_e4m3fn


def bad(error: type[Exception], match: str, function, *args, **options):
    return pytest.param(
        error, match, function, args, options, id=f"{function.__name__}-{match[:28]}"
    )


@pytest.mark.parametrize(
    ("error", "match", "function", "args", "options"),
    [
        bad(ValueError, "x has shape .4, 6.", F.bernoulli_log_prob, LOGITS, X),
        bad(ValueError, "x has shape .4, 6.", F.gaussian_log_prob, X, LOGITS),
        bad(ValueError, "event shape", F.bernoulli_log_prob, LOGITS, torch.zeros(B, K, D + 1)),
        bad(ValueError, "broadcast", F.bernoulli_log_prob, LOGITS, torch.zeros(3, 1, D)),
        bad(TypeError, "logits must be a torch.Tensor", F.bernoulli_log_prob, [0.0], X),
        bad(TypeError, "x must be a torch.Tensor", F.bernoulli_log_prob, LOGITS, None),
        bad(TypeError, "logits must be floating", F.bernoulli_log_prob, X.long(), X),
        bad(TypeError, "logits must be floating", F.bernoulli_log_prob, X.to(FLOAT8), X),
        bad(TypeError, "x must be bool, integer", F.bernoulli_log_prob, X, X.to(torch.complex64)),
        bad(TypeError, "x must be bool, integer", F.bernoulli_log_prob, X, X.to(FLOAT8)),
        bad(TypeError, "x must be bool, integer", F.gaussian_log_prob, X.to(torch.complex64), X),
        bad(ValueError, "event_ndim", F.bernoulli_log_prob, X, X, event_ndim=3),
        bad(TypeError, "event_ndim", F.bernoulli_log_prob, X, X, event_ndim=1.0),
        bad(ValueError, "x is on meta", F.bernoulli_log_prob, X, X.to("meta")),
        bad(ValueError, "mean has shape", F.gaussian_log_prob, LOGITS, X),
        bad(ValueError, "x has event shape .1,., but mean", F.gaussian_log_prob, X[:, :1], X),
        bad(
            ValueError, "x has event shape .1,., but log_var", F.gaussian_log_prob, X[:, :1], ONE, X
        ),
        bad(ValueError, "log_var has shape", F.gaussian_log_prob, LOGITS, LOGITS, X),
        bad(TypeError, "log_var must be floating", F.gaussian_log_prob, X, X, X.int()),
        bad(ValueError, "class_dim", F.categorical_log_prob, X, X, class_dim=2),
        bad(ValueError, "event", F.categorical_log_prob, torch.zeros(B, C, D), torch.zeros(B, C)),
        bad(
            TypeError,
            "x must be bool, integer",
            F.categorical_log_prob,
            torch.zeros(B, C, D),
            X.to(torch.complex64),
        ),
        bad(ValueError, "no classes", F.categorical_log_prob, torch.zeros(B, 0, D), X.long()),
        bad(
            ValueError,
            "require grad",
            F.categorical_log_prob,
            torch.zeros(B, C, D),
            X.clone().requires_grad_(),
        ),
        bad(ValueError, "log_var must have the shape", F.gaussian_kl, X, X[:, :3]),
        bad(ValueError, "prior_mean has shape", F.gaussian_kl, LOGITS, LOGITS, X),
        bad(ValueError, "num_samples must be at least 1", F.reparameterize, X, X, 0),
        bad(TypeError, "num_samples must be an int", F.reparameterize, X, X, 2.0),
        bad(ValueError, "noise must have shape", F.reparameterize, X, X, 2, noise=X),
        bad(ValueError, "dim must be", F.log_mean_exp, X, 2),
        bad(ValueError, "no entries", F.log_mean_exp, torch.zeros(3, 0)),
        bad(TypeError, "log_w must be floating", F.log_mean_exp, X.long()),
        bad(
            ValueError, "likelihood must be one of", F.elbo, X, X, LATENT, LATENT, likelihood="beta"
        ),
        bad(
            TypeError,
            "x must be bool, integer",
            F.elbo,
            X.to(torch.complex64),
            X,
            LATENT,
            LATENT,
        ),
        bad(TypeError, "beta must be a number", F.elbo, X, X, LATENT, LATENT, beta=torch.ones(())),
        bad(ValueError, "mean must have shape", F.elbo, X, X, LATENT[:2], LATENT[:2]),
        bad(ValueError, "decoder_out must have shape .B, D.", F.elbo, X, LOGITS, LATENT, LATENT),
        bad(ValueError, "x must have shape", F.elbo, X[:, :3], X, LATENT, LATENT),
        bad(TypeError, "pair .mean, log_var. is for", F.elbo, X, (X, X), LATENT, LATENT),
        bad(
            ValueError,
            "estimator must be",
            F.iwae_bound,
            X,
            LOGITS,
            Z,
            LATENT,
            LATENT,
            estimator="x",
        ),
        bad(
            ValueError,
            "K = 0",
            F.iwae_bound,
            X,
            LOGITS[:, :0],
            Z[:, :0],
            LATENT,
            LATENT,
        ),
        bad(
            ValueError,
            "decoder_out must have shape .B, K, D.",
            F.iwae_bound,
            X,
            X,
            Z,
            LATENT,
            LATENT,
        ),
        bad(ValueError, "z must have shape", F.iwae_bound, X, LOGITS, Z[:, :3], LATENT, LATENT),
        bad(ValueError, "mean must have shape", F.iwae_bound, X, LOGITS, Z, Z, Z),
        bad(ValueError, "x must have shape", F.iwae_bound, X[:3], LOGITS, Z, LATENT, LATENT),
        bad(ValueError, "x must have shape", F.iwae_bound, LOGITS, LOGITS, Z, LATENT, LATENT),
        bad(
            ValueError,
            "prior as a tensor",
            F.iwae_bound,
            X,
            LOGITS,
            Z,
            LATENT,
            LATENT,
            prior=LATENT,
        ),
        bad(
            ValueError,
            "prior mean",
            F.iwae_bound,
            X,
            LOGITS,
            Z,
            LATENT,
            LATENT,
            prior=(torch.zeros(5, 1, L), torch.zeros(L)),
        ),
        bad(
            ValueError,
            "decoder_out log_var",
            F.iwae_bound,
            X,
            (LOGITS, X),
            Z,
            LATENT,
            LATENT,
            likelihood="gaussian",
        ),
    ],
)
def test_bad_arguments(error, match, function, args, options) -> None:
    with pytest.raises(error, match=match):
        function(*args, **options)


def test_backend_names() -> None:
    with pytest.raises(ValueError, match="backend must be one of"):
        dgm_fast.backend("cuda")
    assert dgm_fast.get_backend() == "auto"
    with dgm_fast.backend("reference"):
        assert dgm_fast.get_backend() == "reference"
        assert ops.explain("cpu")[0] == "reference"
    assert dgm_fast.get_backend() == "auto"


def test_backend_is_restored_after_an_error() -> None:
    with pytest.raises(KeyError), dgm_fast.backend("reference"):
        raise KeyError
    assert dgm_fast.get_backend() == "auto"


@pytest.mark.skipif(ops.active_isa() is None, reason="the C++ extension is not built")
def test_backends_refuse_what_they_cannot_serve() -> None:
    with dgm_fast.backend("triton"), pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
        F.bernoulli_log_prob(X, X)
    with dgm_fast.backend("cpp"), pytest.raises(RuntimeError, match="CPU tensors"):
        ops.explain("cuda")
    with pytest.raises(ValueError, match="instruction-set level"):
        ops.use_isa("avx1024")


@pytest.mark.skipif(ops.active_isa() is None, reason="the C++ extension is not built")
def test_families_without_triton_kernels_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops._extension, "triton_available", lambda: True)
    monkeypatch.setattr(ops._backend, "WITHOUT_TRITON", {"likelihood"})
    assert ops.explain("cuda", "latent") == ops.explain("cuda") == ("triton", "CUDA tensors")
    assert ops.explain("cpu", "likelihood") == ops.explain("cpu")
    implementation, reason = ops.explain("cuda", "likelihood")
    assert implementation == "reference"
    assert reason == "the family 'likelihood' has no Triton kernels yet"
    with dgm_fast.backend("triton"), pytest.raises(RuntimeError, match="no Triton kernels yet"):
        ops.explain("cuda", "likelihood")
    assert ops.explain("cuda", "adversarial") == ("triton", "CUDA tensors")
    implementation, reason = ops.explain("cuda", "critic_step")
    assert implementation == "reference" and "matrix products" in reason
    assert ops.explain("cpu", "critic_step")[0] == "cpp"


@pytest.mark.skipif(ops.active_isa() is None, reason="the C++ extension is not built")
def test_compiled_code_follows_the_backend() -> None:
    torch._dynamo.reset()
    traced = []

    def recording(graph, inputs):
        traced.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    function = torch.compile(
        lambda t: F.bernoulli_log_prob(t, X), backend=recording, fullgraph=True
    )
    function(X)
    with dgm_fast.backend("reference"):
        function(X)
    assert any("dgm_fast" in target for target in traced[0])
    assert not any("dgm_fast" in target for target in traced[1])
