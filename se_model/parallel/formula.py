"""How many bytes each kind of layer exchanges, as arithmetic on its numbers; nothing is computed or sent.

All figures are bytes that one rank *receives* in one pass over its share of B rows of L tokens cut over P
ranks, n = L / P tokens each. Exchanges whose size depends on the data, or on where a rank stands, are given
for the worst case. Training's own exchange of gradients is not among them.
"""

from __future__ import annotations

from dataclasses import dataclass

from se_model.span.rules import OWN_NUMBERS, summary_heads

STATE_BYTES = 4  # states, their decays and block summaries travel in float32
ID_BYTES = 8  # what is asked for travels as int64


@dataclass(frozen=True)
class Volume:
    """Bytes that one rank receives in a forward pass and in its backward pass."""

    forward: int = 0
    backward: int = 0

    def __add__(self, other: Volume) -> Volume:
        return Volume(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: int) -> Volume:
        return Volume(self.forward * times, self.backward * times)

    @property
    def total(self) -> int:
        """Both passes."""
        return self.forward + self.backward


@dataclass(frozen=True)
class Share:
    """What a rank holds while the layers run.

    Attributes:
        ranks: P, which share each row.
        rows: B, which go through the model together.
        tokens: L, of a whole row.
        itemsize: bytes of a number in keys, values and activations.
        packed: rows hold documents that may begin anywhere, so that a chunk may lie on two ranks.
    """

    ranks: int
    rows: int
    tokens: int
    itemsize: int
    packed: bool = False

    @property
    def own_tokens(self) -> int:
        """Tokens of each row that a rank holds, n."""
        return self.tokens // self.ranks


@dataclass(frozen=True)
class Heads:
    """An attention layer's heads: H for queries, G for keys and values.

    size: D, dimensions of queries and keys; value_size: Dv, of values, None for D.
    """

    query: int
    key_value: int
    size: int
    value_size: int | None = None

    @property
    def pair_size(self) -> int:
        """Numbers of a key and its value: D + Dv."""
        return self.size + (self.size if self.value_size is None else self.value_size)

    def token_bytes(self, itemsize: int) -> int:
        """Bytes of one token's keys and values: G (D + Dv) itemsize."""
        return self.key_value * self.pair_size * itemsize


def span_attention(
    share: Share,
    heads: Heads,
    *,
    chunk_size: int,
    block_size: int,
    top_k: int,
    summary: str = "attention",
    refresh: int | None = None,
    sums: bool = True,
) -> Volume:
    """Span-expanded attention: summaries to everybody, chosen blocks to who chose them.

    forward:  (P - 1) * (n / S + n / M) * H * D * 4 for the blocks' summaries and the chunks' sums of queries
        (for other summaries than "attention" as many as `rules.summary_heads` says, G or a multiple of it,
        which travel in `itemsize` bytes if they are keys' own numbers: `rules.OWN_NUMBERS`);
        if the choice is not made by ``sums`` of all queries (`SpanOptions.sums`), no n / M, but the queries
        that judge and lie on a neighbour: `refresh` under "causal" selection, else the M - 1 that a chunk on
        two ranks may have there; G * (D + Dv) * itemsize for each token of
        min(n / M * k * S, L - n): every chunk may choose k blocks that lie elsewhere, and no block arrives
        twice; 8 for each such block and head, and for each other rank, to ask for them (on average over the
        ranks). Under "causal" selection `refresh` tokens choose together instead of M.
    backward: the gradients of the keys and values that a rank sent, in float32 or wider: on average over the
        ranks as many numbers as it received; one whose blocks everybody chose receives up to P - 1 times its
        share of those. The choice itself has no gradient, so nothing returns to the summaries.
    A chunk on two ranks adds the keys and values of up to M - 1 tokens and, for the summary "attention", the
    queries of less than a block.
    """
    if share.ranks == 1:
        return Volume()
    others = share.ranks - 1
    blocks, choices = (-(-share.own_tokens // size) for size in (block_size, refresh or chunk_size))
    vectors = summary_heads(summary, heads.query, heads.key_value, block_size)
    numbers = share.rows * others * vectors * heads.size
    summaries = numbers * blocks * (share.itemsize if summary in OWN_NUMBERS else STATE_BYTES)
    shared = chunk_size - 1 if _chunks_straddle(share, chunk_size) else 0
    if sums:
        summaries += numbers * choices * STATE_BYTES
    else:
        summaries += share.rows * (refresh or shared) * heads.query * heads.size * share.itemsize
    retrieved = min(choices * top_k, others * blocks)
    asked = (others + share.rows * retrieved * heads.key_value) * ID_BYTES
    queries = 0
    if shared and summary == "attention":
        queries = share.rows * (block_size - 1) * heads.query * heads.size * share.itemsize
    tokens = share.rows * (retrieved * block_size + shared)
    return Volume(
        summaries + asked + queries + tokens * heads.token_bytes(share.itemsize),
        tokens * heads.token_bytes(max(share.itemsize, STATE_BYTES)),
    )


def _chunks_straddle(share: Share, chunk_size: int) -> bool:
    return share.ranks > 1 and (share.packed or share.own_tokens % chunk_size > 0)


def full_attention(share: Share, heads: Heads) -> Volume:
    """Full attention, all keys and values to everybody: (P - 1) * n * G * (D + Dv) * itemsize, and back."""
    moved = share.rows * (share.ranks - 1) * share.own_tokens * heads.token_bytes(share.itemsize)
    return Volume(moved, moved)


def ring_attention(share: Share, heads: Heads) -> Volume:
    """Ring attention, for comparison: keys and values pass every rank, and in the backward with gradients.

    forward: (P - 1) * n * G * (D + Dv) * itemsize; backward: twice that (their gradients in the same dtype).
    """
    moved = full_attention(share, heads).forward
    return Volume(moved, 2 * moved)


def ulysses_attention(share: Share, heads: Heads) -> Volume:
    """All-to-all over heads (Ulysses), for comparison; needs P to divide G.

    (P - 1) / P * n * (H + G) * (D + Dv) * itemsize, for queries, keys, values and outputs; backward: as much.
    """
    numbers = (heads.query + heads.key_value) * heads.pair_size
    moved = share.rows * (share.ranks - 1) * share.own_tokens * numbers * share.itemsize // share.ranks
    return Volume(moved, moved)


def window_attention(share: Share, heads: Heads, window: int) -> Volume:
    """A sliding window of W tokens: the W - 1 tokens before a rank's first, from the rank before.

    A window that reaches beyond that rank is served as full attention is: all other ranks' tokens.
    """
    if share.ranks == 1:
        return Volume()
    before = window - 1 if window - 1 <= share.own_tokens else share.tokens - share.own_tokens
    moved = share.rows * before * heads.token_bytes(share.itemsize)
    return Volume(moved, moved)


def convolution(share: Share, *, channels: int, kernel: int) -> Volume:
    """A causal convolution: the W - 1 inputs left of a rank's first token, and their gradients back."""
    if share.ranks == 1 or kernel < 2:
        return Volume()
    moved = share.rows * (kernel - 1) * channels * share.itemsize
    return Volume(moved, moved)


def state_space(share: Share, *, heads: int, head_size: int, state_size: int) -> Volume:
    """A Mamba-2 scan: every other rank's final state, and its decay over a shard, one number per head.

    forward: (P - 1) * heads * (head_size * state_size + 1) * 4; backward: the same, as gradients of the own
    state and decay from everybody. It does not depend on the number of tokens.
    """
    each = heads * (head_size * state_size + 1) * STATE_BYTES
    moved = share.rows * (share.ranks - 1) * each
    return Volume(moved, moved)


def selective_scan(share: Share, *, channels: int, state_size: int) -> Volume:
    """A Mamba-1 scan: every other rank's final state, and the decay over a shard of each of its numbers.

    forward: (P - 1) * 2 * channels * state_size * 4; backward: the same, as gradients of the own state and
    decays from everybody. It does not depend on the number of tokens.
    """
    moved = share.rows * (share.ranks - 1) * 2 * channels * state_size * STATE_BYTES
    return Volume(moved, moved)


def delta_rule(share: Share, *, heads: int, key_size: int, value_size: int) -> Volume:
    """A gated delta rule: every other rank's final state, and its transition, K x K numbers per head.

    forward: (P - 1) * heads * key_size * (value_size + key_size) * 4; backward: the same, as gradients of the
    own state and transition from everybody. It does not depend on the number of tokens.
    """
    each = heads * key_size * (value_size + key_size) * STATE_BYTES
    moved = share.rows * (share.ranks - 1) * each
    return Volume(moved, moved)
