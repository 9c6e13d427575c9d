"""What every kernel here does: loads of scattered rows, and a product that is right everywhere."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(base, tokens, inside, stride, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows of one head, [len(tokens), BLOCK_D]; zero where not ``inside`` and beyond D.

    base: where the head's first row begins; tokens: int [n], which rows.
    """
    columns = tl.arange(0, BLOCK_D)
    places = base + tokens.to(tl.int64)[:, None] * stride + columns[None, :]
    return tl.load(places, mask=inside[:, None] & (columns < D)[None, :], other=0.0)


@triton.jit
def store_rows(base, rows, tokens, inside, stride, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Writes ``rows`` [n, BLOCK_D], rounded to what they are stored as, where ``load_rows`` would read."""
    columns = tl.arange(0, BLOCK_D)
    places = base + tokens.to(tl.int64)[:, None] * stride + columns[None, :]
    tl.store(places, rows.to(base.dtype.element_ty), mask=inside[:, None] & (columns < D)[None, :])


@triton.jit
def product(a, b, UPCAST: tl.constexpr):
    """a @ b, summed in float32; float32 operands as three tensor-float products, close to float32's own.

    ``UPCAST``: triton's interpreter (3.7 to 3.9) multiplies bfloat16 as if it were integers. Products of
    halves are exact in float32, so nothing else changes.
    """
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def span_tokens(starts, columns, total, S: tl.constexpr):
    """Which tokens stand in the ``columns`` of a choice's expansion span; its blocks lie one after the other.

    starts: where the choice's block starts are stored; total: columns that the span has.
    """
    return tl.load(starts + columns // S, mask=columns < total, other=0) + columns % S


@triton.jit
def count_filled(starts, width, BLOCK_WIDTH: tl.constexpr):
    """How many blocks a choice names: the rest of its ``width`` starts are -1."""
    slots = tl.arange(0, BLOCK_WIDTH)
    return tl.sum((tl.load(starts + slots, mask=slots < width, other=-1) >= 0).to(tl.int32))
