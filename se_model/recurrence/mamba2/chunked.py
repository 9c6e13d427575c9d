"""The state-space recurrence of Mamba-2 (SSD) by matrix products, a chunk of tokens at a time.

Dao and Gu, "Transformers are SSMs", arXiv 2405.21060, section 6. Shapes use B batch, L tokens, H heads, P
head dimension, G groups of heads that share B and C, N state dimension, T chunks, Q tokens per chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from se_model.recurrence.mamba2.shapes import check_shapes
from se_model.recurrence.protocol import InitialState
from se_model.span.documents import DocumentBounds, Documents


def ssd_chunked(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    chunk_size: int = 64,
    initial_state: InitialState | None = None,
    cu_seqlens: Documents | None = None,
) -> tuple[Tensor, Tensor]:
    """`ssd_naive` by matrix products: tokens of a chunk act on each other directly, chunks through states.

    Same arguments and results; any L. ``chunk_size`` (Q) changes the cost only: O(L Q) within chunks and
    O(T^2) between them. ``initial_state`` may also be a function, where the state before these tokens has to
    come from elsewhere: see `InitialState`.

    Raises:
        ValueError: if shapes or ``cu_seqlens`` do not fit together.
    """
    check_shapes(x, dt, A, B, C, None if callable(initial_state) else initial_state)
    dtype = torch.promote_types(x.dtype, torch.float32)
    batch, length = x.shape[:2]
    size = min(chunk_size, length)
    documents = None
    if cu_seqlens is not None:
        documents = _ChunkDocuments.of(DocumentBounds.of(cu_seqlens, length, batch), size, x.device)

    def chunked(tensor: Tensor) -> Tensor:
        """[B, L, ...] -> [B, T, Q, ...], zeros behind the last token."""
        padding = (0, 0) * (tensor.dim() - 2) + (0, -length % size)
        return F.pad(tensor.to(dtype), padding).unflatten(1, (-1, size))

    # Behind the last token dt = 0: nothing decays, nothing is added.
    dt, B, C = chunked(dt), chunked(B).transpose(2, 3), chunked(C).transpose(2, 3)  # B, C: [B, T, G, Q, N]
    x_dt = chunked(x) * dt[..., None]
    # The difference of two cumulative sums loses what their size swallows: these few numbers are float64.
    log_decay = torch.cumsum(dt.double() * A.double(), dim=2)  # [B, T, Q, H]

    y = _within_chunks(x_dt, log_decay, B, C, documents)
    added = _added_by_chunks(x_dt, log_decay, B, documents)
    decay = _decay_between_boundaries(log_decay[:, :, -1], documents).to(dtype)
    if callable(initial_state):
        left = _decayed(added, decay[..., -1:, 1:])[:, 0].transpose(-1, -2)
        initial_state = initial_state(left, log_decay[:, :, -1].sum(dim=1))
    if initial_state is None:
        first = torch.zeros_like(added[:, :1])
    else:
        first = initial_state.to(dtype).transpose(-1, -2)[:, None]
    states = _decayed(torch.cat([first, added], dim=1), decay)
    y = y + _from_states(states[:, :-1], log_decay, C, documents)
    return y.flatten(1, 2)[:, :length].to(x.dtype), states[:, -1].transpose(-1, -2)


class _ChunkDocuments(NamedTuple):
    """The document of each token, [T, Q], and of the state at each chunk boundary, [T + 1]."""

    of_token: Tensor
    of_state: Tensor

    @classmethod
    def of(cls, documents: DocumentBounds, size: int, device: torch.device) -> _ChunkDocuments:
        last = len(documents.bounds) - 2
        of_token = F.pad(documents.index(device), (0, -documents.length % size), value=last).view(-1, size)
        return cls(of_token, F.pad(of_token[:, -1], (1, 0), value=0))


def _within_chunks(
    x_dt: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, documents: _ChunkDocuments | None
) -> Tensor:
    """What the tokens of a chunk give to themselves and the later ones of the chunk: [B, T, Q, H, P]."""
    size, heads, groups = x_dt.shape[2], x_dt.shape[3], B.shape[2]
    visible = torch.ones(size, size, dtype=torch.bool, device=x_dt.device).tril()
    if documents is not None:
        document = documents.of_token
        visible = (visible & (document[:, :, None] == document[:, None, :]))[:, None]
    log_decay = log_decay.transpose(2, 3)
    between = (log_decay[..., :, None] - log_decay[..., None, :]).to(x_dt.dtype)
    decay = between.masked_fill(~visible, -torch.inf).exp()  # [B, T, H, Q, Q]
    scores = C @ B.transpose(-1, -2)  # [B, T, G, Q, Q]
    weights = decay.unflatten(2, (groups, heads // groups)) * scores[:, :, :, None]
    return (weights.flatten(2, 3) @ x_dt.transpose(2, 3)).transpose(2, 3)


def _added_by_chunks(x_dt: Tensor, log_decay: Tensor, B: Tensor, documents: _ChunkDocuments | None) -> Tensor:
    """What each chunk adds to the state at its end: [B, T, H, N, P]."""
    heads, groups = x_dt.shape[3], B.shape[2]
    decay = (log_decay[:, :, -1:] - log_decay).exp()
    if documents is not None:
        decay = decay * (documents.of_token == documents.of_state[1:, None])[..., None]
    # The heads of a group side by side: one product [N, Q] x [Q, heads * P] for all of them.
    decayed = (x_dt * decay.to(x_dt.dtype)[..., None]).unflatten(3, (groups, -1)).transpose(2, 3)
    added = B.transpose(-1, -2) @ decayed.flatten(-2)
    return added.unflatten(-1, (heads // groups, -1)).transpose(3, 4).flatten(2, 3)


def _decay_between_boundaries(log_decay: Tensor, documents: _ChunkDocuments | None) -> Tensor:
    """What is left at each chunk boundary of what was added at an earlier one: float64 [B, H, T + 1, T + 1].

    log_decay: [B, T, H], of whole chunks. The boundaries are the start, those between chunks and the end.
    """
    until = F.pad(torch.cumsum(log_decay, dim=1), (0, 0, 1, 0)).transpose(1, 2)  # [B, H, T + 1]
    count = until.shape[-1]
    visible = torch.ones(count, count, dtype=torch.bool, device=until.device).tril()
    if documents is not None:
        visible = visible & (documents.of_state[:, None] == documents.of_state[None, :])
    between = until[..., :, None] - until[..., None, :]
    return between.masked_fill(~visible, -torch.inf).exp()


def _decayed(added: Tensor, decay: Tensor) -> Tensor:
    """The states [B, T2, H, N, P] from what was added, [B, T1, H, N, P]; decay: [B, H, T2, T1]."""
    return (decay @ added.transpose(1, 2).flatten(-2)).transpose(1, 2).unflatten(-1, added.shape[-2:])


def _from_states(states: Tensor, log_decay: Tensor, C: Tensor, documents: _ChunkDocuments | None) -> Tensor:
    """What the tokens of each chunk receive from the state before it: [B, T, Q, H, P].

    states: [B, T, H, N, P].
    """
    heads, groups = states.shape[2], C.shape[2]
    decay = log_decay.exp()
    if documents is not None:
        decay = decay * (documents.of_token == documents.of_state[:-1, None])[..., None]
    side_by_side = states.unflatten(2, (groups, -1)).transpose(3, 4).flatten(-2)  # [B, T, G, N, heads * P]
    received = (C @ side_by_side).unflatten(-1, (heads // groups, -1)).transpose(2, 3).flatten(3, 4)
    return received * decay.to(received.dtype)[..., None]
