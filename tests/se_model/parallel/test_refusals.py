"""What cannot run over several ranks says so before it runs, with the names of the layers."""

from __future__ import annotations

import pytest
import torch

from se_model import attach
from se_model.attach import check_parallel
from se_model.attentions import AttentionConfig
from se_model.baselines import FullConfig, NoMemoryConfig, RandomConfig, S2Config, SlidingWindowConfig
from se_model.loss import causal_lm_loss
from se_model.parallel import ContextParallelGroup, SequenceShard
from tests.distributed import run_distributed
from tests.se_model.tiny_models import CONFIGS, tiny_model

RECURRENT = [
    name
    for name in CONFIGS
    if not name.startswith("mamba2_hybrid")
    and name not in ("llama", "qwen3", "mistral", "granitemoehybrid-attention")
]


@pytest.mark.parametrize("name", RECURRENT)
def test_architectures_that_hand_on_no_state_are_refused_with_their_layers(name: str) -> None:
    model = attach(tiny_model(name), FullConfig())
    with pytest.raises(
        ValueError, match=r"cannot hand it to the next rank \(context_parallel\): .*layers\.\d"
    ):
        check_parallel(model)


@pytest.mark.parametrize("config", [S2Config(), RandomConfig()], ids=lambda config: config.kind)
@pytest.mark.parametrize("name", ["llama", "mamba2_hybrid"])
def test_kinds_without_an_implementation_are_refused_by_name(name: str, config: AttentionConfig) -> None:
    with pytest.raises(ValueError, match=rf"layers\.\d.*: attention '{config.kind}' cannot run with its row"):
        check_parallel(attach(tiny_model(name), config))


def test_what_can_run_passes() -> None:
    for config in (FullConfig(), SlidingWindowConfig(4), NoMemoryConfig(8)):
        check_parallel(attach(tiny_model("mamba2_hybrid"), config))
        check_parallel(attach(tiny_model("llama"), config))
    check_parallel(tiny_model("mamba2_hybrid"))


def test_attention_that_nobody_attached_would_stay_on_its_rank() -> None:
    with pytest.raises(ValueError, match=r"LlamaModel \('sdpa'\) sees its own rank's tokens only"):
        check_parallel(tiny_model("llama"))


def refusals(rank: int, ranks: int) -> list[str]:
    shard = SequenceShard.of(ContextParallelGroup(), 16, torch.tensor([0, 5, 16]))
    row, own = torch.arange(16)[None] + 3, torch.arange(8)[None] + 3
    cu_seqlens, hybrid = torch.tensor([0, 5, 16]), tiny_model("mamba2_hybrid")
    llama, s2 = attach(tiny_model("llama"), FullConfig()), attach(tiny_model("llama"), S2Config())
    bamba = attach(tiny_model("bamba"), FullConfig())
    mask = (torch.arange(8) > 0).long()[None]
    calls = [
        lambda: causal_lm_loss(hybrid, row, shard=shard),
        lambda: causal_lm_loss(hybrid, own, cu_seqlens=torch.tensor([0, 5, 8]), shard=shard),
        lambda: hybrid(row, shard=shard),
        lambda: hybrid(own.expand(2, -1), shard=shard),
        lambda: hybrid(own, shard=shard, attention_mask=mask),
        lambda: hybrid(own, shard=shard, cu_seqlens=torch.tensor([0, 5, 8])),
        lambda: hybrid(own, shard=shard, use_cache=True),
        lambda: hybrid(own, shard=shard, labels=own),
        lambda: llama(row, shard=shard),
        lambda: llama(own, shard=shard, attention_mask=mask, use_cache=False),
        lambda: causal_lm_loss(s2, row, cu_seqlens=cu_seqlens, shard=shard),
        lambda: causal_lm_loss(bamba, row, cu_seqlens=cu_seqlens, shard=shard),
        lambda: bamba(own, shard=shard),
        lambda: causal_lm_loss(tiny_model("llama"), row, cu_seqlens=cu_seqlens, shard=shard),
        lambda: SequenceShard.of(shard.group, 15),
    ]
    messages = []
    for call in calls:
        try:
            call()
            messages.append("ran")
        except ValueError as refusal:
            messages.append(str(refusal))
    return messages


def test_calls_that_would_be_computed_wrongly_are_refused_on_every_rank() -> None:
    expected = [
        "every rank is given the whole row",
        "every rank is given the whole row",
        "a rank is given its own 8 tokens of 16; got 16",
        "flatten the rows",
        "leave attention_mask, cu_seqlens and past_key_values out",
        "leave attention_mask, cu_seqlens and past_key_values out",
        "pass use_cache=False",
        "use causal_lm_loss",
        "16 queries and 16 keys; a rank is given its own 8 tokens",
        "its row has no padding",
        "attention 's2' cannot run",
        "BambaModel carries state from token to token in 2 modules",
        "BambaModel carries state from token to token in 2 modules",
        "attach one that sees beyond",
        "15 tokens cannot be cut into 2 equal shards",
    ]
    for messages in run_distributed(refusals, 2):
        for message, words in zip(messages, expected, strict=True):
            assert words in message
