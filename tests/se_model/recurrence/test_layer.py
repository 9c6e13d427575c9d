"""A layer asks for what came before its tokens, and tells what it leaves to those after."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from se_model.recurrence import (
    HandOver,
    InitialState,
    Mamba2Sizes,
    SelectiveScanSizes,
    causal_convolution,
    mamba2,
    selective_scan,
)
from se_model.span.documents import DocumentBounds
from tests.tolerances import F64

SIZES = Mamba2Sizes(heads=4, head_size=6, groups=2, state_size=5, kernel=4, chunk_size=8)
MAMBA1 = SelectiveScanSizes(channels=6, groups=2, state_size=5, kernel=4)
LENGTH = 30
Run = Callable[..., Tensor]


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


def run_mamba2(tokens: slice, carried: Kept, documents: DocumentBounds | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs, step = normal(1, LENGTH, SIZES.channels), F.softplus(normal(1, LENGTH, SIZES.heads))
    A_log, D, weight = normal(SIZES.heads), normal(SIZES.heads), normal(SIZES.channels, SIZES.kernel)

    def convolve(inputs: Tensor, before: Tensor | None) -> Tensor:
        return F.silu(causal_convolution(inputs, weight, state=before, cu_seqlens=documents))

    return mamba2(
        inputs[:, tokens],
        step[:, tokens],
        A_log=A_log,
        D=D,
        sizes=SIZES,
        convolve=convolve,
        carried=carried,
        documents=documents,
    )


def run_selective_scan(tokens: slice, carried: Kept, documents: DocumentBounds | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    D, G, N = MAMBA1.channels, MAMBA1.groups, MAMBA1.state_size

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs, A_log, weight, mix = normal(1, LENGTH, D), normal(D, N), normal(D, MAMBA1.kernel), normal(D, 20)

    def convolve(inputs: Tensor, before: Tensor | None) -> Tensor:
        return F.silu(causal_convolution(inputs, weight, state=before, cu_seqlens=documents))

    def project(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        B, C = (u @ mix).unflatten(-1, (2, G, N)).unbind(2)
        return F.softplus(u), B, C

    u, y = selective_scan(
        inputs[:, tokens],
        sizes=MAMBA1,
        convolve=convolve,
        project=project,
        A_log=A_log,
        carried=carried,
        documents=documents,
    )
    return y + u


LAYERS = pytest.mark.parametrize("run", [run_mamba2, run_selective_scan])


@LAYERS
def test_a_row_may_be_cut_anywhere_and_continued(run: Run) -> None:
    whole, carried = run(slice(0, LENGTH), Kept()), Kept()
    parts = [run(slice(*ends), carried) for ends in [(0, 1), (1, 2), (2, 17), (17, LENGTH)]]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=F64)


@LAYERS
def test_a_packed_row_is_its_documents_one_by_one(run: Run) -> None:
    packed = run(slice(0, LENGTH), Kept(), DocumentBounds((0, 2, 19, LENGTH)))
    alone = [run(slice(*ends), Kept()) for ends in [(0, 2), (2, 19), (19, LENGTH)]]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), rtol=0, atol=F64)
