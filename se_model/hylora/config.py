"""What HyLoRA trains, and how (paper section 3.4)."""

from dataclasses import dataclass
from typing import Literal, get_args

Variant = Literal["hylora", "lora+", "lora"]


@dataclass(frozen=True)
class HyLoraConfig:
    """Parameter-efficient fine-tuning of a hybrid model.

    Attributes:
        rank: rank of the low-rank updates; 32 in the paper for Mamba-2-Hybrid, gains saturate near 64.
        alpha: the updates are scaled by alpha / rank; the paper keeps this ratio at 2.
        dropout: dropout before the low-rank updates.
        variant: `"lora"` adds low-rank updates to every projection of the attention layers; `"lora+"`
            (LongLoRA's) also trains input embeddings (with the output head where the two are tied) and norms
            in full; `"hylora"` also trains every 1-D convolution in full. State-space projections stay frozen
            in all three.
    """

    rank: int = 32
    alpha: float = 64
    dropout: float = 0.0
    variant: Variant = "hylora"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        if self.alpha <= 0:
            raise ValueError(f"alpha must be positive, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.variant not in get_args(Variant):
            raise ValueError(f"variant must be one of {', '.join(get_args(Variant))}, got {self.variant!r}")
