"""What cannot run over several ranks says so before it runs, with the names of the layers."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from se_model import attach
from se_model.attach import check_parallel
from se_model.attentions import AttentionConfig
from se_model.baselines import FullConfig, NoMemoryConfig, RandomConfig, S2Config, SlidingWindowConfig
from se_model.loss import causal_lm_loss
from se_model.parallel import ContextParallelGroup, SequenceShard
from tests.distributed import run_distributed
from tests.se_model.tiny_models import CONFIGS, UNKNOWN, tiny_model


def test_layers_that_hand_on_no_state_are_refused_by_name() -> None:
    model = attach(tiny_model(UNKNOWN), FullConfig())
    with pytest.raises(
        ValueError, match=r"cannot hand it to the next rank \(context_parallel\): .*layers\.\d"
    ):
        check_parallel(model)


@pytest.mark.parametrize("config", [S2Config(), RandomConfig()], ids=lambda config: config.kind)
@pytest.mark.parametrize("name", ["llama", "mamba2_hybrid"])
def test_kinds_without_an_implementation_are_refused_by_name(name: str, config: AttentionConfig) -> None:
    with pytest.raises(ValueError, match=rf"layers\.\d.*: attention '{config.kind}' cannot run with its row"):
        check_parallel(attach(tiny_model(name), config))


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != UNKNOWN])
def test_all_others_run(name: str) -> None:
    check_parallel(attach(tiny_model(name), FullConfig()))


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
    unknown, bamba = (attach(tiny_model(name), FullConfig()) for name in (UNKNOWN, "bamba"))
    deaf = {part: attach(tiny_model("bamba"), FullConfig()) for part in ("0.mamba", "1.self_attn")}
    for part, model in deaf.items():
        layer = model.get_submodule(f"model.layers.{part}")
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: (args, {key: kwargs[key] for key in kwargs if key != "shard"}),
            with_kwargs=True,
        )
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
        lambda: causal_lm_loss(unknown, row, cu_seqlens=cu_seqlens, shard=shard),
        lambda: unknown(own, shard=shard),
        lambda: bamba(own, shard=shard, use_cache=True),
        lambda: llama(own, shard=shard, use_cache=True),
        lambda: llama(own, shard=shard, past_key_values=DynamicCache(), use_cache=False),
        lambda: llama.generate(own, shard=shard, max_new_tokens=1),
        lambda: hybrid.generate(own, shard=shard, max_new_tokens=1),
        lambda: bamba(own, shard=shard, attention_mask=mask, use_cache=False),
        lambda: deaf["0.mamba"](own, shard=shard, use_cache=False),
        lambda: deaf["1.self_attn"](own, shard=shard, use_cache=False),
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
        "MiniMaxModel carries state from token to token in 1 modules",
        "MiniMaxModel carries state from token to token in 1 modules",
        "BambaModel is given a cache beside a shard: new tokens are not decoded over several ranks",
        "LlamaModel is given a cache beside a shard: new tokens are not decoded over several ranks",
        "Pass use_cache=False and no past_key_values, and generate on one rank",
        "not used by the model: ['shard']",  # transformers' own words
        "has neither padding nor a cache",
        "AttachedBambaMixer is given a shard: its row has no padding, and it keeps no cache",
        "AttachedBambaMixer is not told that its tokens are a part of a row",
        "BambaAttention is not told that its tokens are a part of a row",
        "attach one that sees beyond",
        "15 tokens cannot be cut into 2 equal shards",
    ]
    for messages in run_distributed(refusals, 2):
        for message, words in zip(messages, expected, strict=True):
            assert words in message


def caches(rank: int, ranks: int) -> list[bool]:
    shard = SequenceShard.of(ContextParallelGroup(), 16)
    own = torch.arange(8)[None] + 3
    models = (attach(tiny_model(name), FullConfig()) for name in ("llama", "bamba"))
    return [model(own, shard=shard).past_key_values is None for model in models]


def test_a_call_with_a_shard_keeps_no_cache_that_only_its_rank_could_go_on_from() -> None:
    assert run_distributed(caches, 2) == [[True, True]] * 2
