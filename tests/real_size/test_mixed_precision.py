"""A model in bfloat16 trains all that it should, with DeepSpeed and without."""

from __future__ import annotations

import copy
import os
import pickle
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import deepspeed
import pytest
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad
from peft import PeftModel
from torch import Tensor, nn

from pipelines.recipe.keys.train import TrainKeys
from pipelines.train.worker.engine import Engine
from se_model.attach import attach
from se_model.hylora import HyLoraConfig, apply_hylora, coverage, load_adapter
from se_model.hylora.kinds import Kind
from se_model.loss import causal_lm_loss
from se_model.parallel import ContextParallelGroup, SequenceShard
from se_model.span import SpanConfig
from tests.distributed import run_distributed
from tests.se_model.architectures.life import generated, kept, train
from tests.se_model.architectures.probes import EVERYTHING, LENGTH, SPAN, hylora_config, logits, random_tokens
from tests.se_model.tiny_models import ARCHITECTURES, tiny_model
from tests.tolerances import BF16, EXACT, within

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Everywhere bfloat16; float16 in our own model and in one whose mixers look into their convolutions.
CASES = [*((name, "bf16") for name in ARCHITECTURES), ("mamba2_hybrid", "fp16"), ("bamba", "fp16")]
RATE = 2e-4
"""The recipe's learning rate. At 1.0 half the distance to the next bfloat16 number is 2e-3 or more."""


def half_model(name: str, dtype: str = "bf16") -> nn.Module:
    return tiny_model(name).to(HALF[dtype])


def adapted(name: str, dtype: str = "bf16") -> PeftModel:
    """With low-rank updates that are the same at every call."""
    model = half_model(name, dtype)
    torch.manual_seed(3)
    return apply_hylora(attach(model, SPAN), hylora_config(model))


def test_sixty_steps_at_the_papers_rate_move_every_norm_and_convolution() -> None:
    model = apply_hylora(half_model("mamba2_hybrid"), HyLoraConfig(rank=4, alpha=8)).train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    before = {name: p.detach().clone() for name, p in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=RATE, weight_decay=0.0)
    tokens = random_tokens(4, LENGTH)
    for _ in range(60):
        loss, count = causal_lm_loss(model, tokens)
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    still = {
        name: int((p == before[name]).sum())
        for name, p in trained.items()
        if "embedding" not in name  # the rows of words that do not occur have no gradient
    }
    assert len(still) == 12
    assert set(still.values()) == {0}, still


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_what_should_train_moves_and_what_is_saved_and_merged_computes_the_same(
    name: str, dtype: str, tmp_path: Path
) -> None:
    half, tokens = HALF[dtype], random_tokens(2, LENGTH)
    bare = attach(half_model(name, dtype), SPAN)
    expected, continued = logits(bare, tokens), generated(bare)
    adapter = adapted(name, dtype)
    assert torch.equal(logits(adapter.eval(), tokens), expected)
    assert generated(adapter) == continued

    trainable = [p for p in adapter.parameters() if p.requires_grad]
    assert {p.dtype for p in trainable} == {torch.float32}
    report = coverage(adapter, hylora_config(bare))
    assert {row.trainable_dtypes for row in report.kinds.values()} == {(), ("float32",)}
    started, frozen = kept(adapter, trainable=True), kept(adapter, trainable=False)
    reached = train(adapter, steps=2, rate=RATE)
    assert [parameter for parameter, has in reached.items() if not has] == []
    moved, still = kept(adapter, trainable=True), kept(adapter, trainable=False)
    assert [parameter for parameter in started if torch.equal(moved[parameter], started[parameter])] == []
    assert [parameter for parameter in frozen if not torch.equal(still[parameter], frozen[parameter])] == []

    train(adapter, steps=2, rate=1e-2)
    trained, continued = logits(adapter, tokens), generated(adapter)
    assert not torch.equal(trained, expected)
    adapter.save_pretrained(tmp_path, save_embedding_layers=False)
    again = attach(PeftModel.from_pretrained(half_model(name, dtype), tmp_path).eval(), SPAN)
    assert torch.equal(logits(again, tokens), trained)
    assert generated(again) == continued

    loaded = attach(load_adapter(half_model(name, dtype), tmp_path).merge_and_unload(), SPAN)
    merged = adapter.merge_and_unload()
    assert_same_tensors(merged, loaded.state_dict())
    assert {p.dtype for p in merged.parameters()} == {half}
    assert [type(module) for module in merged.modules()] == [type(module) for module in bare.modules()]
    assert merged.state_dict().keys() == bare.state_dict().keys()
    # With every block chosen: where two are as relevant as each other, rounding would decide between them.
    unmerged, merged_logits = (logits(attach(model, EVERYTHING), tokens) for model in (again, merged))
    assert (merged_logits - unmerged).norm() <= 2 * BF16 * unmerged.norm()


def assert_same_tensors(model: nn.Module, expected: dict[str, Tensor]) -> None:
    tensors = model.state_dict()
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, expected[name], msg=name, **EXACT)


def test_merged_weights_are_rounded_once() -> None:
    adapter = adapted("mamba2_hybrid")
    train(adapter, steps=3, rate=1e-2)
    masters = adapter.state_dict()
    expected = {}
    for name, weight in half_model("mamba2_hybrid").state_dict().items():
        at = f"base_model.model.{name.rpartition('.')[0]}"
        leaf = name.rpartition(".")[2]
        if f"{at}.modules_to_save.default.{leaf}" in masters:
            weight = masters[f"{at}.modules_to_save.default.{leaf}"]
        elif f"{at}.lora_A.default.weight" in masters:
            down, up = (masters[f"{at}.lora_{which}.default.weight"] for which in "AB")
            weight = weight.float() + 2 * (up @ down)
        expected[name] = weight.bfloat16()
    assert_same_tensors(adapter.merge_and_unload(), expected)


@pytest.mark.parametrize("name", ["mamba2_hybrid", "zamba2", "llama"])
def test_training_goes_on_from_a_saved_adapter_as_if_it_had_not_stopped(name: str, tmp_path: Path) -> None:
    """Plain gradient descent has no state but the weights: any bit of them that is lost shows."""
    whole = adapted(name)
    train(whole, steps=2, rate=RATE)
    whole.save_pretrained(tmp_path, save_embedding_layers=False)
    resumed = attach(load_adapter(half_model(name), tmp_path, is_trainable=True), SPAN)
    for model in (whole, resumed):
        train(model, steps=2, rate=RATE)
    assert_same_tensors(resumed, whole.state_dict())


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_changes_no_gradient(reentrant: bool) -> None:
    def gradients(model: PeftModel) -> dict[str, Tensor]:
        causal_lm_loss(model.train(), random_tokens(2, LENGTH))[0].backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    expected, checkpointed = gradients(adapted("bamba")), adapted("bamba")
    checkpointed.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        checkpointed.enable_input_require_grads()
    for name, gradient in gradients(checkpointed).items():
        torch.testing.assert_close(gradient, expected[name], msg=name, **within(BF16))


def test_copies_and_casts_of_the_model_keep_working() -> None:
    tokens, adapter = random_tokens(2, LENGTH), adapted("mamba2_hybrid")
    train(adapter, steps=2, rate=1e-2)
    expected = logits(adapter, tokens)
    for other in (copy.deepcopy(adapter), pickle.loads(pickle.dumps(adapter.get_base_model()))):
        assert torch.equal(logits(other, tokens), expected)
    assert_same_tensors(copy.deepcopy(adapter).merge_and_unload(), adapter.merge_and_unload().state_dict())
    wide, narrow = adapted("mamba2_hybrid").float(), adapted("mamba2_hybrid").bfloat16()
    assert logits(wide, tokens).dtype == torch.float32
    assert coverage(narrow).kinds[Kind.NORMS].trainable_dtypes == ("bfloat16",)
    assert torch.equal(logits(narrow, tokens), logits(adapted("mamba2_hybrid"), tokens))


def test_a_model_trained_in_full_in_bfloat16_is_shown_as_such() -> None:
    model = half_model("mamba2_hybrid")
    assert {row.trainable_dtypes for row in coverage(model).kinds.values()} == {("bfloat16",)}
    assert all("bfloat16" in line for line in str(coverage(model)).splitlines()[1:-1])


@dataclass
class Trained:
    """What one rank saw under one ZeRO stage: names of tensors that did not do what they should."""

    zero: int
    tensors: int
    without_gradient: list[str]
    unmoved: list[str]
    frozen_that_moved: list[str]


def train_under_zero(rank: int, ranks: int) -> list[Trained]:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}  # DeepSpeed's
    return [_two_steps(zero, ranks, random_tokens(ranks, LENGTH)[rank : rank + 1]) for zero in (1, 2, 3)]


def _two_steps(zero: int, ranks: int, tokens: Tensor) -> Trained:
    model = adapted("mamba2_hybrid").train()
    keys = {"data": "shards", "model": "a model", "attention": {"kind": "full"}, "steps": 2, "workers": ranks}
    rest = {"tokens_per_step": 1024, "learning_rate": RATE, "precision": "bf16", "deepspeed": {"zero": zero}}
    frozen_before = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    engine = Engine(model, TrainKeys.model_validate(keys | rest), workers=ranks, accumulation=1)
    trained = {name: p for name, p in engine.model.named_parameters() if p.requires_grad}
    before = {name: safe_get_full_fp32_param(p).clone() for name, p in trained.items()}
    reached: set[str] = set()
    for _ in range(2):
        engine.backward(engine.loss_sum(tokens, None), ranks * (LENGTH - 1))
        reached |= {name for name, p in trained.items() if safe_get_full_grad(p).any()}
        engine.update(RATE)
    after = {name: safe_get_full_fp32_param(p) for name, p in trained.items()}
    frozen = {name: p for name, p in engine.model.named_parameters() if name in frozen_before}
    with deepspeed.zero.GatheredParameters(list(frozen.values()), enabled=zero == 3):
        differ = [name for name, p in frozen.items() if not torch.equal(p, frozen_before[name])]
    unmoved = [name for name in trained if torch.equal(after[name], before[name])]
    return Trained(zero, len(trained), sorted(trained.keys() - reached), unmoved, differ)


ROW, BOUNDS = 64, (0, 19, 64)


def gradients_of_a_row(group: ContextParallelGroup | None) -> dict[str, Tensor]:
    """The loss of a packed row, or of this rank's part of it, and every gradient."""
    model = half_model("bamba")
    torch.manual_seed(3)
    adapter = apply_hylora(attach(model, SpanConfig(chunk_sizes=16, block_size=4, top_k=2)), HyLoraConfig())
    tokens, cu_seqlens, adapter = random_tokens(1, ROW), torch.tensor(BOUNDS), adapter.train()
    if group is None:  # Bamba on one rank refuses packed rows.
        loss = sum(causal_lm_loss(adapter, tokens[:, start:end])[0] for start, end in pairwise(BOUNDS))
    else:
        shard = SequenceShard.of(group, ROW, cu_seqlens)
        loss = causal_lm_loss(adapter, tokens, cu_seqlens=cu_seqlens, shard=shard)[0]
    loss.backward()
    gradients = {name: p.grad for name, p in adapter.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}


def on_a_rank(rank: int, ranks: int) -> tuple[dict[str, Tensor], list[Trained]]:
    return gradients_of_a_row(ContextParallelGroup()), train_under_zero(rank, ranks)


@pytest.fixture(scope="module")
def two_ranks() -> list[tuple[dict[str, Tensor], list[Trained]]]:
    return run_distributed(on_a_rank, 2)


def test_under_deepspeed_in_bfloat16_every_master_moves_and_no_frozen_weight_does(two_ranks) -> None:
    tensors = len(kept(adapted("mamba2_hybrid"), trainable=True))
    for _, trained in two_ranks:
        assert trained == [Trained(zero, tensors, [], [], []) for zero in (1, 2, 3)]


def test_a_row_over_two_ranks_has_the_gradients_of_one_in_bfloat16(two_ranks) -> None:
    (first, _), (second, _) = two_ranks
    for name, expected in gradients_of_a_row(None).items():
        error = (first[name] + second[name] - expected).norm() / expected.norm().clamp(min=1e-6)
        assert error <= BF16, name
