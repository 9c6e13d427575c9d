"""Every backend computes the recurrence; which one does is told, and a wish that cannot be met is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version

import pytest
import torch
from torch import Tensor

from se_model import SpanConfig, attach
from se_model.attach.mixers import recurrences_of
from se_model.recurrence import CONVOLUTION, GATED_DELTA, MAMBA1, MAMBA2, CausalConv1d, Recurrence
from se_model.recurrence.backends import Library, Request
from se_model.recurrence.gated_delta.operator import delta_rule
from se_model.recurrence.mamba2.operator import ssd
from se_model.recurrence.selective_scan.operator import scan
from se_model.span.documents import DocumentBounds
from tests.se_model.tiny_models import tiny_model
from tests.tolerances import F32, F64, within

KINDS = [MAMBA2, MAMBA1, GATED_DELTA, CONVOLUTION]
LENGTH = 23
Result = tuple[Tensor, ...]


def normal(*shape: int) -> Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)
    return made.requires_grad_()


def run_ssd(backend: str, **given: object) -> Result:
    dt, A = normal(1, LENGTH, 4).exp(), -normal(4).exp()
    B, C = normal(1, LENGTH, 2, 5), normal(1, LENGTH, 2, 5) * 2
    return ssd(normal(1, LENGTH, 4, 6), dt, A, B, C, chunk_size=8, backend=backend, **given)


def run_scan(backend: str, **given: object) -> Result:
    u, dt, A = normal(1, LENGTH, 6), normal(1, LENGTH, 6).exp(), -normal(6, 5).exp()
    return scan(u, dt, A, normal(1, LENGTH, 2, 5), normal(1, LENGTH, 2, 5) * 2, backend=backend, **given)


def run_delta_rule(backend: str, **given: object) -> Result:
    q, k, v = normal(1, LENGTH, 2, 5), normal(1, LENGTH, 2, 5) + 1, normal(1, LENGTH, 4, 6)
    log_decay, beta = -normal(1, LENGTH, 4).exp(), normal(1, LENGTH, 4).sigmoid()
    return delta_rule(q, k, v, log_decay, beta, chunk_size=8, backend=backend, **given)


RUNS: dict[Callable[..., Result], tuple[int, ...]] = {
    run_ssd: (1, 4, 6, 5),
    run_scan: (1, 6, 5),
    run_delta_rule: (1, 4, 5, 6),
}


@pytest.mark.parametrize("documents", [None, DocumentBounds((0, 9, 10, LENGTH))], ids=["one", "packed"])
@pytest.mark.parametrize("run", RUNS)
def test_naive_and_chunked_agree_also_on_a_state_that_is_handed_over(run, documents) -> None:
    state = normal(*RUNS[run])
    for given in (None, state, lambda *_: state):
        naive, chunked = (
            run(name, initial_state=given, cu_seqlens=documents) for name in ("naive", "chunked")
        )
        torch.testing.assert_close(chunked, naive, **within(F64))


@pytest.mark.parametrize("documents", [None, DocumentBounds((0, 2, 3, LENGTH))], ids=["one", "packed"])
@pytest.mark.parametrize("with_state", [True, False])
def test_the_short_convolution_as_it_is_written(documents: DocumentBounds | None, with_state: bool) -> None:
    convolution = CausalConv1d(6, 4).double()
    inputs = [normal(1, LENGTH, 6), normal(1, 3, 6) if with_state else None]
    found = []
    for name in ("naive", "chunked"):
        convolution.recurrence_backend = name
        y = convolution(*inputs, documents)
        wanted = [each for each in (*inputs, *convolution.parameters()) if each is not None]
        found.append((y, *torch.autograd.grad(y.sin().sum(), wanted)))
    torch.testing.assert_close(found[1], found[0], **within(F64))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_choice_is_logged_with_its_reason(kind: Recurrence, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    sizes = (("unlimited", 7 + KINDS.index(kind)),)
    assert kind.resolve("auto", Request("cpu", torch.float32, sizes=sizes)) == "chunked"
    assert f"{kind.name} runs on backend chunked" in caplog.text
    assert "library runs on cuda, not on cpu" in caplog.text


@pytest.mark.parametrize(
    ("package", "origin"),
    [("torch", f"package torch {version('torch')}"), ("no-such-package", "package no-such-package")],
)
def test_the_log_says_where_kernels_come_from(
    package: str, origin: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    there = replace(MAMBA2, library=Library(package, installed=lambda: True))
    assert there.resolve("auto", Request("cuda", torch.bfloat16)) == "library"
    assert f"runs on backend library for {Request('cuda', torch.bfloat16)}: {origin} serves it" in caplog.text


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_an_installed_library_is_taken_on_a_gpu_within_its_limits(kind: Recurrence) -> None:
    there = replace(kind, library=replace(kind.library, installed=lambda: True))
    assert there.resolve("auto", Request("cuda", torch.bfloat16)) == "library"
    assert there.resolve("auto", Request("cuda", torch.float64)) == "chunked"
    for name, _, words in kind.library.limits:
        beyond = Request("cuda", torch.bfloat16, sizes=((name, 257),))
        assert there.resolve("auto", beyond) == "chunked"
        with pytest.raises(ValueError, match=f"takes {words}, not 257"):
            there.resolve("library", beyond)
    absent = replace(kind, library=replace(kind.library, installed=lambda: False))
    with pytest.raises(ValueError, match=rf"not installed \(pip install {kind.library.package}\)"):
        absent.resolve("library", Request("cuda", torch.bfloat16))


def test_wishes_that_cannot_be_met_are_refused() -> None:
    with pytest.raises(ValueError, match="backend 'library' of Mamba-2 runs on cuda, not on cpu"):
        run_ssd("library")
    with pytest.raises(ValueError, match="Mamba-1 must be auto or one of library, chunked, naive"):
        run_scan("fast")
    there = replace(MAMBA1, library=replace(MAMBA1.library, installed=lambda: True))
    with pytest.raises(ValueError, match="starts from zero only"):
        there.resolve("library", Request("cuda", torch.float32, initial_state=True))


@pytest.mark.parametrize("name", ["mamba2_hybrid", "bamba", "jamba", "qwen3_next", "kimi_linear", "lfm2"])
def test_a_model_is_told_which_backend_to_take(name: str) -> None:
    model, tokens = tiny_model(name), torch.arange(11)[None] + 3
    found = []
    for backend in ("naive", "chunked"):
        attach(model, SpanConfig(chunk_sizes=8, block_size=4, top_k=1), recurrence=backend)
        assert recurrences_of(model)
        with torch.no_grad():
            found.append(model(tokens, use_cache=False).logits)
    torch.testing.assert_close(*found, **within(F32))
    attach(model, SpanConfig(chunk_sizes=8, block_size=4, top_k=1), recurrence="library")
    with pytest.raises(ValueError, match=r"backend 'library' of .* runs on cuda, not on cpu"):
        model(tokens, use_cache=False)


def kept_by_segments(outputs: Tensor) -> list[Tensor]:
    """What the recurrence that is last before the outputs keeps for backward: inputs, parameters, states."""
    nodes = {outputs.grad_fn}
    while not (found := [node for node in nodes if node.name() == "_BySegmentsBackward"]):
        nodes = {before for node in nodes for before, _ in node.next_functions if before is not None}
    return list(found[0].saved_tensors)


@pytest.mark.parametrize(
    "name", ["mamba2_hybrid", "bamba", "falcon_h1", "jamba", "zamba", "qwen3_next", "kimi_linear"]
)
def test_recurrences_of_half_precision_models_keep_half_precision(name: str) -> None:
    model, tokens = tiny_model(name).to(torch.bfloat16), torch.arange(11)[None] + 3
    attach(model, SpanConfig(chunk_sizes=8, block_size=4, top_k=1))
    kept = kept_by_segments(model(tokens, use_cache=False).logits)
    # x or u, dt, B and C; q, k, v, log_decay and beta: values in the model's dtype, steps and decays better.
    by_token = [each.dtype for each in kept if each.shape[:2] == tokens.shape]
    assert by_token.count(torch.bfloat16) == 3
    assert by_token.count(torch.float32) == len(by_token) - 3 > 0
