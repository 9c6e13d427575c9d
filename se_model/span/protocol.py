"""What every attention here is: a function, and a small frozen object that configures it."""

from __future__ import annotations

from typing import ClassVar, Protocol

from torch import Tensor

from se_model.span.documents import Documents


class Attention(Protocol):
    """Causal attention over whole sequences, one signature for all kinds."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None = None,
        cu_seqlens: Documents | None = None,
    ) -> Tensor:
        """q: [B, H, L, D]; k: [B, G, L, D]; v: [B, G, L, Dv], G divides H. Returns [B, H, L, Dv].

        ``scale`` defaults to D ** -0.5. ``cu_seqlens`` (int32 or int64 [N + 1], with B = 1) gives the bounds
        of the documents in a packed row, which never attend to each other.
        """
        ...


class AttentionConfig(Protocol):
    """Configures a kind of attention, and gives the function for one layer of one forward call."""

    kind: ClassVar[str]

    @property
    def draws(self) -> bool:
        """Whether anything is drawn at random, so that what `bind` gives depends on the step."""
        ...

    def bind(self, *, layer: int, step: int) -> Attention:
        """The attention of one layer in one forward call.

        Args:
            layer: which of the model's attention layers this is, counted from 0.
            step: how many forward calls training has made before this one. The same (layer, step) always
                gives the same function, so a recomputed forward repeats the first one's random choices.
        """
        ...
