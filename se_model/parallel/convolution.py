"""The convolution across shard boundaries: its state is the last inputs of the rank before."""

from __future__ import annotations

from torch import Tensor

from se_model.parallel.exchange import receive_left
from se_model.parallel.shard import SequenceShard

PURPOSE = "convolution"


def inputs_before(x: Tensor, context: int, shard: SequenceShard) -> Tensor:
    """What a causal convolution over this shard looks at beyond its first token: [B, W - 1, C].

    x: [B, n, C], the convolution's inputs; context: W - 1. Inputs of earlier documents are zeros. Backward
    gives the rank before the gradient of its last inputs.

    Raises:
        ValueError: if the shard is shorter than the convolution's context.
    """
    length = x.shape[1]
    if length < context:
        raise ValueError(
            f"shards of {length} tokens are shorter than the {context} that a convolution looks back: "
            "use fewer ranks (context_parallel)"
        )
    last = x[:, length - context :]
    received = receive_left(last, shard.group, last.shape, PURPOSE)
    foreign = max(0, context - shard.tokens_before)
    # Masked even where all of it is foreign, so that every rank comes to the exchange's backward.
    mask = received.new_zeros(context, 1).bool()
    mask[:foreign] = True
    return received.masked_fill(mask, 0)
