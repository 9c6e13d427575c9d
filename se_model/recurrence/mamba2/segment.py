"""A few chunks of the state-space recurrence of Mamba-2 (SSD) by matrix products, forward and backward.

Dao and Gu, "Transformers are SSMs", arXiv 2405.21060, section 6. Shapes use B batch, L tokens, H heads, P
head dimension, G groups of h = H / G heads that share B and C, N state dimension, T chunks of Q tokens.

Within a chunk, with u = dt x and the log decays l_i = sum over j <= i of dt_j A, and S the state before it:

    y_i = sum over j <= i of  exp(l_i - l_j) (C_i . B_j) u_j  +  exp(l_i) S C_i
    S'  = exp(l_Q) S  +  sum over j of  exp(l_Q - l_j) u_j B_j^T
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from se_model.recurrence.chunks import ChunkDocuments, decay, in_chunks


class Inputs(NamedTuple):
    """What `ssd_naive` takes, but for the state."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor


class Gradients(NamedTuple):
    """Of a segment's inputs, in their shapes and the dtype that it computes in; A's in float64."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    state: Tensor


@dataclass(frozen=True)
class Segment:
    """A few chunks, with what both directions need of them.

    Attributes:
        length: L, without the padding of the last chunk.
        x, u: [B, T, Q, H, P].
        dt: [B, T, Q, H].
        A: float64 [H].
        B, C: [B, T, G, Q, N].
        within: exp(l_i - l_j), [B, T, H, Q, Q]; zero where j is later or of another document.
        from_start: exp(l_i), [B, T, Q, H]; zero for documents that the state before the chunk is not of.
        to_end: exp(l_Q - l_j), [B, T, Q, H]; zero for documents that the state behind the chunk is not of.
        across: exp(l_Q), [B, T, G, 1, h, 1]; zero where a document begins.
    """

    length: int
    x: Tensor
    u: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    within: Tensor
    from_start: Tensor
    to_end: Tensor
    across: Tensor

    @classmethod
    def of(
        cls, inputs: Inputs, *, dtype: torch.dtype, size: int, documents: ChunkDocuments | None
    ) -> Segment:
        """Cuts inputs into chunks of ``size`` tokens, to compute with in ``dtype``."""
        x, dt, A, B, C = inputs
        length, groups = B.shape[1:3]
        x, dt, B, C = (in_chunks(tensor.to(dtype), size) for tensor in (x, dt, B, C))
        B, C = B.transpose(2, 3), C.transpose(2, 3)
        # The difference of two cumulative sums loses what their size swallows: these few numbers are float64.
        A = A.double()
        log_decay = torch.cumsum(dt.double() * A, dim=2)
        end = log_decay[:, :, -1:]
        visible = torch.ones(size, size, dtype=torch.bool, device=x.device).tril()
        here = ending = passing = None
        if documents is not None:
            token, state = documents
            visible = (visible & (token[:, :, None] == token[:, None, :]))[:, None]
            here, ending = ((token == each[:, None])[..., None] for each in (state[:-1], state[1:]))
            passing = (state[1:] == state[:-1])[:, None, None]
        by_head = log_decay.transpose(2, 3)
        return cls(
            length=length,
            x=x,
            u=x * dt[..., None],
            dt=dt,
            A=A,
            B=B,
            C=C,
            within=decay((by_head[..., :, None] - by_head[..., None, :]).to(dtype), visible),
            from_start=decay(log_decay.to(dtype), here),
            to_end=decay((end - log_decay).to(dtype), ending),
            across=decay(end.to(dtype), passing).squeeze(2).unflatten(2, (groups, 1, -1, 1)),
        )

    def states(self, state: Tensor) -> Tensor:
        """The state at every chunk boundary, [B, T + 1, G, N, h, P], from the one at the first."""
        added = self.B.transpose(-1, -2) @ self._decayed_to_end
        added = added.unflatten(-1, state.shape[-2:])
        states = added.new_empty(added.shape[0], added.shape[1] + 1, *added.shape[2:])
        states[:, 0] = state
        for t in range(added.shape[1]):
            torch.addcmul(added[:, t], self.across[:, t], states[:, t], out=states[:, t + 1])
        return states

    def outputs(self, states: Tensor) -> Tensor:
        """y: [B, L, H, P], given `states`."""
        weights = self._by_head(self.within, self.C @ self.B.transpose(-1, -2))
        y = (weights @ self.u.transpose(2, 3)).transpose(2, 3)
        received = self._by_token(self.C @ states[:, :-1].flatten(-2))
        y = torch.addcmul(y, received, self.from_start[..., None])
        return self._unchunked(y)

    def gradients(self, states: Tensor, dy: Tensor, d_final: Tensor) -> Gradients:
        """From the gradients of y [B, L, H, P] and of the last state [B, G, N, h, P], given `states`."""
        B, C, u = self.B, self.C, self.u
        dy = in_chunks(dy.to(u.dtype), u.shape[2])
        before = states[:, :-1].flatten(-2)

        received = dy * self.from_start[..., None]
        d_start = (self._by_token(C @ before) * received).sum(-1)  # of the logs that from_start is made of
        received = self._by_group(received)
        dC = received @ before.transpose(-1, -2)
        d_states = self._backward_through_chunks(C.transpose(-1, -2) @ received, d_final)
        behind = d_states[:, 1:]
        d_across = ((states[:, :-1] * behind).sum((-1, -3)) * self.across[..., 0, :, 0]).flatten(2)

        behind = behind.flatten(-2)
        dB = self._decayed_to_end @ behind.transpose(-1, -2)
        du = self._by_token(B @ behind) * self.to_end[..., None]
        d_end = (du * u).sum(-1)

        scores = C @ B.transpose(-1, -2)
        dy_by_head = dy.transpose(2, 3)
        du = du + (self._by_head(self.within, scores).transpose(-1, -2) @ dy_by_head).transpose(2, 3)
        d_weights = (dy_by_head @ u.transpose(2, 3).transpose(-1, -2)).mul_(self.within)
        d_scores = d_weights.unflatten(2, (B.shape[2], -1)).sum(3)
        d_within = self._by_head(d_weights, scores)
        dC = dC + d_scores @ B
        dB = dB + d_scores.transpose(-1, -2) @ C

        # A pair counts for the later token and against the earlier: in the sums below it must cancel exactly.
        later, earlier = (d_within.sum(dim, dtype=torch.float64) for dim in (-1, -2))
        d_log = (later - earlier).transpose(2, 3) + d_start - d_end
        d_log[:, :, -1] += d_end.sum(2, dtype=torch.float64) + d_across
        d_step = d_log.flip(2).cumsum(2).flip(2)  # of dt A, which all later tokens' logs contain
        return Gradients(
            x=self._unchunked(du * self.dt[..., None]),
            dt=self._unchunked((du * self.x).sum(-1) + (d_step * self.A).to(du.dtype)),
            A=(d_step * self.dt).sum((0, 1, 2)),
            B=self._unchunked(dB.transpose(2, 3)),
            C=self._unchunked(dC.transpose(2, 3)),
            state=d_states[:, 0],
        )

    def _backward_through_chunks(self, d_states: Tensor, d_final: Tensor) -> Tensor:
        """Gradients of `states`, given those by the outputs, [B, T, G, N, h P], and of the last."""
        d_states = torch.cat([d_states.unflatten(-1, d_final.shape[-2:]), d_final[:, None]], dim=1)
        for t in reversed(range(d_states.shape[1] - 1)):
            d_states[:, t].addcmul_(self.across[:, t], d_states[:, t + 1])
        return d_states

    @cached_property
    def _decayed_to_end(self) -> Tensor:
        """What is left of u at the end of its chunk: [B, T, G, Q, h P]."""
        return self._by_group(self.u * self.to_end[..., None])

    def _by_head(self, by_head: Tensor, by_group: Tensor) -> Tensor:
        """The product of [B, T, H, Q, Q] with [B, T, G, Q, Q]."""
        product = by_head.unflatten(2, (by_group.shape[2], -1)) * by_group[:, :, :, None]
        return product.flatten(2, 3)

    def _by_group(self, tensor: Tensor) -> Tensor:
        """[B, T, Q, H, P] -> [B, T, G, Q, h P]: a group's heads side by side, one product for all of them."""
        return tensor.unflatten(3, (self.B.shape[2], -1)).transpose(2, 3).flatten(-2)

    def _by_token(self, tensor: Tensor) -> Tensor:
        """[B, T, G, Q, h P] -> [B, T, Q, H, P]."""
        return tensor.unflatten(-1, (-1, self.x.shape[-1])).transpose(2, 3).flatten(3, 4)

    def _unchunked(self, tensor: Tensor) -> Tensor:
        """[B, T, Q, ...] -> [B, L, ...]."""
        return tensor.flatten(1, 2)[:, : self.length]
