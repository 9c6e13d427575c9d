"""The gated delta rule across shard boundaries: one all-gather per layer, no hops from rank to rank.

What a rank's tokens make of a state S that comes to them is  M S + S_0:  S_0 is the state that they leave
when they start from zero, M the product of their transitions, a K x K matrix for each head (Yang, Kautz and
Hatamizadeh, "Gated Delta Networks", arXiv 2412.06464). So every rank scans its own tokens, all exchange
(S_0, M), and each folds what lies before it,

    S <- M_j S + S_0j

from zero, and from the rank j on which its first token's document begins to the rank before its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from se_model.parallel.exchange import gather_states
from se_model.parallel.shard import SequenceShard

PURPOSE = "state"


def state_before(shard: SequenceShard, state: Tensor, transition: Tensor) -> Tensor:
    """The state that comes to this shard's first token, zero if it is its document's first: [B, H, K, V].

    state: [B, H, K, V], what the own tokens leave when they start from zero, as do documents among them;
    transition: [B, H, K, K], what all own tokens make of a state before them, zero where a document begins
    among them. Gradients flow to the states and transitions of all ranks.
    """
    gathered = gather_states(torch.cat([state, transition], dim=-1), shard.group, PURPOSE)
    states, transitions = gathered.split([state.shape[-1], transition.shape[-1]], dim=-1)
    # Zeros that stand in the graph, not a constant: so every rank comes to the exchange's backward.
    before = states[0].masked_fill(states.new_ones((), dtype=torch.bool), 0)
    for rank in range(shard.first_rank, shard.group.rank):
        before = transitions[rank] @ before + states[rank]
    return before
