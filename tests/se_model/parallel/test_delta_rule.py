"""Property 5 for the gated delta rule: on any number of ranks what one process computes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor

from se_model.parallel.delta_rule import PURPOSE, state_before
from se_model.parallel.formula import Share, delta_rule
from se_model.parallel.group import ContextParallelGroup
from se_model.parallel.shard import SequenceShard
from se_model.recurrence import delta_rule_chunked, delta_rule_naive
from tests.distributed import run_distributed
from tests.tolerances import F64, within

SHARD = 12
GROUPS, HEADS, KEY, VALUE = 2, 4, 5, 6


@dataclass(frozen=True)
class Case:
    """Documents' bounds of a row, () for two rows of one document; a decay per channel or per head."""

    bounds: tuple[int, ...]
    channels: bool


def cases(ranks: int) -> list[Case]:
    """Documents over several shards, begin before, at and behind a shard's first token, and short ones."""
    length = ranks * SHARD
    inner = [(), (12,), (11,), (13,), (5, 7, 20), (3, 12, 24, 25, 26, 47, length - 3)]
    packed = [tuple(sorted({0, *(bound for bound in each if bound < length), length})) for each in inner]
    return [Case(bounds, channels) for bounds in [(), *packed] for channels in (False, True)]


def draw(case: Case, ranks: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v, log_decay, beta and the outputs' weights of the whole row; decays of about exp(-0.01)."""
    generator = torch.Generator().manual_seed(3)
    batch, length = 1 if case.bounds else 2, ranks * SHARD

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, length, *shape, generator=generator, dtype=torch.float64)

    log = -0.01 * normal(HEADS, *([KEY] if case.channels else [])).abs()
    beta = 0.1 + 0.3 * normal(HEADS).sigmoid()
    tensors = normal(GROUPS, KEY), normal(GROUPS, KEY), normal(HEADS, VALUE), log, beta, normal(HEADS, VALUE)
    return [tensor.to(dtype) for tensor in tensors]


def agree(rank: int, ranks: int) -> None:
    """Every rank computes the whole row too, and compares its part: outputs, last state, every gradient."""
    group = ContextParallelGroup()
    for case in cases(ranks):
        *whole, weights = draw(case, ranks, torch.float64)
        whole = [x.requires_grad_() for x in whole]
        cu_seqlens = torch.tensor(case.bounds) if case.bounds else None
        expected, last = delta_rule_naive(*whole, cu_seqlens=cu_seqlens)
        expected_gradients = torch.autograd.grad((expected * weights).sum() + last.sum(), whole)

        shard = SequenceShard.of(group, ranks * SHARD, cu_seqlens)
        own = [x.detach()[:, shard.tokens].clone().requires_grad_() for x in whole]
        found, state = delta_rule_chunked(
            *own, chunk_size=5, initial_state=partial(state_before, shard), cu_seqlens=shard.documents
        )
        loss = (found * weights[:, shard.tokens]).sum()
        if rank == ranks - 1:
            torch.testing.assert_close(state, last, **within(F64))
            loss = loss + state.sum()
        torch.testing.assert_close(found, expected[:, shard.tokens], **within(F64), msg=f"{case}")
        gradients = torch.autograd.grad(loss, own)
        for one, other in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(one, other[:, shard.tokens], **within(F64), msg=f"{case}")


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_outputs_last_state_and_every_gradient(ranks: int) -> None:
    run_distributed(agree, ranks)


@pytest.mark.parametrize("channels", [False, True])
def test_the_first_token_is_felt_in_the_last_one(channels: bool) -> None:
    """Else an error in handing its state on could not show above."""
    *tensors, _ = draw(Case((), channels), 8, torch.float64)
    value = tensors[2].requires_grad_()
    (felt,) = torch.autograd.grad(delta_rule_naive(*tensors)[0][:, -1].sum(), value)
    assert felt[:, 0].abs().max() > 1e3 * F64


def received(rank: int, ranks: int) -> list[tuple[int, int]]:
    group, found = ContextParallelGroup(), []
    for case in cases(ranks):
        group.counter.reset()
        *own, weights = (x[:, :SHARD] for x in draw(case, ranks, torch.float32))
        own = [x.clone().requires_grad_() for x in own]
        shard = SequenceShard.of(group, ranks * SHARD, torch.tensor(case.bounds) if case.bounds else None)
        o, _ = delta_rule_chunked(
            *own, initial_state=partial(state_before, shard), cu_seqlens=shard.documents
        )
        (o * weights).sum().backward()
        assert {purpose for purpose, _ in group.counter.by_purpose} == {PURPOSE}
        found.append((group.counter.total("forward").received, group.counter.total("backward").received))
    return found


def test_a_rank_receives_what_the_formula_says() -> None:
    ranks = 4
    for by_case in run_distributed(received, ranks):
        for case, counted in zip(cases(ranks), by_case, strict=True):
            share = Share(ranks, rows=1 if case.bounds else 2, tokens=ranks * SHARD, itemsize=4)
            said = delta_rule(share, heads=HEADS, key_size=KEY, value_size=VALUE)
            assert (said.forward, said.backward) == counted, case
