"""Span-expanded attention over a cache of keys and values, a few new tokens at a time.

Under causal selection the blocks of a group of ``refresh`` queries depend only on the group before it, so
they can be chosen when that group is complete. Besides the cache, this needs the summaries of the complete
blocks so far (O(U D)), the queries of the unfinished block (for its summary) and those of the current group
(which choose for the next one). A token then costs O((M + k S) D), the end of a group O(U D) for each query
that judges, the end of a block O(S^2 D); nothing but the cache itself grows with every token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from se_model.span.documents import check_inputs
from se_model.span.layout import Layout
from se_model.span.options import SpanOptions
from se_model.span.rules import summary_heads
from se_model.span.selection.choose import judge
from se_model.span.selection.ranking import rank_blocks
from se_model.span.selection.relevancy import relevance
from se_model.span.selection.summaries import sum_all_queries, summarise, summary_dtype
from se_model.span.widths import dense_attention


@dataclass(frozen=True)
class DecodingState:
    """What the next tokens of a row need from those before them, besides their keys and values.

    Attributes:
        options: of the attention, the same for all tokens.
        length: tokens so far.
        summaries: of the complete blocks so far, as ``selection.summaries.summarise`` returns them.
        unfinished: queries of the block that is not complete yet, [B, H, length % S, D]; of summaries that
            are made of keys alone, which the cache holds, none: [B, H, 0, D].
        judges: of the current group of ``refresh`` queries: where all are summed, the sum so far,
            [B, H or 2 H, 1, D]; else the queries, [B, H, length % refresh, D].
        blocks: what the next token's group retrieves, int64 [B, G, K], ascending.
        last_key: the last token's key, by which a cache is recognised, [B, G, D].
    """

    options: SpanOptions
    length: int
    summaries: Tensor
    unfinished: Tensor
    judges: Tensor
    blocks: Tensor
    last_key: Tensor

    def continued_by(self, k: Tensor) -> bool:
        """Whether these cached keys, [B, G, at least ``length``, D], belong to this state's row.

        Only the last key is compared, but for rounding: latent attention caches what its keys are made of,
        and makes all of them anew at each step, in products of another size. Where two rows end in the same
        token, it may be the same in layers before which nothing mixes tokens; the model's later layers tell
        the rows apart.
        """
        if k.shape[2] < self.length:
            return False
        last = k[:, :, self.length - 1]
        if last.shape != self.last_key.shape:
            return False
        apart = (last - self.last_key).abs().amax(-1)
        return bool((apart <= _rounding(k.dtype) * self.last_key.abs().amax(-1)).all())


@torch.no_grad()
def start_decoding(q: Tensor, k: Tensor, v: Tensor, options: SpanOptions) -> DecodingState:
    """The state after a prompt, whatever attention the prompt itself had.

    q: [B, H, L, D]; k: [B, G, L, D]; v: [B, G, L, Dv]; any L of at least 1, the same for every row of the
    batch. The state holds copies, so it keeps neither the prompt's queries nor the cache alive.

    Raises:
        ValueError: if ``options.selection`` is not "causal" (a chunk's choice would need later queries), if
            the shapes do not fit together, or the summary is not as wide as the queries.
    """
    if not options.causal:
        raise ValueError(f'decoding with span attention needs selection="causal", not {options.selection!r}')
    check_inputs(q, k, v)
    options.check_widths(q.shape[3], v.shape[3])
    length, size, refresh = q.shape[2], options.block_size, options.queries_per_choice
    whole = length // size * size
    group = length // refresh
    with torch.autocast(q.device.type, enabled=False):
        summaries = _summarise(q[:, :, :whole], k[:, :, :whole], v[:, :, :whole], options)
        judges = _judges(q[:, :, max(0, group - 1) * refresh : group * refresh], options)
        blocks = _choose(judges, summaries, group, options, k.shape[1])
    return DecodingState(
        options,
        length,
        summaries,
        _kept(q[:, :, whole:], options),
        _judges(q[:, :, group * refresh :], options),
        blocks,
        k[:, :, -1].clone(),
    )


def decode(q: Tensor, k: Tensor, v: Tensor, state: DecodingState) -> tuple[Tensor, DecodingState]:
    """Attention of the next tokens, as ``se_attention(selection="causal")`` over the whole row gives it.

    Args:
        q: [B, H, n, D], queries of the n next tokens, n of at least 1.
        k: [B, G, ``state.length`` + n, D], keys of all tokens so far, the new ones included.
        v: the values, likewise, [B, G, ``state.length`` + n, Dv].
        state: from the call before, or from ``start_decoding``; not modified.

    Returns:
        The output [B, H, n, Dv], and the state after these tokens.

    Raises:
        ValueError: if the keys do not continue the row that the state describes.
    """
    new = q.shape[2]
    if (
        new == 0
        or k.shape[2] != state.length + new
        or k.shape[:3] != v.shape[:3]
        or not state.continued_by(k)
    ):
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
    """Queries of one group, [B, H, n, D], over what they retrieve and their chunk so far: [B, H, n, Dv]."""
    chunk = state.length // state.options.chunk_size * state.options.chunk_size
    own = slice(chunk, state.length + q.shape[2])
    keys, values = (torch.cat([_retrieve(x[:, :, :chunk], state), x[:, :, own]], dim=2) for x in (k, v))
    new, seen = q.shape[2], keys.shape[2]
    visible = None
    if new > 1:
        visible = torch.ones(new, seen, dtype=torch.bool, device=q.device).tril(seen - new)
    return dense_attention(q, keys, values, attn_mask=visible, scale=state.options.scale_for(q.shape[3]))


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
    first, end = state.length // size * size, length // size * size
    queries = torch.cat([state.unfinished, q], dim=2) if options.summary == "attention" else q
    with torch.autocast(q.device.type, enabled=False):
        summaries, blocks = state.summaries, state.blocks
        if end > first:
            fresh = _summarise(queries[:, :, : end - first], k[:, :, first:end], v[:, :, first:end], options)
            summaries = torch.cat([summaries, fresh], dim=2)
        judges = _judges(q, options)
        judges = state.judges + judges if options.sums else torch.cat([state.judges, judges], dim=2)
        group, rest = divmod(length, options.queries_per_choice)
        if rest == 0:
            blocks = _choose(judges, summaries, group, options, k.shape[1])
            judges = _judges(q[:, :, :0], options)
    return DecodingState(
        options,
        length,
        summaries,
        _kept(queries[:, :, end - first :] if end > first else queries, options),
        judges,
        blocks,
        k[:, :, length - 1].clone(),
    )


def _rounding(dtype: torch.dtype) -> float:
    """How much of a key's largest entry two ways to add up the same products may differ by.

    Some units in the last place of float32 (54; up to 5 were seen in sums of 512), 3 of bfloat16.
    """
    return float(torch.finfo(dtype).eps ** 0.75)


def _kept(unfinished: Tensor, options: SpanOptions) -> Tensor:
    """A copy of the unfinished block's queries, of none where its summary will not need them."""
    return (unfinished if options.summary == "attention" else unfinished[:, :, :0]).clone()


def _judges(q: Tensor, options: SpanOptions) -> Tensor:
    """What is kept of queries of a group, for them to judge when it is complete. q: [B, H, n, D]."""
    return sum_all_queries(q, options) if options.sums else q.clone()


def _summarise(q: Tensor, k: Tensor, v: Tensor, options: SpanOptions) -> Tensor:
    """Summaries of complete blocks, or of none. q: [B, H, U * S, D]; k, v: [B, G, U * S, D]."""
    if k.shape[2]:
        return summarise(q, k, v, options)
    heads = summary_heads(options.summary, q.shape[1], k.shape[1], options.block_size)
    return k.new_empty(k.shape[0], heads, 0, k.shape[3], dtype=summary_dtype(options.summary, k.dtype))


def _choose(judges: Tensor, summaries: Tensor, group: int, options: SpanOptions, heads: int) -> Tensor:
    """What a group retrieves, given the queries of the group before it.

    judges: what `_judges` kept of them; summaries: of all complete blocks; heads: G -> int64 [B, G, K].
    """
    refresh = options.queries_per_choice
    layout = Layout(options.chunk_size, options.block_size, refresh, (0, (group + 1) * refresh))
    candidates = layout.candidates(group)
    width = min(options.top_k, candidates)
    if width == 0:
        return torch.empty(judges.shape[0], heads, 0, dtype=torch.int64, device=judges.device)
    document, summaries = layout.documents[0], summaries[:, :, :candidates]
    if options.sums:
        relevancy = relevance(judges, summaries, heads)
        chosen = rank_blocks(relevancy, document, layout, width, group)
    else:
        chosen = judge(judges, summaries, range(group, group + 1), document, layout, options, heads, width)
    return chosen[:, :, 0]
