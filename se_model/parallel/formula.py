"""How many bytes each kind of layer exchanges, as arithmetic on its numbers; nothing is computed or sent.

All figures are bytes that one rank *receives* in one pass over its share of B rows of L tokens, cut over P
ranks, n = L / P tokens each. Where that depends on where the rank stands they are those of a rank between two
others, and where it depends on the data, on what attention retrieves, an upper bound. Rows of one document:
each further one adds at most a block and a choice to what is gathered. Training's own exchange of gradients,
between workers that have rows of their own too, is not among them.
"""

from __future__ import annotations

from dataclasses import dataclass

WIDE_BYTES = 4  # float32: block summaries, states, and sums of gradients
ID_BYTES = 8


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

    @property
    def wide_itemsize(self) -> int:
        """Bytes of a number where sums are kept in float32 or wider."""
        return max(self.itemsize, WIDE_BYTES)


@dataclass(frozen=True)
class Heads:
    """An attention layer's heads: H for queries, G for keys and values, each of D dimensions."""

    query: int
    key_value: int
    size: int

    @property
    def token_width(self) -> int:
        """Numbers in one token's keys and values: 2 G D."""
        return 2 * self.key_value * self.size


def span_attention(
    share: Share,
    heads: Heads,
    *,
    chunk_size: int,
    block_size: int,
    top_k: int,
    summary: str = "attention",
    refresh: int | None = None,
) -> Volume:
    """Span-expanded attention: summaries go to everybody, blocks only to who chose them.

    With M = chunk_size, S = block_size, k = top_k, w = itemsize, T = n / M choices on a rank (n / refresh
    under "causal" selection) and U = n / S blocks:

    forward:  gathered   (P - 1) * (U + T) * H * D * 4    summaries and sums of queries (summary "mean_key": G
                                                          instead of H)
              blocks     R * S * 2 * G * D * w            R = min(T * k, (P - 1) * U): no block arrives twice
              requests   (P - 1) * 8 + R * G * 8          how many and which; on average over the ranks
    backward: blocks     R * S * 2 * G * D * max(w, 4)    the gradients of what a rank gave, on average over
                                                          the ranks; the choice has no gradient
    A chunk on two ranks adds to both its keys and values on the rank before, at most M - 1 tokens; to the
    forward also S - 1 tokens' queries, for the first block's summary, and its k * G choices.
    """
    if share.ranks == 1:
        return Volume()
    others = share.ranks - 1
    blocks = -(-share.own_tokens // block_size)
    choices = -(-share.own_tokens // (refresh or chunk_size))
    summary_heads = heads.key_value if summary == "mean_key" else heads.query
    gathered = others * (blocks + choices) * summary_heads * heads.size * share.rows
    retrieved = min(choices * top_k, others * blocks) * share.rows
    moved = retrieved * block_size * heads.token_width
    volume = Volume(
        gathered * share.wide_itemsize
        + moved * share.itemsize
        + (others + retrieved * heads.key_value) * ID_BYTES,
        moved * share.wide_itemsize,
    )
    if share.packed or share.own_tokens % chunk_size:
        before = (chunk_size - 1) * heads.token_width * share.rows
        queries = (block_size - 1) * heads.query * heads.size * share.rows
        agreed = top_k * heads.key_value * share.rows * ID_BYTES
        volume += Volume((before + queries) * share.itemsize + agreed, before * share.wide_itemsize)
    return volume


def full_attention(share: Share, heads: Heads) -> Volume:
    """Full attention, all keys and values to everybody: (P - 1) * n * 2 * G * D * w, and gradients back."""
    moved = share.rows * (share.ranks - 1) * share.own_tokens * heads.token_width * share.itemsize
    return Volume(moved, moved)


def local_attention(share: Share, heads: Heads, reach: int) -> Volume:
    """Attention that looks `reach` tokens back: W - 1 in a sliding window, M - 1 in chunks without memory.

    That many tokens' keys and values from the rank before, 2 * G * D * w each, and gradients back; all of the
    row's where one rank does not hold so many.
    """
    if reach > share.own_tokens:
        return full_attention(share, heads)
    if share.ranks == 1:
        return Volume()
    moved = share.rows * reach * heads.token_width * share.itemsize
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
    numbers = heads * (head_size * state_size + 1)
    moved = share.rows * (share.ranks - 1) * numbers * share.wide_itemsize
    return Volume(moved, moved)
