"""Products of a chunk's queries and keys that decay on the way from one token to the other.

sum over c of a_ic exp(l_ic - l_jc) b_jc for j <= i, where l falls from token to token. exp(-l_j) alone may
be too large for any number, so the product is never taken apart at the chunk's start: what stands in an
exponent here is never above zero: what is smaller than any number is zero, and nothing else is lost.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from se_model.recurrence.chunks import decay


def decayed_products(
    rows: Sequence[Tensor], keys: Tensor, log: Tensor, visible: Tensor
) -> tuple[Tensor, ...]:
    """A matrix [..., Q, Q] for each of ``rows``, zero where not visible.

    rows, keys: [..., Q, K]; log: float64 [..., Q, 1], the same for all channels, or [..., Q, K], falling
    along Q, which is then a power of two; visible: bool, broadcast to [..., Q, Q], later tokens never.
    """
    if log.shape[-1] == 1:
        log = log.squeeze(-1)
        decays = decay((log[..., :, None] - log[..., None, :]).to(keys.dtype), visible)
        return tuple(row @ keys.mT * decays for row in rows)
    # From a token of the earlier half to the last one there, and from that to one of the later half: a decay
    # is a product of two. Each half is cut in two again, down to single tokens, which reach themselves whole.
    size = keys.shape[-2]
    found = [(row * keys).sum(-1)[..., None, None].expand(*log.shape[:-1], 1, 1) for row in rows]
    half = 1
    while half < size:
        earlier_log, later_log = log.unflatten(-2, (-1, 2, half)).unbind(-3)
        between = earlier_log[..., -1:, :]
        after = decay((later_log - between).to(keys.dtype))
        before = decay((between - earlier_log).to(keys.dtype))
        earlier = keys.unflatten(-2, (-1, 2, half)).unbind(-3)[0] * before
        for index, row in enumerate(rows):
            across = (row.unflatten(-2, (-1, 2, half)).unbind(-3)[1] * after) @ earlier.mT
            first, second = found[index].unflatten(-3, (-1, 2)).unbind(-3)
            upper, lower = torch.cat([first, torch.zeros_like(first)], -1), torch.cat([across, second], -1)
            found[index] = torch.cat([upper, lower], dim=-2)
        half *= 2
    return tuple(each.squeeze(-3).masked_fill(~visible, 0) for each in found)
