"""What a call was told is known while it runs, and forgotten when it ends or fails."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from se_model.attach import attach, get_step
from se_model.attach.marks import MARK, Attachment, RunningCall, running
from se_model.baselines import FullConfig
from se_model.span import SpanConfig
from se_model.span.cases import AskedDocument, Cases, Needle, Question
from se_model.span.documents import DocumentBounds
from se_model.span.statistics import record_selections
from tests.se_model.tiny_models import UNKNOWN, tiny_model

TOKENS = torch.arange(3, 15)[None]


def attachment_of(model: nn.Module) -> Attachment:
    return getattr(model, MARK)


def calls_seen(model: nn.Module) -> list[RunningCall | None]:
    """What the first layer finds from now on."""
    seen: list[RunningCall | None] = []
    decoder = getattr(model, model.base_model_prefix)
    decoder.layers[0].register_forward_pre_hook(lambda *_: seen.append(attachment_of(model).call))
    return seen


@pytest.mark.parametrize("name", ["llama", "mamba2_hybrid"])
def test_a_call_is_known_while_it_runs(name: str) -> None:
    model = attach(tiny_model(name), FullConfig()).train()
    seen = calls_seen(model)
    model(TOKENS, use_cache=False)
    model(TOKENS, use_cache=False, cu_seqlens=DocumentBounds((0, 5, 12)))
    with torch.no_grad():
        model(TOKENS, use_cache=False)
    assert seen == [RunningCall(0), RunningCall(1, packed=True), RunningCall(2)]
    assert attachment_of(model).call is None
    assert get_step(model) == 2


def test_what_is_recorded_of_a_call_is_told_apart_by_layer() -> None:
    model = attach(copy.deepcopy(tiny_model("llama")), SpanConfig(chunk_sizes=4, block_size=2, top_k=1))
    needle = Needle(0, 0, 1)
    cases = Cases(1, 12, (AskedDocument(0, (needle,), (Question(8, 9, 10, needle),)),))
    with record_selections() as record:
        record.ask(lambda: cases)
        model(TOKENS, use_cache=False)
    assert sorted(record.hits().layers) == list(range(model.config.num_hidden_layers))
    assert {each.asked_cases for each in record.hits().layers.values()} == {1}


def test_a_call_that_fails_is_forgotten() -> None:
    model = attach(tiny_model("llama"), FullConfig())

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    handle = model.model.layers[1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        model(TOKENS, cu_seqlens=torch.tensor([0, 5, 12]))
    assert attachment_of(model).call is None
    assert running.get() is None
    handle.remove()
    model(TOKENS)


def test_a_refused_call_leaves_nothing_behind() -> None:
    model = attach(tiny_model(UNKNOWN), FullConfig())
    with pytest.raises(ValueError, match="carry state across packed documents"):
        model(TOKENS, cu_seqlens=torch.tensor([0, 5, 12]))
    assert attachment_of(model).call is None


def test_a_copy_has_calls_of_its_own() -> None:
    model = attach(tiny_model("llama"), FullConfig())
    other = copy.deepcopy(model)
    seen, of_other = calls_seen(model), calls_seen(other)
    other(TOKENS)
    assert (seen, of_other) == ([], [RunningCall(0)])
    assert attachment_of(other).call is None
