"""Nothing in a layer's forward or backward asks the device for a number."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

import se_model.parallel.span
from se_model import attach
from se_model.attentions import AttentionConfig
from se_model.baselines import FullConfig, NoMemoryConfig, S2Config, SlidingWindowConfig
from se_model.loss import causal_lm_loss, unwrap
from se_model.parallel import ContextParallelGroup, SequenceShard
from se_model.span import SpanConfig
from se_model.span.cases import AskedDocument, Cases, Needle, Question
from se_model.span.documents import DocumentBounds
from se_model.span.statistics import record_selections
from tests.distributed import run_distributed
from tests.se_model.synchronisation import Watch
from tests.se_model.tiny_models import tiny_model

LENGTH = 48
BOUNDS = (0, 13, 29, LENGTH)
SIZES: dict[str, Any] = {"chunk_sizes": (4, 12), "block_size": 2, "top_k": 2}
SPANS = {
    "chunk": SpanConfig(**SIZES),
    "causal": SpanConfig(**SIZES, selection="causal"),
    "causal, refreshed": SpanConfig(**SIZES, selection="causal", refresh=4),
    "mean_key": SpanConfig(**SIZES, summary="mean_key"),
    "causal, mean_key": SpanConfig(**SIZES, summary="mean_key", selection="causal"),
}
ATTENTIONS: dict[str, AttentionConfig] = {
    **SPANS,
    "full": FullConfig(),
    "window": SlidingWindowConfig(window=5),
    "none": NoMemoryConfig(chunk_sizes=(4, 6)),
    "s2": S2Config(),
}
NEEDLE = Needle(29, 30, 31)
ASKED = Cases(1, LENGTH, (AskedDocument(0, (NEEDLE, Needle(33, 34, 35)), (Question(46, 47, 48, NEEDLE),)),))
TOKENS = torch.randint(3, 64, (1, LENGTH), generator=torch.Generator().manual_seed(5))


def model_of(name: str, attention: AttentionConfig | None, *, checkpointing: bool = False) -> nn.Module:
    model = copy.deepcopy(tiny_model(name))
    if attention is not None:
        attach(model, attention)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def layers_of(model: nn.Module) -> nn.ModuleList:
    causal_lm = unwrap(model)
    return getattr(causal_lm, causal_lm.base_model_prefix).layers


def run_watched(watch: Watch, model: nn.Module, loss_of: Callable[[], torch.Tensor]) -> None:
    with record_selections() as record:
        record.ask(lambda: ASKED)
        with watch.in_layers(layers_of(model)):
            loss = loss_of()
        with watch.raising():
            loss.backward()
    assert all(parameter.grad is not None for parameter in layers_of(model).parameters())


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: bool((x > 0).all()),
        lambda x: int(x[0]),
        lambda x: range(x.argmax()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.equal(x, x),
        lambda x: x.unique(),
        lambda x: "some" if (x == x).any() else "none",
        lambda x: torch.ones(3).repeat_interleave(x.long()),
    ],
)
def test_the_watch_finds_what_waits(ask: Callable[[torch.Tensor], object]) -> None:
    watch, x = Watch(), torch.ones(3)
    with pytest.raises(AssertionError, match="waits for the device"), watch.raising():
        ask(x)
    with watch.raising(), watch.ignored():
        ask(x)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize(
    ("name", "attention"),
    [
        ("mamba2_hybrid", "unattached"),
        ("zamba", "full"),
        *product(["mamba2_hybrid", "llama"], ATTENTIONS),
    ],
)
def test_packed_rows(name: str, attention: str, checkpointing: bool) -> None:
    model = model_of(name, ATTENTIONS.get(attention), checkpointing=checkpointing)
    documents = DocumentBounds(BOUNDS)
    run_watched(Watch(), model, lambda: causal_lm_loss(model, TOKENS, cu_seqlens=documents)[0])


@pytest.mark.parametrize("attention", SPANS)
def test_a_hybrid_waits_nowhere_between_its_layers_either(attention: str) -> None:
    model, documents, watch = model_of("mamba2_hybrid", SPANS[attention]), DocumentBounds(BOUNDS), Watch()
    with watch.raising():
        causal_lm_loss(model, TOKENS, cu_seqlens=documents)[0].backward()


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("name", ["mamba2_hybrid", "llama", "bamba"])
def test_rows_of_one_document(name: str, attention: str) -> None:
    model = model_of(name, ATTENTIONS[attention])
    run_watched(Watch(), model, lambda: causal_lm_loss(model, TOKENS.expand(2, -1))[0])


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("told_by", ["cu_seqlens", "position_ids", "attention_mask"])
def test_tensors_are_read_before_the_first_layer(told_by: str, attention: str) -> None:
    model = model_of("llama", ATTENTIONS[attention])
    arguments = {
        "cu_seqlens": torch.tensor(BOUNDS),
        "position_ids": DocumentBounds(BOUNDS).position_ids("cpu"),
        "attention_mask": (torch.arange(LENGTH) > 5).long()[None],
    }
    call = partial(model, TOKENS, use_cache=False, **{told_by: arguments[told_by]})
    run_watched(Watch(), model, lambda: call().logits.sum())


def run_shards(rank: int, ranks: int, cases: list[tuple[str, str]]) -> list[str]:
    watch, fetch = Watch(), se_model.parallel.span.fetch_blocks

    def fetch_blocks(*args: Any, **kwargs: Any) -> Any:
        # What is exchanged here depends on what was chosen: backends want its size on the host.
        with watch.ignored():
            return fetch(*args, **kwargs)

    se_model.parallel.span.fetch_blocks = fetch_blocks
    failures = []
    for name, attention in cases:
        model, documents = model_of(name, ATTENTIONS.get(attention)), DocumentBounds(BOUNDS)
        shard = SequenceShard.of(ContextParallelGroup(), LENGTH, documents)
        loss = partial(causal_lm_loss, model, TOKENS, cu_seqlens=documents, shard=shard)
        try:
            run_watched(watch, model, lambda loss=loss: loss()[0])
        except AssertionError as failure:
            failures.append(f"{name}, {attention}: {failure}")
    return failures


def test_rows_over_two_ranks() -> None:
    shared = [*SPANS, "full", "window", "none"]
    cases = [(name, attention) for name in ("mamba2_hybrid", "llama", "bamba") for attention in shared]
    cases += [("mamba2_hybrid", "unattached"), ("zamba", "full")]
    assert run_distributed(run_shards, 2, cases) == [[], []]
