"""A few chunks of the selective scan of Mamba-1, forward and backward.

A segment is cut into T chunks of Q tokens. A step handles the tokens at one position of all chunks at once:
the first pass over the positions finds what each chunk leaves when it starts from zero, a pass over the
chunks then finds the state before each, and the second pass over the positions runs from these states. So Q +
T steps, not Q T, follow each other, and only decays of single tokens and of whole chunks are multiplied with
a state: none is divided out again, and any may be zero.

With the decays a_t = exp(dt_t A), v = dt u and the gradient g_t of h_t through all later tokens,

    h_t = a_t h_(t-1) + v_t B_t,    y_t = C_t . h_t,    g_t = dy_t C_t + a_(t+1) g_(t+1):

the backward pass is the same recurrence from the last token to the first. Shapes use B batch, G groups of d =
D / G consecutive channels that share B and C, N state dimension; a state is [B, G, N, d] here, its longest
dimension last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from se_model.recurrence.chunks import decay, in_chunks


class Inputs(NamedTuple):
    """What `selective_scan_naive` takes, but for the state."""

    u: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor


class Gradients(NamedTuple):
    """Of a segment's inputs, in their shapes and the dtype that it computes in; A's in float64."""

    u: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    state: Tensor


@dataclass(frozen=True)
class Segment:
    """A few chunks, with what both directions need of them.

    Attributes:
        length: of the segment, without the padding of the last chunk.
        u, dt, v: [Q, B, T, G, 1, d].
        A: [G, N, d].
        B, C: [Q, B, T, G, N, 1].
        decays: of each position of all chunks, [B, T, G, N, d] each; zero where a document begins.
        across: of whole chunks, [B, T, G, N, d]; zero where a document begins among a chunk's tokens.
    """

    length: int
    u: Tensor
    dt: Tensor
    v: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    decays: list[Tensor]
    across: Tensor

    @classmethod
    def of(cls, inputs: Inputs, *, dtype: torch.dtype, begins: Tensor | None) -> Segment:
        """Cuts inputs into chunks, to compute with in ``dtype``.

        begins: bool [tokens], the tokens before which the state is zero.
        """
        u, dt, A, B, C = inputs
        length, groups = B.shape[1:3]
        size = chunk_size(length)
        u, dt = (_by_position(each.to(dtype), size).unflatten(-1, (groups, 1, -1)) for each in (u, dt))
        B, C = (_by_position(each.to(dtype), size)[..., None] for each in (B, C))
        A = by_group(A.to(dtype), groups)
        decays = [decay(step * A) for step in dt]
        # What a chunk leaves of a state, from one sum: a product of its decays would round at each.
        across = decay((dt.sum(0, dtype=torch.float64) * A).to(dtype))
        if begins is not None:
            begins = _by_position(begins[None], size)[:, 0, :, None, None, None]  # [Q, T, 1, 1, 1]
            for each, here in zip(decays, begins, strict=True):
                each.masked_fill_(here, 0)
            across.masked_fill_(begins.any(0), 0)
        return cls(length, u, dt, dt * u, A, B, C, decays, across)

    @cached_property
    def _added(self) -> Tensor:
        """What each chunk leaves when it starts from zero: [B, T, G, N, d]."""
        state = self.v[0] * self.B[0]
        for a, v, B in zip(self.decays[1:], self.v[1:], self.B[1:], strict=True):
            state.mul_(a).addcmul_(v, B)
        return state

    def states(self, state: Tensor) -> Tensor:
        """The state at every chunk boundary, [B, T + 1, G, N, d], from the one at the first."""
        added = self._added
        states = added.new_empty(added.shape[0], added.shape[1] + 1, *added.shape[2:])
        states[:, 0] = state
        for t in range(added.shape[1]):
            torch.addcmul(added[:, t], self.across[:, t], states[:, t], out=states[:, t + 1])
        return states

    def outputs(self, states: Tensor) -> Tensor:
        """y: [B, length, D], given `states`."""
        state = states[:, :-1].clone()
        outputs = []
        for a, v, B, C in zip(self.decays, self.v, self.B, self.C, strict=True):
            state.mul_(a).addcmul_(v, B)
            outputs.append(C.mT @ state)
        return self._by_token(torch.stack(outputs)).flatten(2)

    def gradients(self, states: Tensor, dy: Tensor, d_final: Tensor) -> Gradients:
        """From the gradients of y [B, length, D] and of the last state [B, G, N, d], given `states`."""
        size, groups = len(self.decays), self.B.shape[3]
        dy = _by_position(dy.to(self.u.dtype), size).unflatten(-1, (groups, 1, -1))
        after = self._after(states)
        before = [states[:, :-1], *after[:-1]]
        behind = self._behind(dy, d_final)

        d_state, dA = behind[:, 1:].clone(), torch.zeros_like(self.across)
        du, d_dt, dB, dC = (torch.empty_like(each) for each in (self.u, self.dt, self.B, self.C))
        for i in reversed(range(size)):
            d_state.addcmul_(dy[i], self.C[i])
            torch.matmul(after[i], dy[i].mT, out=dC[i])
            torch.matmul(d_state, self.v[i].mT, out=dB[i])
            dv = self.B[i].mT @ d_state
            d_state.mul_(self.decays[i])
            d_log = d_state * before[i]
            dA.addcmul_(d_log, self.dt[i])
            torch.mul(dv, self.dt[i], out=du[i])
            torch.addcmul((d_log * self.A).sum(-2, keepdim=True), dv, self.u[i], out=d_dt[i])
        return Gradients(
            u=self._by_token(du).flatten(2),
            dt=self._by_token(d_dt).flatten(2),
            A=by_channel(dA.sum((0, 1), dtype=torch.float64)),
            B=self._by_token(dB).squeeze(-1),
            C=self._by_token(dC).squeeze(-1),
            state=behind[:, 0],
        )

    def _after(self, states: Tensor) -> list[Tensor]:
        """The state after the token at each position, [B, T, G, N, d] each."""
        state, after = states[:, :-1], []
        for a, v, B in zip(self.decays, self.v, self.B, strict=True):
            state = (a * state).addcmul_(v, B)
            after.append(state)
        return after

    def _behind(self, dy: Tensor, d_final: Tensor) -> Tensor:
        """The gradient of `states` through all that is behind them, [B, T + 1, G, N, d]."""
        d_state = torch.zeros_like(self.across)
        for i in reversed(range(len(self.decays))):
            d_state.addcmul_(dy[i], self.C[i]).mul_(self.decays[i])
        behind = torch.cat([d_state, d_final[:, None]], dim=1)
        for t in reversed(range(d_state.shape[1])):
            behind[:, t].addcmul_(self.across[:, t], behind[:, t + 1])
        return behind

    def _by_token(self, tensor: Tensor) -> Tensor:
        """[Q, B, T, ...] -> [B, length, ...]."""
        return tensor.permute(1, 2, 0, *range(3, tensor.dim())).flatten(1, 2)[:, : self.length]


def chunk_size(length: int) -> int:
    """Tokens of a chunk, Q, so that few steps follow each other: both passes have Q, one pass T."""
    return math.isqrt(length - 1) + 1


def by_group(state: Tensor, groups: int) -> Tensor:
    """[..., D, N] -> [..., G, N, d]."""
    return state.unflatten(-2, (groups, -1)).mT.contiguous()


def by_channel(state: Tensor) -> Tensor:
    """[..., G, N, d] -> [..., D, N]."""
    return state.mT.flatten(-3, -2)


def _by_position(tensor: Tensor, size: int) -> Tensor:
    """[B, length, ...] -> [Q, B, T, ...]."""
    return in_chunks(tensor, size).movedim(2, 0).contiguous()
