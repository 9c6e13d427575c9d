"""The state-space recurrence across shard boundaries: one all-gather per layer, no hops from rank to rank.

What a rank's tokens make of a state h that comes to them is  D h + s:  s is the state that they leave when
they start from zero, D the product of their decays, one number per head (Mamba-2; Dao and Gu, arXiv
2405.21060). So every rank scans its own tokens from zero, all exchange (s, log D), and each folds what lies
before it:

    h_r = sum over j < r of  s_j * product of D_i over j < i < r

from the rank on which its first token's document begins. What that rank holds before the document is not in
its s: its own scan starts anew there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from se_model.parallel.exchange import gather_states
from se_model.parallel.shard import SequenceShard

PURPOSE = "state"


def state_before(shard: SequenceShard, state: Tensor, log_decay: Tensor) -> Tensor:
    """The state that comes to this shard's first token, zero if it is its document's first: [B, H, P, N].

    state: [B, H, P, N], what the own tokens leave when they start from zero, as do documents among them;
    log_decay: float64 [B, H], the log of what all own tokens leave of a state before them. Gradients flow to
    the states and decays of all ranks.
    """
    # In one tensor, and so in one exchange. Each rank's log decay is a whole, no difference of sums: rounding
    # it to the state's dtype changes its decay by far less than that dtype's precision.
    own = torch.cat([state.flatten(2), log_decay[..., None].to(state.dtype)], dim=2)
    gathered = gather_states(own, shard.group, PURPOSE)
    states, log_decays = gathered[..., :-1], gathered[..., -1].double()

    ranks = torch.arange(shard.group.size, device=state.device)
    earlier, later = ranks[:, None], ranks[None, :]
    between = ((later > earlier) & (later < shard.group.rank)).double()
    passed = torch.tensordot(between, log_decays, dims=1)  # [P, B, H], summed over the ranks between
    seen = (ranks >= shard.first_rank) & (ranks < shard.group.rank)
    # Zeros, not a shorter sum: so every rank comes to the exchange's backward.
    weights = passed.masked_fill(~seen[:, None, None], -torch.inf).exp().to(state.dtype)
    return (weights[..., None] * states).sum(dim=0).view(state.shape)
