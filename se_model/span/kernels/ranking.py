"""The best of many, kept while they come tile by tile: what every kernel that chooses shares.

A candidate is one int64, its *rank*: of two, the larger is better, of equally good ones that with the smaller
id. A program holds the best ranks so far, largest first, and none but the tile's at hand. Many rows of ranks
at once are sorted by networks; a single row leaves most of a program idle there, and is ranked by counting
how many are larger, all at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

NOTHING = tl.constexpr(-(2**63))
BEYOND = tl.constexpr(2**31 - 1)


@triton.jit
def rank(values, ids):
    """The ranks of float32 ``values`` whose ``ids`` are below 2^31 - 1; shaped as ``values``.

    An IEEE float's bits, the lower 31 inverted where it is negative, are in the order of the floats. The low
    half holds the id, its 31 bits inverted, so that the earlier of equals ranks higher.
    """
    bits = tl.where(values == 0, 0.0, values).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (ids.to(tl.int64) ^ BEYOND)


@triton.jit
def keep_best_of_rows(best, ranks, ROWS: tl.constexpr, KEPT: tl.constexpr):
    """The ``KEPT`` largest of each row of best, int64 [ROWS, KEPT], and ranks, int64 [ROWS, KEPT or more]."""
    both = tl.join(best, tl.topk(ranks, KEPT))
    return tl.topk(tl.reshape(both, [ROWS, 2 * KEPT]), KEPT)


@triton.jit
def ids_of_rows(best, width, KEPT: tl.constexpr):
    """The ids of the ``width`` largest of each row's ranks, ascending, BEYOND where there is none.

    best: int64 [rows, KEPT], as ``keep_best_of_rows`` returns it: more may have been kept than are wanted,
    because tiles are powers of two.
    """
    found = (best != NOTHING) & (tl.arange(0, KEPT)[None, :] < width)
    return tl.sort(tl.where(found, (best & 0xFFFFFFFF) ^ BEYOND, BEYOND))


@triton.jit
def keep_best(best, ranks, KEPT: tl.constexpr):
    """The ``KEPT`` largest of best, int64 [KEPT] in order, and ranks, int64 of any length, in order."""
    slots = tl.arange(0, KEPT)
    # Where each belongs among both: ranks are distinct, but for NOTHING, which may go anywhere.
    of_best = slots + tl.sum((ranks[None, :] > best[:, None]).to(tl.int32), 1)
    both = tl.sum((ranks[None, :] > ranks[:, None]).to(tl.int32), 1)
    of_ranks = both + tl.sum((best[None, :] > ranks[:, None]).to(tl.int32), 1)
    stays = tl.max(tl.where(of_best[None, :] == slots[:, None], best[None, :], NOTHING), 1)
    comes = tl.max(tl.where(of_ranks[None, :] == slots[:, None], ranks[None, :], NOTHING), 1)
    return tl.maximum(stays, comes)


@triton.jit
def store_ids(place, best, width, KEPT: tl.constexpr):
    """Writes the ids of the ``width`` largest of best, as ``keep_best`` returns it: ascending, then -1."""
    slots = tl.arange(0, KEPT)
    wanted = slots < width
    found = (best != NOTHING) & wanted
    ids = tl.where(found, (best & 0xFFFFFFFF) ^ BEYOND, BEYOND)
    ascending = tl.where(found, tl.sum((ids[None, :] < ids[:, None]).to(tl.int32), 1), slots)
    tl.store(place + ascending, tl.where(found, ids, -1).to(place.dtype.element_ty), mask=wanted)
