"""Which of the sdpa backend's ways serves a call: in parts on a CPU, else by causal or masked calls."""

from __future__ import annotations

from torch import Tensor

from se_model.span.layout import Layout
from se_model.span.options import SpanOptions
from se_model.span.sdpa import causal_calls, masked_calls, merged_parts


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    counts: tuple[int, ...],
    layout: Layout,
    options: SpanOptions,
) -> Tensor:
    """Each chunk's attention over itself and the blocks its choices name (paper, section 3.2).

    q: [B, H, L, D]; k: [B, G, L, D]; v: [B, G, L, Dv]; blocks: int64 [B, G, choices, K], of which choice i
    uses the first ``counts[i]``. Returns [B, H, L, Dv].
    """
    if q.device.type == "cpu":
        way = merged_parts.attend
    elif layout.refresh == layout.chunk_size:
        way = causal_calls.attend
    else:
        way = masked_calls.attend
    return way(q, k, v, blocks, counts, layout, options)
