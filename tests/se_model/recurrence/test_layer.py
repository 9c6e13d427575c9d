"""A recurrent layer asks for what came before its tokens, and tells what it leaves to those after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from se_model.recurrence import (
    GatedDeltaSizes,
    HandOver,
    InitialState,
    Mamba2Sizes,
    SelectiveScanSizes,
    causal_convolution,
    gated_delta_rule,
    mamba2,
    selective_scan,
)
from se_model.span.documents import DocumentBounds
from tests.tolerances import F64

LENGTH = 30


class Kept:
    """Remembers what one call left for the next."""

    def __init__(self) -> None:
        self.inputs: Tensor | None = None
        self.state: Tensor | None = None

    def convolution_state(self, x: Tensor, context: int) -> Tensor | None:
        return self.inputs

    def keep_convolution_state(self, x: Tensor, context: int) -> None:
        before = x.new_zeros(x.shape[0], context, x.shape[2]) if self.inputs is None else self.inputs
        self.inputs = torch.cat([before, x], dim=1)[:, -context:]

    def initial_state(self, hand_over: HandOver) -> InitialState | None:
        return self.state

    def keep_state(self, state: Tensor) -> None:
        self.state = state


@dataclass(frozen=True)
class Call:
    """What a layer's function is called with, but for what its kind adds."""

    tokens: slice
    carried: Kept
    documents: DocumentBounds | None = None

    def normal(self, *shape: int) -> Tensor:
        """The same numbers in every call."""
        return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)

    def per_token(self, *shape: int) -> Tensor:
        return self.normal(1, LENGTH, *shape)[:, self.tokens]

    def convolve(self, inputs: Tensor, before: Tensor | None) -> Tensor:
        weight = self.normal(inputs.shape[2], 4)
        return F.silu(causal_convolution(inputs, weight, state=before, cu_seqlens=self.documents))


def run_mamba2(call: Call) -> Tensor:
    sizes = Mamba2Sizes(heads=4, head_size=6, groups=2, state_size=5, kernel=4, chunk_size=8)
    y = mamba2(
        call.per_token(sizes.channels),
        F.softplus(call.per_token(sizes.heads)),
        A_log=call.normal(sizes.heads),
        D=call.normal(sizes.heads),
        sizes=sizes,
        convolve=call.convolve,
        carried=call.carried,
        documents=call.documents,
    )
    assert y.shape[2:] == (sizes.inner,)
    return y


def run_selective_scan(call: Call) -> Tensor:
    sizes = SelectiveScanSizes(channels=6, groups=2, state_size=5, kernel=4)
    mix = call.normal(sizes.channels, 20)

    def project(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        B, C = (u @ mix).unflatten(-1, (2, sizes.groups, sizes.state_size)).unbind(2)
        return F.softplus(u), B, C

    u, y = selective_scan(
        call.per_token(sizes.channels),
        sizes=sizes,
        convolve=call.convolve,
        project=project,
        A_log=call.normal(sizes.channels, sizes.state_size),
        carried=call.carried,
        documents=call.documents,
    )
    return y + u


def run_gated_delta(call: Call, *channels: int) -> Tensor:
    sizes = GatedDeltaSizes(key_heads=2, heads=4, key_size=5, value_size=6, kernel=4, chunk_size=8)
    o = gated_delta_rule(
        call.per_token(sizes.channels),
        -F.softplus(call.per_token(sizes.heads, *channels)),
        call.per_token(sizes.heads).sigmoid(),
        sizes=sizes,
        convolve=call.convolve,
        carried=call.carried,
        documents=call.documents,
    )
    assert o.shape[2:] == (4, 6)
    return o


def run_channels(call: Call) -> Tensor:
    return run_gated_delta(call, 5)


KINDS = pytest.mark.parametrize("run", [run_mamba2, run_selective_scan, run_gated_delta, run_channels])


@KINDS
def test_a_row_may_be_cut_anywhere_and_continued(run: Callable[[Call], Tensor]) -> None:
    whole, carried = run(Call(slice(0, LENGTH), Kept())), Kept()
    parts = [run(Call(slice(*ends), carried)) for ends in [(0, 1), (1, 2), (2, 17), (17, LENGTH)]]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=F64)


@KINDS
def test_a_packed_row_is_its_documents_one_by_one(run: Callable[[Call], Tensor]) -> None:
    packed = run(Call(slice(0, LENGTH), Kept(), DocumentBounds((0, 2, 19, LENGTH))))
    alone = [run(Call(slice(*ends), Kept())) for ends in [(0, 2), (2, 19), (19, LENGTH)]]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), rtol=0, atol=F64)
