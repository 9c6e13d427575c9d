"""Inputs, and an oracle that owes nothing to the package: attention under a mask spelt out token by token."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tests.tolerances import within

CHUNK, BLOCK = 16, 4

Inputs = tuple[Tensor, Tensor, Tensor]


def _draw(
    length: int,
    *,
    batch: int = 1,
    heads: int = 4,
    groups: int = 2,
    width: int = 8,
    value_width: int | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    # Laid out [B, L, H, D] as a projection leaves them, seen as [B, H, L, D].
    shapes = [
        (batch, length, heads, width),
        (batch, length, groups, width),
        (batch, length, groups, value_width or width),
    ]
    q, k, v = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        .to(dtype)
        .transpose(1, 2)
        .requires_grad_()
        for shape in shapes
    )
    return q, k, v


def _masked_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float | None = None) -> Tensor:
    """visible: bool [B, H, L, L] or what broadcasts to it."""
    sharing = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(sharing, dim=1) for x in (k, v))
    logits = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return logits.masked_fill(~visible, -torch.inf).softmax(-1) @ v


def _span_mask(
    blocks: Tensor, heads: int, bounds: Sequence[int], chunk: int, block: int, queries: int
) -> Tensor:
    """What each token sees, from the definition. blocks: [B, G, T, K] -> bool [B, H, L, L]."""
    length = bounds[-1]
    documents = list(pairwise(bounds))
    block_starts = [s for start, end in documents for s in range(start, end, block)]
    mask = torch.zeros(blocks.shape[0], heads, length, length, dtype=torch.bool)
    for b in range(blocks.shape[0]):
        for h in range(heads):
            chosen = iter(blocks[b, h * blocks.shape[1] // heads].tolist())
            for start, end in documents:
                for t in range(start, end):
                    if (t - start) % chunk % queries == 0:
                        retrieved = [block_starts[j] for j in next(chosen) if j >= 0]
                    chunk_start = start + (t - start) // chunk * chunk
                    mask[b, h, t, chunk_start : t + 1] = True
                    for s in retrieved:
                        mask[b, h, t, s : s + block] = True
    return mask


def _gradients(output: Tensor, inputs: Inputs) -> tuple[Tensor, ...]:
    """Gradients under weights that differ for every output, so that no error cancels in a sum."""
    weights = torch.randn(
        output.shape, generator=torch.Generator().manual_seed(99), dtype=torch.float64, device=output.device
    )
    return torch.autograd.grad(output, inputs, weights.to(output.dtype), retain_graph=True)


@pytest.fixture
def draw() -> Callable[..., Inputs]:
    return _draw


@pytest.fixture
def masked_attention() -> Callable[..., Tensor]:
    return _masked_attention


@pytest.fixture
def span_mask() -> Callable[..., Tensor]:
    return _span_mask


@pytest.fixture
def assert_same() -> Callable[..., None]:
    """Two ways to compute one thing agree: the outputs, and the gradients of every input."""

    def check(actual: Tensor, expected: Tensor, inputs: Inputs, tolerance: float) -> None:
        torch.testing.assert_close(actual, expected, **within(tolerance))
        for name, one, other in zip(
            "qkv", _gradients(actual, inputs), _gradients(expected, inputs), strict=True
        ):
            torch.testing.assert_close(
                one, other, **within(tolerance), msg=lambda text, name=name: f"d{name}: {text}"
            )

    return check
