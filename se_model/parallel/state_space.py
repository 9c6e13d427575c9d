"""The state-space recurrence across shard boundaries: one all-gather per layer, no hops from rank to rank.

What a rank's tokens make of a state h that comes to them is  D h + s:  s is the state that they leave when
they start from zero, D the product of their decays, one number for each part of the state that decays alike:
for each head in Mamba-2 (Dao and Gu, arXiv 2405.21060), for each number of the state in Mamba-1 (Gu and Dao,
arXiv 2312.00752). So every rank scans its own tokens from zero, all exchange (s, log D), and each folds what
lies before it:

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
    """The state that comes to this shard's first token, zero if it is its document's first; as ``state``.

    state: what the own tokens leave when they start from zero, as do documents among them: [B, H, P, N] in
    Mamba-2, [B, D, N] in Mamba-1; log_decay: the log of what all own tokens leave of a state before them, in
    float64, of as many of the state's first dimensions as decay differently: [B, H], and [B, D, N]. Gradients
    flow to the states and decays of all ranks.
    """
    # In one tensor, and so in one exchange. Each rank's log decay is a whole, no difference of sums: rounding
    # it to the state's dtype changes its decay by far less than that dtype's precision.
    parts = log_decay.shape
    own = torch.cat([state.reshape(*parts, -1), log_decay[..., None].to(state.dtype)], dim=-1)
    gathered = gather_states(own, shard.group, PURPOSE)
    states, log_decays = gathered[..., :-1], gathered[..., -1].double()

    ranks = torch.arange(shard.group.size, device=state.device)
    earlier, later = ranks[:, None], ranks[None, :]
    between = ((later > earlier) & (later < shard.group.rank)).double()
    passed = torch.tensordot(between, log_decays, dims=1)  # [P, *parts], summed over the ranks between
    seen = (ranks >= shard.first_rank) & (ranks < shard.group.rank)
    # Zeros, not a shorter sum: so every rank comes to the exchange's backward.
    unseen = ~seen.view(-1, *(1,) * len(parts))
    weights = passed.masked_fill(unseen, -torch.inf).exp().to(state.dtype)
    return (weights[..., None] * states).sum(dim=0).view(state.shape)
