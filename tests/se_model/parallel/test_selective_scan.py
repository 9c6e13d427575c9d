"""A Mamba-1 scan over n ranks is the scan on one, and what it exchanges does not grow with the row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from se_model.hybrid.past import past_of
from se_model.parallel import ContextParallelGroup, SequenceShard
from se_model.parallel.formula import Share
from se_model.parallel.volumes import CONVOLUTIONS, STATES, selective_scan_exchange
from se_model.recurrence import SelectiveScanSizes, causal_convolution, selective_scan
from se_model.recurrence.selective_scan import selective_scan_naive
from tests.distributed import run_distributed
from tests.se_model.parallel.compare import assert_near
from tests.tolerances import F64

SIZES = SelectiveScanSizes(channels=6, groups=2, state_size=5, kernel=4)
LENGTH = 48
PARAMETERS = ["inputs", "weight", "x_proj", "A_log"]


@dataclass(frozen=True)
class Case:
    """A row and how fast its states fade: a token leaves about exp(-rate * 1..5) of them."""

    bounds: tuple[int, ...] = (0, LENGTH)
    rate: float = 1e-3
    length: int = LENGTH
    batch: int = 1


class Computed(NamedTuple):
    """y of a rank's tokens, the state behind them, and gradients that sum up to those of the whole row."""

    y: Tensor
    state: Tensor
    gradients: list[Tensor]


# At shards' edges, one token before and after, inside a shard, over several shards, single tokens.
ROWS = [
    (0, LENGTH),
    (0, 12, 36, LENGTH),
    (0, 11, 23, 35, LENGTH),
    (0, 13, 25, 37, LENGTH),
    (0, 7, 36, 41, LENGTH),
    (0, 1, 2, 3, 4, 22, 23, 24, 25, LENGTH - 1, LENGTH),
]


def made(case: Case) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    D, G, N, W = SIZES.channels, SIZES.groups, SIZES.state_size, SIZES.kernel
    A_log = (case.rate * torch.arange(1, N + 1, dtype=torch.float64)).log().repeat(D, 1)
    tensors = [normal(case.batch, case.length, D), normal(D, W), normal(D + 2 * G * N, D) / 3, A_log]
    return [tensor.requires_grad_() for tensor in tensors]


def projected(u: Tensor, x_proj: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    width = SIZES.groups * SIZES.state_size
    dt, B, C = (u @ x_proj.T).split([SIZES.channels, width, width], dim=-1)
    shape = SIZES.groups, SIZES.state_size
    return F.softplus(dt), B.unflatten(-1, shape), C.unflatten(-1, shape)


def upstream(case: Case) -> Tensor:
    shape = case.batch, case.length, SIZES.channels
    return torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def on_a_rank(shard: SequenceShard, case: Case) -> Computed:
    inputs, weight, x_proj, A_log = tensors = made(case)
    carried = past_of(None, shard, layer_idx=0)
    states: list[Tensor] = []
    carried.keep_state = states.append
    _, y = selective_scan(
        inputs[:, shard.tokens],
        sizes=SIZES,
        convolve=lambda x, before: causal_convolution(x, weight, state=before, cu_seqlens=shard.documents),
        project=lambda u: projected(u, x_proj),
        A_log=A_log,
        carried=carried,
        documents=shard.documents,
    )
    (state,) = states
    last = shard.group.rank == shard.group.size - 1
    loss = (y * upstream(case)[:, shard.tokens]).sum() + state.sum() * last
    return Computed(y.detach(), state.detach(), list(torch.autograd.grad(loss, tensors)))


def on_ranks(rank: int, ranks: int, cases: list[Case]) -> list[Computed]:
    group = ContextParallelGroup()
    return [
        on_a_rank(SequenceShard.of(group, case.length, torch.tensor(case.bounds)), case) for case in cases
    ]


def alone(case: Case) -> Computed:
    inputs, weight, x_proj, A_log = tensors = made(case)
    cu_seqlens = torch.tensor(case.bounds) if case.batch == 1 else None
    u = causal_convolution(inputs, weight, cu_seqlens=cu_seqlens)
    dt, B, C = projected(u, x_proj)
    y, state = selective_scan_naive(u, dt, -A_log.exp(), B, C, cu_seqlens=cu_seqlens)
    loss = (y * upstream(case)).sum() + state.sum()
    return Computed(y.detach(), state.detach(), list(torch.autograd.grad(loss, tensors)))


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_outputs_state_and_every_gradient(ranks: int) -> None:
    cases = [Case(bounds, rate) for bounds in ROWS for rate in (1e-3, 3.0)] + [Case(batch=3)]
    by_rank = run_distributed(on_ranks, ranks, cases)
    for case, shards in zip(cases, zip(*by_rank, strict=True), strict=True):
        expected = alone(case)
        assert_near(torch.cat([shard.y for shard in shards], dim=1), expected.y, F64, case, "y")
        assert_near(shards[-1].state, expected.state, F64, case, "state")
        for ordinal, name in enumerate(PARAMETERS):
            total = sum(shard.gradients[ordinal] for shard in shards)
            assert_near(total, expected.gradients[ordinal], F64, case, name)


def received(rank: int, ranks: int, cases: list[Case]) -> list[dict[tuple[str, str], int]]:
    counted = []
    for case in cases:
        group = ContextParallelGroup()
        on_a_rank(SequenceShard.of(group, case.length, torch.tensor(case.bounds)), case)
        counted.append({key: traffic.received for key, traffic in group.counter.by_purpose.items()})
    return counted


def test_bytes_are_those_of_the_formula_for_rows_of_any_length() -> None:
    short, long = run_distributed(received, 4, [Case(), Case((0, 96), length=96)])[1]
    assert short == long
    said = selective_scan_exchange(SIZES, Share(4, rows=1, tokens=LENGTH, itemsize=8))
    wider = torch.float64.itemsize // torch.float32.itemsize  # than states of models are
    assert short == {
        ("convolution", "forward"): said[CONVOLUTIONS].forward,
        ("convolution", "backward"): said[CONVOLUTIONS].backward,
        ("state", "forward"): said[STATES].forward * wider,
        ("state", "backward"): said[STATES].backward * wider,
    }
