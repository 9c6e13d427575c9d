"""What the compared attentions are set to, and the two sets of numbers that have a name."""

from __future__ import annotations

from dataclasses import dataclass

from se_model.baselines import SlidingWindowConfig
from se_model.span import SpanConfig


@dataclass(frozen=True)
class Setting:
    """The numbers of the compared attentions, in tokens where not said otherwise.

    Attributes:
        heads: query heads (H).
        kv_heads: key/value heads (G); 0 for as many as query heads.
        head_dim: width of a head (D).
        chunk_sizes: tokens that attend together (M). Of several, one timed call runs each once, in turn, and
            counts as so many calls.
        block_size: tokens retrieved together (S).
        top_k: blocks that a chunk retrieves (k).
        window: tokens of the sliding window; 0 for as many as the largest chunk has.

    Raises:
        ValueError: if they do not fit together.
    """

    heads: int = 4
    kv_heads: int = 0
    head_dim: int = 64
    chunk_sizes: tuple[int, ...] = (2048,)
    block_size: int = 32
    top_k: int = 8
    window: int = 0

    def __post_init__(self) -> None:
        if self.heads < 2 or self.head_dim < 1:
            raise ValueError(
                f"heads must be at least 2 (S2 shifts half of them) and head_dim at least 1; "
                f"got {self.heads} and {self.head_dim}"
            )
        if not self.kv_heads:
            object.__setattr__(self, "kv_heads", self.heads)
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise ValueError(f"kv_heads must divide heads {self.heads}; {self.kv_heads} does not")
        SpanConfig(chunk_sizes=self.chunk_sizes, block_size=self.block_size, top_k=self.top_k)
        if not self.window:
            object.__setattr__(self, "window", max(self.chunk_sizes))
        SlidingWindowConfig(window=self.window)


@dataclass(frozen=True)
class Preset:
    """A setting and the lengths, in tokens, to measure it at.

    Attributes:
        lengths: measured forward, and forward and backward.
        forward_lengths: measured forward alone.
    """

    setting: Setting
    lengths: tuple[int, ...]
    forward_lengths: tuple[int, ...] = ()


PRESETS = {
    # What two CPU cores measure in minutes; the targets of a CPU are stated for it.
    "small": Preset(Setting(), (2048, 8192, 16384, 65536)),
    # Attention of Mamba-2-Hybrid 2.7B as the paper trains and times it (section 4.1, figure 4).
    "paper": Preset(
        Setting(heads=30, head_dim=128, chunk_sizes=(2048, 4096), window=4096),
        tuple(2**power for power in range(11, 21)),
    ),
}
