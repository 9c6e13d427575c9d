"""Span-expanded attention over a cache of keys and values, a few new tokens at a time.

Under causal selection the blocks of a group of ``refresh`` queries depend only on the group before it, so
they can be chosen when that group is complete. Besides the cache, this needs the summaries of the complete
blocks so far (O(U D)), the queries of the unfinished block (for its summary) and the sum of the current
group's queries (which choose for the next group). A token then costs O((M + k S) D), the end of a group
O(U D), the end of a block O(S^2 D); nothing but the cache itself grows with every token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from se_model.span.documents import check_inputs
from se_model.span.layout import Layout
from se_model.span.options import SpanOptions
from se_model.span.selection import rank_blocks, relevance, summarise


@dataclass(frozen=True)
class DecodingState:
    """What the next tokens of a row need from those before them, besides their keys and values.

    Attributes:
        options: of the attention, the same for all tokens.
        length: tokens so far.
        summaries: of the complete blocks so far, [B, H, U, D] ("attention") or [B, G, U, D] ("mean_key").
        unfinished: queries of the block that is not complete yet, [B, H, length % S, D].
        query_sum: of the current group of ``refresh`` queries, [B, H, D].
        blocks: what the next token's group retrieves, int64 [B, G, K], ascending.
        last_key: the last token's key, by which a cache is recognised, [B, G, D].
    """

    options: SpanOptions
    length: int
    summaries: Tensor
    unfinished: Tensor
    query_sum: Tensor
    blocks: Tensor
    last_key: Tensor

    def continued_by(self, k: Tensor) -> bool:
        """Whether these cached keys, [B, G, at least ``length``, D], belong to this state's row.

        Only the last key is compared. Where two rows end in the same token, it may be the same in layers
        before which nothing mixes tokens; the model's later layers tell the rows apart.
        """
        if k.shape[2] < self.length:
            return False
        last = k[:, :, self.length - 1]
        return last.shape == self.last_key.shape and bool(torch.equal(last, self.last_key))


@torch.no_grad()
def start_decoding(q: Tensor, k: Tensor, v: Tensor, options: SpanOptions) -> DecodingState:
    """The state after a prompt, whatever attention the prompt itself had.

    q: [B, H, L, D]; k, v: [B, G, L, D], any L of at least 1, the same for every row of the batch. The state
    holds copies, so it keeps neither the prompt's queries nor the cache alive.

    Raises:
        ValueError: if ``options.selection`` is not "causal" (a chunk's choice would need later queries), or
            the shapes do not fit together.
    """
    if not options.causal:
        raise ValueError(f'decoding with span attention needs selection="causal", not {options.selection!r}')
    check_inputs(q, k, v)
    length, size, refresh = q.shape[2], options.block_size, options.queries_per_choice
    whole = length // size * size
    group = length // refresh
    with torch.autocast(q.device.type, enabled=False):
        summaries = _summarise(q[:, :, :whole], k[:, :, :whole], v[:, :, :whole], options)
        current = _sum(q[:, :, group * refresh :])
        judges = _sum(q[:, :, max(0, group - 1) * refresh : group * refresh])
        blocks = _choose(judges, summaries, group, options, k.shape[1])
    return DecodingState(
        options,
        length,
        summaries,
        q[:, :, whole:].clone(),
        current,
        blocks,
        k[:, :, -1].clone(),
    )


def decode(q: Tensor, k: Tensor, v: Tensor, state: DecodingState) -> tuple[Tensor, DecodingState]:
    """Attention of the next tokens, as ``se_attention(selection="causal")`` over the whole row gives it.

    Args:
        q: [B, H, n, D], queries of the n next tokens, n of at least 1.
        k: [B, G, ``state.length`` + n, D], keys of all tokens so far, the new ones included.
        v: the values, likewise.
        state: from the call before, or from ``start_decoding``; not modified.

    Returns:
        The output [B, H, n, D], and the state after these tokens.

    Raises:
        ValueError: if the keys do not continue the row that the state describes.
    """
    new = q.shape[2]
    if new == 0 or k.shape[2] != state.length + new or k.shape != v.shape or not state.continued_by(k):
        raise ValueError(
            f"the cache does not continue the row of {state.length} tokens that decoding saw last "
            f"(q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}). Beam search, cropped caches and "
            'interleaved generations need decoding="full"'
        )
    refresh = state.options.queries_per_choice
    outputs = []
    while state.length < k.shape[2]:
        first = state.length - k.shape[2] + new
        part = q[:, :, first : first + refresh - state.length % refresh]
        outputs.append(_attend(part, k, v, state))
        state = _take_in(part, k, v, state)
    return torch.cat(outputs, dim=2), state


def _attend(q: Tensor, k: Tensor, v: Tensor, state: DecodingState) -> Tensor:
    """Queries of one group over the retrieved blocks and their chunk so far. q: [B, H, n, D]; as it out."""
    chunk = state.length // state.options.chunk_size * state.options.chunk_size
    own = slice(chunk, state.length + q.shape[2])
    keys, values = (torch.cat([_retrieve(x[:, :, :chunk], state), x[:, :, own]], dim=2) for x in (k, v))
    new, seen = q.shape[2], keys.shape[2]
    visible = None
    if new > 1:
        visible = torch.ones(new, seen, dtype=torch.bool, device=q.device).tril(seen - new)
    grouped = q.shape[1] != k.shape[1]
    return scaled_dot_product_attention(
        q, keys, values, attn_mask=visible, scale=state.options.scale_for(q.shape[3]), enable_gqa=grouped
    )


def _retrieve(x: Tensor, state: DecodingState) -> Tensor:
    """The chosen blocks of the keys or values before the chunk: [B, G, U * S, D] -> [B, G, K * S, D]."""
    size = state.options.block_size
    batch = torch.arange(x.shape[0], device=x.device)[:, None, None]
    head = torch.arange(x.shape[1], device=x.device)[:, None]
    return x.unflatten(2, (x.shape[2] // size, size))[batch, head, state.blocks].flatten(2, 3)


@torch.no_grad()
def _take_in(q: Tensor, k: Tensor, v: Tensor, state: DecodingState) -> DecodingState:
    """The state after tokens of one group. q: [B, H, n, D]; k, v hold all keys and values, these included."""
    options, size = state.options, state.options.block_size
    length = state.length + q.shape[2]
    with torch.autocast(q.device.type, enabled=False):
        queries = torch.cat([state.unfinished, q], dim=2)
        whole = queries.shape[2] // size * size
        summaries = state.summaries
        if whole:
            first = length - queries.shape[2]
            tokens = slice(first, first + whole)
            fresh = _summarise(queries[:, :, :whole], k[:, :, tokens], v[:, :, tokens], options)
            summaries = torch.cat([summaries, fresh], dim=2)
        query_sum, blocks = state.query_sum + _sum(q), state.blocks
        group, rest = divmod(length, options.queries_per_choice)
        if rest == 0:
            blocks = _choose(query_sum, summaries, group, options, k.shape[1])
            query_sum = torch.zeros_like(query_sum)
    return DecodingState(
        options,
        length,
        summaries,
        queries[:, :, whole:].clone(),
        query_sum,
        blocks,
        k[:, :, length - 1].clone(),
    )


def _summarise(q: Tensor, k: Tensor, v: Tensor, options: SpanOptions) -> Tensor:
    """Summaries of complete blocks, or of none. q: [B, H, U * S, D]; k, v: [B, G, U * S, D]."""
    if q.shape[2] == 0:
        of = q if options.summary == "attention" else k
        return of.new_empty(of.shape, dtype=torch.promote_types(q.dtype, torch.float32))
    return summarise(q, k, v, options)


def _sum(q: Tensor) -> Tensor:
    """[B, H, n, D] -> [B, H, D], in float32 or wider."""
    return q.sum(2, dtype=torch.promote_types(q.dtype, torch.float32))


def _choose(judges: Tensor, summaries: Tensor, group: int, options: SpanOptions, heads: int) -> Tensor:
    """What a group retrieves, given the sum of the queries before it.

    judges: [B, H, D]; summaries: [B, H or G, U, D]; heads: G -> int64 [B, G, K].
    """
    refresh = options.queries_per_choice
    layout = Layout(options.chunk_size, options.block_size, refresh, (0, (group + 1) * refresh))
    candidates = layout.candidates(group)
    width = min(options.top_k, candidates)
    if width == 0:
        return torch.empty(judges.shape[0], heads, 0, dtype=torch.int64, device=judges.device)
    relevancy = relevance(judges[:, :, None], summaries[:, :, :candidates], heads)
    return rank_blocks(relevancy, layout.documents[0], layout, width, group)[:, :, 0]
