"""The sdpa backend: torch's scaled_dot_product_attention; on a CPU the kernels under it (``merged.py``)."""

from __future__ import annotations

from torch import Tensor

from se_model.span import masked, merged, prepended
from se_model.span.layout import Layout


def attend(
    q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, counts: tuple[int, ...], layout: Layout, scale: float
) -> Tensor:
    """Each chunk's attention over itself and the blocks its choices name (paper, section 3.2).

    q: [B, H, L, D]; k, v: [B, G, L, D]; blocks: int64 [B, G, choices, K], of which choice i uses the first
    ``counts[i]``. Returns [B, H, L, D].
    """
    if q.device.type == "cpu":
        way = merged.attend
    elif layout.refresh == layout.chunk_size:
        way = prepended.attend
    else:
        way = masked.attend
    return way(q, k, v, blocks, counts, layout, scale)
