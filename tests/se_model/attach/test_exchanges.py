"""What layers say that they exchange is what a rank receives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest
import torch

from se_model.attach import LayerExchange, attach, layer_exchanges
from se_model.baselines import FullConfig, S2Config, SlidingWindowConfig
from se_model.hylora import HyLoraConfig, apply_hylora
from se_model.loss import causal_lm_loss
from se_model.parallel import ContextParallelGroup, SequenceShard
from se_model.parallel.formula import Share
from se_model.parallel.volumes import ATTENTION, CONVOLUTIONS, PURPOSES, STATES
from tests.distributed import run_distributed
from tests.se_model.tiny_models import tiny_model

LENGTH, RANKS = 48, 4
SHARE = Share(RANKS, rows=2, tokens=LENGTH, itemsize=4)
PURPOSE_OF = {"keys and values": ATTENTION, "convolution": CONVOLUTIONS, "state": STATES}
MODELS = [
    "mamba2_hybrid",
    "mamba2_hybrid-ends",
    "llama",
    "bamba",
    "falcon_h1",
    "granitemoehybrid",
    "jamba",
    "nemotron_h",
    "zamba",
]


def received(rank: int, ranks: int, names: list[str]) -> list[dict[tuple[str, str], int]]:
    tokens = torch.randint(3, 64, (2, LENGTH), generator=torch.Generator().manual_seed(5))
    found = []
    for name in names:
        group = ContextParallelGroup()
        model = attach(tiny_model(name), FullConfig()).train()
        causal_lm_loss(model, tokens, shard=SequenceShard.of(group, LENGTH))[0].backward()
        found.append(
            {
                (PURPOSE_OF[purpose], direction): traffic.received
                for (purpose, direction), traffic in group.counter.by_purpose.items()
                if traffic.received
            }
        )
    return found


def summed(exchanges: Iterable[LayerExchange]) -> dict[tuple[str, str], int]:
    totals: Counter[tuple[str, str]] = Counter()
    for each in exchanges:
        totals[each.purpose, "forward"] += each.volume.forward
        totals[each.purpose, "backward"] += each.volume.backward
    return dict(totals)


def test_they_are_what_a_rank_with_neighbours_on_both_sides_receives() -> None:
    _, second, *_ = run_distributed(received, RANKS, MODELS)
    for name, counted in zip(MODELS, second, strict=True):
        said = summed(layer_exchanges(attach(tiny_model(name), FullConfig()), SHARE))
        assert said == counted, name
        assert {purpose for purpose, _ in said} <= set(PURPOSES)


def test_they_come_by_layer_and_do_not_depend_on_adapters() -> None:
    model = attach(tiny_model("mamba2_hybrid"), SlidingWindowConfig(8))
    exchanges = list(layer_exchanges(model, SHARE))
    assert [(each.layer, each.purpose) for each in exchanges] == [
        ("backbone.layers.0.mixer", CONVOLUTIONS),
        ("backbone.layers.0.mixer", STATES),
        ("backbone.layers.1.mixer", ATTENTION),
        ("backbone.layers.1.mixer", CONVOLUTIONS),
        ("backbone.layers.2.mixer", CONVOLUTIONS),
        ("backbone.layers.2.mixer", STATES),
    ]
    assert list(layer_exchanges(apply_hylora(model, HyLoraConfig(rank=2)), SHARE)) == exchanges


def test_a_hybrid_that_nothing_is_attached_to_has_full_attention() -> None:
    bare, attached = tiny_model("mamba2_hybrid"), attach(tiny_model("mamba2_hybrid"), FullConfig())
    assert list(layer_exchanges(bare, SHARE)) == list(layer_exchanges(attached, SHARE))


def test_on_one_rank_nothing_is_exchanged() -> None:
    model = attach(tiny_model("bamba"), FullConfig())
    alone = Share(1, rows=2, tokens=LENGTH, itemsize=4)
    assert {each.volume.total for each in layer_exchanges(model, alone)} == {0}


def test_attention_that_cannot_share_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="attention 's2' cannot run with its row over several ranks"):
        list(layer_exchanges(attach(tiny_model("llama"), S2Config()), SHARE))
