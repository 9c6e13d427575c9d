"""A row over n ranks equals the row on one: outputs, loss and every parameter's gradient (property 5)."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from se_model import HyLoraConfig, apply_hylora, attach
from se_model.attach import set_step
from se_model.attentions import AttentionConfig
from se_model.baselines import FullConfig, NoMemoryConfig, SlidingWindowConfig
from se_model.hybrid.mamba2 import Mamba2Mixer
from se_model.parallel import ContextParallelGroup, SequenceShard
from se_model.span import SpanConfig
from tests.distributed import run_distributed
from tests.se_model.parallel.compare import Outcome, assert_near, assert_together, outcome
from tests.se_model.tiny_models import tiny_model
from tests.tolerances import BF16, F32, F64

LENGTH = 48

# On four ranks of 12 tokens; on two of 24 and three of 16 some of the places are others.
ROWS: dict[str, list[int] | None] = {
    "one document": None,
    "on the boundaries": [0, 12, 36, 48],
    "one token before": [0, 11, 23, 35, 48],
    "one token after": [0, 13, 25, 37, 48],
    "over three shards, none of it on the last": [0, 7, 36, 41, 48],
    "over four shards": [0, 10, 38, 48],
    "short ones": [0, 1, 2, 10, 12, 13, 15, 22, 24, 25, 26, 48],
    "a halo of three documents": [0, 22, 23, 25, 34, 36, 48],
}

ATTENTIONS: dict[str, AttentionConfig | None] = {
    "unattached": None,
    "full": FullConfig(),
    "window": SlidingWindowConfig(window=5),
    "window over shards": SlidingWindowConfig(window=31),
    "single token": SlidingWindowConfig(window=1),
    "none": NoMemoryConfig(chunk_sizes=(4, 6)),
    "span": SpanConfig(chunk_sizes=(4, 12), block_size=2, top_k=2),
    "span, causal": SpanConfig(chunk_sizes=(4, 12), block_size=2, top_k=2, selection="causal"),
}


@dataclass(frozen=True)
class Case:
    """A model and the row that it is given."""

    attention: str = "unattached"
    row: str = "one document"
    model: str = "mamba2_hybrid"
    dtype: torch.dtype = torch.float64
    batch: int = 1
    checkpointing: bool = False
    adapters: bool = False


def build(case: Case) -> nn.Module:
    model = copy.deepcopy(tiny_model(case.model)).to(case.dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", "norm_f.weight", "mixer.D")):
                parameter.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
        for module in model.modules():
            if isinstance(module, Mamba2Mixer):
                # Steps of about a twentieth that decay by a thousandth of that: the first token's state is
                # whole at the last one, and no error in handing it on can hide.
                module.A_log.copy_(torch.linspace(-7, -4, len(module.A_log)))
                module.dt_bias.fill_(-3)
    if ATTENTIONS[case.attention] is not None:
        model = attach(model, ATTENTIONS[case.attention])
        set_step(model, 3)
    if case.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if case.adapters:
        torch.manual_seed(7)
        model = apply_hylora(model, HyLoraConfig(rank=2, alpha=4))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # Zeros would stop the gradient of every lora_A.
                torch.nn.init.normal_(parameter, std=0.1)
    return model.train()


def run(case: Case, group: ContextParallelGroup | None = None) -> Outcome:
    tokens = torch.randint(3, 64, (case.batch, LENGTH), generator=torch.Generator().manual_seed(5))
    cu_seqlens = None if ROWS[case.row] is None else torch.tensor(ROWS[case.row])
    shard = None if group is None else SequenceShard.of(group, LENGTH, cu_seqlens)
    return outcome(build(case), tokens, cu_seqlens, shard)


def run_shards(rank: int, ranks: int, cases: list[Case]) -> list[Outcome]:
    group = ContextParallelGroup()
    return [run(case, group) for case in cases]


def assert_equals_one_process(ranks: int, cases: list[Case], tolerance: float) -> None:
    by_rank = run_distributed(run_shards, ranks, cases)
    for case, shards in zip(cases, zip(*by_rank, strict=True), strict=True):
        assert_together(list(shards), run(case), tolerance, case)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("ranks", [2, 4])
def test_hybrid_with_every_row(ranks: int, attention: str) -> None:
    rows = ROWS if ranks == 4 else ["one document", "on the boundaries", "a halo of three documents"]
    assert_equals_one_process(ranks, [Case(attention, row) for row in rows], F64)


@pytest.mark.parametrize("ranks", [1, 3, 8])
def test_other_numbers_of_ranks(ranks: int) -> None:
    rows = ["one document", "one token before", "over three shards, none of it on the last"]
    attentions = ["unattached", "window over shards"]
    assert_equals_one_process(ranks, [Case(a, row) for a in attentions for row in rows], F64)


@pytest.mark.parametrize("row", ["one document", "over three shards, none of it on the last"])
def test_float32(row: str) -> None:
    kinds = ["unattached", "window", "none", "span"]
    assert_equals_one_process(4, [Case(kind, row, dtype=torch.float32) for kind in kinds], F32)


def test_bfloat16_with_half_precision_exchanges() -> None:
    case = Case("full", "one token after", dtype=torch.bfloat16)
    shards = [outcomes[0] for outcomes in run_distributed(run_shards, 2, [case])]
    expected = run(replace(case, dtype=torch.float64))
    # Of the sum over 48 tokens, each rounded to 8 bits on its way.
    assert_near(sum(shard.loss for shard in shards), expected.loss, BF16, case, "loss")


def test_activation_checkpointing_runs_the_exchanges_again() -> None:
    cases = [
        Case(kind, "one token before", checkpointing=True)
        for kind in ("unattached", "window", "none", "span")
    ]
    assert_equals_one_process(4, cases, F64)


def test_several_rows_of_one_document_each() -> None:
    assert_equals_one_process(4, [Case(kind, batch=3) for kind in ATTENTIONS], F64)


def test_adapters_over_frozen_weights() -> None:
    cases = [
        Case(kind, "one token after", adapters=True, checkpointing=kind == "full")
        for kind in ("full", "none")
    ]
    assert_equals_one_process(2, cases, F64)


def test_other_layouts_of_layers() -> None:
    names = ["mamba2_hybrid-ends", "mamba2_hybrid-untied"]
    assert_equals_one_process(4, [Case("full", "one token after", model=name) for name in names], F64)


@pytest.mark.parametrize("ranks", [2, 4])
def test_llama_with_attached_attention(ranks: int) -> None:
    rows = ["one document", "one token before", "over three shards, none of it on the last"]
    cases = [Case(kind, row, model="llama") for kind in ("full", "window", "none", "span") for row in rows]
    assert_equals_one_process(ranks, cases, F64)


def count_traffic(rank: int, ranks: int, case: Case) -> dict[tuple[str, str], tuple[int, int]]:
    group = ContextParallelGroup()
    run(case, group)
    return {key: (traffic.sent, traffic.received) for key, traffic in group.counter.by_purpose.items()}


def test_state_space_layers_exchange_states_and_halos_and_no_tokens() -> None:
    config, ranks, width = tiny_model("mamba2_hybrid").config, 4, torch.float64.itemsize
    first, second, _, last = run_distributed(count_traffic, ranks, Case())
    heads = config.mamba_num_heads
    state = heads * config.mamba_head_dim * config.state_size + heads  # and each head's decay
    layers = config.num_hidden_layers - 1
    for direction in ("forward", "backward"):
        assert second["state", direction] == (layers * (ranks - 1) * state * width,) * 2
    inputs = layers * (config.inner_size + 2 * config.n_groups * config.state_size)
    inputs += (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    halo = (config.conv_kernel - 1) * inputs * width
    assert (config.conv_kernel, first["convolution", "forward"], last["convolution", "forward"]) == (
        config.attention_conv_kernel,
        (halo, 0),
        (0, halo),
    )
    assert second["convolution", "backward"] == (halo, halo)
    keys = 2 * config.num_key_value_heads * config.head_dim * LENGTH // ranks
    assert second["keys and values", "forward"] == ((ranks - 1) * keys * width,) * 2


def test_rows_put_boundaries_where_their_names_say() -> None:
    own = LENGTH // 4
    assert {bound % own for bound in ROWS["on the boundaries"]} == {0}
    assert {bound % own for bound in ROWS["one token before"][1:-1]} == {own - 1}
    assert {bound % own for bound in ROWS["one token after"][1:-1]} == {1}
    spans = [
        {t // own for t in range(*pair)}
        for pair in pairwise(ROWS["over three shards, none of it on the last"])
    ]
    assert {0, 1, 2} in spans
