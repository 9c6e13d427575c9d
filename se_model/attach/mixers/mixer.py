"""What every recurrent layer of transformers (5.23) gains by `attach`: packed documents, and shards of a row.

`attach` gives these layers a class of this folder, derived from their own. Names, parameters and whatever
wraps the modules inside stay as they are. From those modules and parameters the class computes what the layer
computes for each document by itself, or for these tokens within the whole row: one way for one rank and for
several, through the recurrences of `se_model.recurrence`. What needs a cache or knows padding, the layer
itself still does; on a CPU by PyTorch alone (`torch_forward.py`).
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from se_model.attach.marks import MARK, Attachment
from se_model.attach.mixers.torch_forward import torch_forward
from se_model.hybrid.past import past_of
from se_model.parallel import SequenceShard
from se_model.parallel.formula import Share
from se_model.parallel.volumes import Exchanged
from se_model.recurrence import Carried, Recurrence
from se_model.span.documents import DocumentBounds


class AttachedMixer(nn.Module):
    """The part that the classes of all kinds share; the kind's own part is `mix` and `exchanged`.

    Attributes:
        recurrences: of the kind.
        recurrence_backend: "auto", or the one that `attach` was told.
    """

    recurrences: ClassVar[tuple[Recurrence, ...]]
    recurrence_backend = "auto"

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        shard: SequenceShard | None = None,
        cu_seqlens: DocumentBounds | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """hidden_states: [B, L, E], with a shard its own n tokens of each row. Returns the same shape.

        Raises:
            ValueError: for a cache or padding beside a shard or packed documents, and where the model was
                given either and it does not arrive here.
        """
        attachment: Attachment = getattr(self, MARK)
        if shard is None:
            attachment.require_whole_rows(self)
        if shard is None and cu_seqlens is None:
            attachment.require_whole_documents(self)
        cached = any(kwargs.get(name) is not None for name in ("cache_params", "past_key_values"))
        if not cached and attention_mask is None:
            documents = cu_seqlens if shard is None else shard.documents
            return self.mix(hidden_states, past_of(None, shard, layer_idx=0), documents)
        if shard is not None or cu_seqlens is not None:
            what = "packed documents" if shard is None else "a shard"
            raise ValueError(
                f"{type(self).__name__} is given {what}: its row has no padding, and it keeps no cache "
                "(pass use_cache=False)"
            )
        forward = super().forward.__func__  # type: ignore[attr-defined]  # of the layer's own class
        if hidden_states.device.type == "cpu":
            forward = torch_forward(forward)
        output: Tensor = forward(self, hidden_states, attention_mask=attention_mask, **kwargs)
        return output

    def mix(self, hidden: Tensor, carried: Carried, documents: DocumentBounds | None) -> Tensor:
        """The layer from its input to its output, both [B, L, E].

        carried: into the first token, from other ranks; documents: of these tokens, None for one.
        """
        raise NotImplementedError

    def exchanged(self, share: Share) -> Exchanged:
        """What a rank receives for this layer where a row is shared."""
        raise NotImplementedError
