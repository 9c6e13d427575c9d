"""transformers' hybrids over n ranks equal what they compute on one, themselves."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.bamba.modeling_bamba import BambaMixer

from se_model import HyLoraConfig, apply_hylora, attach, detach
from se_model.attach import check_parallel, set_step
from se_model.attach.mixers import AttachedMixer, restore_mixers
from se_model.attentions import AttentionConfig
from se_model.baselines import FullConfig
from se_model.parallel import ContextParallelGroup, SequenceShard
from se_model.recurrence import CausalConv1d
from se_model.span import SpanConfig
from tests.distributed import run_distributed
from tests.se_model.parallel.compare import Outcome, assert_near, assert_together, outcome
from tests.se_model.tiny_models import CONFIGS
from tests.tolerances import BF16, F32, F32_SHORT

LENGTH = 48
TOKENS = torch.randint(3, 64, (2, LENGTH), generator=torch.Generator().manual_seed(5))
FULL = FullConfig()
SPAN = SpanConfig(chunk_sizes=(4, 12), block_size=2, top_k=2)

# Per architecture what its configuration can say about these layers, each value away from what it is if it
# says nothing: a layer that leaves one out is then off.
GROUPS: dict[str, Any] = {"mamba_n_groups": 2, "time_step_limit": (0.03, 0.06), "mamba_proj_bias": True}
GRANITE = {"residual_multiplier": 0.5, "embedding_multiplier": 3.0, "logits_scaling": 2.0}
FALCON = {
    "ssm_in_multiplier": 1.5,
    "ssm_out_multiplier": 0.7,
    "ssm_multipliers": [1.2, 0.8, 1.4, 0.6, 1.1],
    "attention_in_multiplier": 0.9,
    "attention_out_multiplier": 1.3,
    "embedding_multiplier": 2.0,
    "lm_head_multiplier": 0.5,
}
# One expert of several gives the router no gradient.
ROUTED = {"num_experts": 3, "num_experts_per_tok": 2}
NORMED = {"mamba_rms_norm": True}
MODELS: dict[str, dict[str, Any]] = {
    "bamba": {},
    "bamba, options": GROUPS | {"mamba_conv_bias": False},
    "falcon_h1": {},
    "falcon_h1, multipliers": GROUPS | FALCON,
    "falcon_h1, gate before norm": GROUPS | FALCON | NORMED | {"mamba_norm_before_gate": False},
    "falcon_h1, gate behind norm": NORMED | {"mamba_norm_before_gate": True, "mamba_n_groups": 2},
    "granitemoehybrid": {"num_local_experts": 3, "num_experts_per_tok": 2},
    "granitemoehybrid, options": GROUPS | GRANITE | {"num_local_experts": 0},
    "jamba": {},
    "jamba, options": {"mamba_conv_bias": False, "mamba_proj_bias": True, "num_experts_per_tok": 2},
    "lfm2": {},
    "lfm2, options": {"conv_bias": True, "conv_L_cache": 4},
    "kimi_linear": {"num_experts_per_tok": 2},
    "bailing_hybrid": {"num_experts_per_tok": 2},
    "olmo_hybrid": {},
    "olmo_hybrid, negative eigenvalues": {"linear_allow_neg_eigval": True, "linear_num_key_heads": 1},
    "qwen3_5_text": {"linear_num_value_heads": 4},
    "qwen3_next": ROUTED,
    "qwen3_next, shared keys": ROUTED | {"linear_num_value_heads": 4, "linear_value_head_dim": 12},
    "nemotron_h": {},
    "nemotron_h, options": {"n_groups": 2, "time_step_min": 0.05, "use_bias": True, "use_conv_bias": False},
    "zamba": {},
    "zamba, options": {"mamba_conv_bias": False, "mamba_proj_bias": True, "n_mamba_heads": 4},
    "zamba2": {},
    "zamba2, options": {"mamba_ngroups": 2, "time_step_min": 0.05, "add_bias_linear": True},
}
# Bounds of documents: at shards' edges, inside a shard, several within one, single tokens.
PACKED = [
    (0, 12, 36, 48),
    (0, 11, 23, 35, 48),
    (0, 13, 48),
    (0, 7, 36, 41, 48),
    (0, 10, 12, 13, 15, 38, 48),
]
KINDS = {
    "mamba2": ["bamba", "falcon_h1", "granitemoehybrid", "nemotron_h", "zamba2"],
    "gated delta": ["bailing_hybrid", "kimi_linear", "olmo_hybrid", "qwen3_5_text", "qwen3_next"],
    "others": ["jamba", "lfm2", "zamba"],
}
ARCHITECTURES = [name for names in KINDS.values() for name in names]


@dataclass(frozen=True)
class Case:
    """A model, and what is asked of it."""

    model: str
    attention: AttentionConfig = FULL
    # The layers themselves compute in float32 inside; with all else wider, little more than that is left.
    dtype: torch.dtype = torch.float64
    checkpointing: bool = False
    adapters: bool = False
    bounds: tuple[int, ...] = ()  # of the documents of a packed row


def build(case: Case) -> nn.Module:
    model = bare(case)
    if case.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model = attach(model, case.attention)
    set_step(model, 3)
    if case.adapters:
        model = adapt(model)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model.to(case.dtype).train()


def bare(case: Case) -> nn.Module:
    config = copy.deepcopy(CONFIGS[case.model.partition(",")[0]])
    for key, value in {"initializer_range": 0.1, **MODELS[case.model]}.items():
        assert hasattr(config, key), key
        setattr(config, key, value)
    torch.manual_seed(11)
    # Experts one by one: grouped products take no float64.
    how = {"attn_implementation": "sdpa", "experts_implementation": "eager"}
    model = AutoModelForCausalLM.from_config(config, **how)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # What begins as ones and zeros, so that nothing that is left out goes unnoticed.
            if name.endswith(("norm.weight", "norm_f.weight", ".D")):
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
            elif name.endswith(("dt_bias", "dt_proj.bias", "dt_proj_bias")):
                parameter.fill_(-3)
            elif name.endswith(("_proj.bias", "conv1d.bias")):
                parameter.uniform_(-0.2, 0.2, generator=torch.Generator().manual_seed(2))
            elif name.endswith("A_log"):
                # The first token's state is whole at the last one: no error in handing it on can hide.
                parameter.copy_(torch.linspace(-7, -4, parameter.numel()).view_as(parameter))
    return model


def run_shards(rank: int, ranks: int, cases: list[Case]) -> list[Outcome]:
    group, outcomes = ContextParallelGroup(), []
    for case in cases:
        tokens = TOKENS[:1] if case.bounds else TOKENS
        cu_seqlens = torch.tensor(case.bounds) if case.bounds else None
        shard = SequenceShard.of(group, LENGTH, cu_seqlens)
        outcomes.append(outcome(build(case), tokens, cu_seqlens, shard))
    return outcomes


@cache
def run_alone(case: Case) -> Outcome:
    """On one process, the documents of a packed row one by one."""
    model = build(case)
    if not case.bounds:
        return outcome(model, TOKENS)
    documents = [outcome(model, TOKENS[:1, start:end]) for start, end in pairwise(case.bounds)]
    return Outcome(
        torch.cat([document.output for document in documents], dim=1),
        sum((document.loss for document in documents), torch.zeros(())),
        sum((document.count for document in documents), torch.tensor(0)),
        documents[-1].gradients,  # summed over all of them by the model's parameters
    )


def assert_equal_one_process(ranks: int, cases: list[Case], tolerance: float = F32_SHORT) -> None:
    by_rank = run_distributed(run_shards, ranks, cases)
    for case, shards in zip(cases, zip(*by_rank, strict=True), strict=True):
        assert_together(list(shards), run_alone(case), tolerance, case)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_outputs_loss_and_gradients(ranks: int, kind: str) -> None:
    assert_equal_one_process(
        ranks, [Case(model) for model in MODELS if model.partition(",")[0] in KINDS[kind]]
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ranks", [2, 4])
def test_span_attention_and_checkpointing(ranks: int, kind: str) -> None:
    checkpointing = (False, True) if ranks == 2 else (True,)
    assert_equal_one_process(
        ranks, [Case(name, SPAN, checkpointing=each) for name in KINDS[kind] for each in checkpointing]
    )


def test_bfloat16() -> None:
    cases = [Case(name, dtype=torch.bfloat16) for name in ARCHITECTURES]
    first, second = run_distributed(run_shards, 2, cases)
    for case, *shards in zip(cases, first, second, strict=True):
        expected = run_alone(replace(case, dtype=torch.float32))
        assert_near(sum(shard.loss for shard in shards), expected.loss, BF16, case, "loss")


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_and_trained_copies_of_convolutions(kind: str) -> None:
    """Under HyLoRA a convolution is a wrapper around a trained copy."""
    cases = [
        Case(name, attention, adapters=True, checkpointing=attention is SPAN)
        for name in KINDS[kind]
        for attention in (FULL, SPAN)
    ]
    assert_equal_one_process(2, cases)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ranks", [4, 8])
def test_packed_rows_are_their_documents_one_by_one(ranks: int, kind: str) -> None:
    bounds = PACKED if ranks == 4 else PACKED[-1:]
    assert_equal_one_process(ranks, [Case(name, bounds=each) for name in KINDS[kind] for each in bounds])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_rows_on_one_rank(name: str) -> None:
    for bounds in PACKED:
        case = Case(name, bounds=bounds, checkpointing=bounds is PACKED[0])
        row = outcome(build(case), TOKENS[:1], torch.tensor(bounds))
        assert_together([row], run_alone(case), F32_SHORT, case)


@pytest.mark.parametrize("model", MODELS)
def test_whole_rows_are_what_the_layers_themselves_compute(model: str) -> None:
    case = Case(model)
    ours, theirs = build(case), build(case)
    restore_mixers(theirs)
    assert not any(isinstance(module, (AttachedMixer, CausalConv1d)) for module in theirs.modules())
    # Their delta rules compute in float32 whatever the model's dtype: forward and backward differ by CPU.
    assert_together([outcome(ours, TOKENS)], outcome(theirs, TOKENS), 3 * F32, case)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_only_the_layers_themselves_know_they_compute_themselves(name: str) -> None:
    case = Case(name, dtype=torch.float32)
    ours, theirs = build(case), build(case)
    restore_mixers(theirs)
    hidden = torch.randn(2, 13, ours.config.hidden_size, generator=torch.Generator().manual_seed(3))
    padding = (torch.arange(13) > torch.tensor([[3], [-1]])).long()
    mixers = [part for part, module in ours.named_modules() if isinstance(module, AttachedMixer)]
    assert mixers
    for part in mixers:
        padded = [model.get_submodule(part)(hidden, attention_mask=padding) for model in (ours, theirs)]
        assert torch.equal(*padded)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_matters_not_which_comes_first_the_adapter_or_the_attention(name: str) -> None:
    """Trained copies in half precision are of classes of their own, made over that of the convolution."""
    found = []
    for order in ([attach_full, adapt], [adapt, attach_full]):
        model: nn.Module = bare(Case(name)).to(torch.bfloat16)
        for step in order:
            model = step(model)
        with torch.no_grad():
            found.append(model.eval()(TOKENS, use_cache=False).logits)
        detach(model)
        assert not any(isinstance(module, CausalConv1d) for module in model.modules())
        model(TOKENS, use_cache=False)
    assert torch.equal(*found)


def attach_full(model: nn.Module) -> nn.Module:
    return attach(model, FULL)


def adapt(model: nn.Module) -> nn.Module:
    torch.manual_seed(7)
    return apply_hylora(model, HyLoraConfig(rank=2, alpha=4))


def test_attached_models_are_copied_and_pickled_with_their_layers() -> None:
    model = attach(build(Case("bamba")), SPAN)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        check_parallel(other)
        detach(other)
        with pytest.raises(ValueError, match="cannot hand it to the next rank"):
            check_parallel(other)
    check_parallel(model)


def test_a_class_derived_from_a_known_one_is_not_known() -> None:
    class OtherMixer(BambaMixer):
        pass

    model = detach(build(Case("bamba")))
    for module in model.modules():
        if type(module) is BambaMixer:
            module.__class__ = OtherMixer
    with pytest.raises(ValueError, match="cannot hand it to the next rank"):
        check_parallel(attach(model, FULL))
