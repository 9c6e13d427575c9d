"""A few chunks of the gated delta rule by matrix products, as operations that autograd differentiates.

Yang et al., "Gated Delta Networks", arXiv 2412.06464, section 3.3. Shapes use B batch, T chunks of Q tokens,
G heads of queries and keys for h = H / G heads of values each, K and V their dimensions, C = 1 log decay for
a head or C = K, one for each channel.

Within a chunk, with the cumulated log decays l and the state S before it, token i writes

    w_i = beta_i (v_i - k_i^T exp(l_i) S  -  sum over j < i of  (k_i^T exp(l_i - l_j) k_j) w_j)

where all are rows. That is a triangular system of equations, the same for all columns of v and S:

    A_ij = beta_i k_i^T exp(l_i - l_j) k_j  for j < i,      (I + A) [U | W] = [beta v | beta exp(l) k]
    w = U - W S
    o_i = q_i^T exp(l_i) S  +  sum over j <= i of  (q_i^T exp(l_i - l_j) k_j) w_j
    S'  = exp(l_Q) S  +  sum over j of  exp(l_Q - l_j) k_j w_j^T
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from se_model.recurrence.chunks import ChunkDocuments, decay, in_chunks
from se_model.recurrence.gated_delta.normalized import normalized
from se_model.recurrence.gated_delta.pairs import decayed_products


class Inputs(NamedTuple):
    """What `delta_rule_naive` takes, but for the state."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor
    beta: Tensor


def segment(
    inputs: Inputs, state: Tensor, *, size: int, documents: ChunkDocuments | None
) -> tuple[Tensor, Tensor]:
    """Outputs [B, L, H, V] in float32 or better, and the state [B, H, K, V] behind the last token.

    size: Q; documents: of these chunks. A state that is wider than the values, [B, H, K, V + X], finds zeros
    in their place there, and o is [B, L, H, V + X].
    """
    length, groups = inputs.q.shape[1:3]
    chunks = _Chunks.of(inputs, dtype=state.dtype, size=size, documents=documents)
    written, read = chunks.solved(state.shape[-1])
    state = state.unflatten(1, (groups, -1))
    states, rows = [], []
    # Unbound at once: the gradient of a tensor indexed chunk by chunk would be filled with zeros for each.
    each = zip(*(x.unbind(1) for x in (written, read, chunks.keys_to_end, chunks.across)), strict=True)
    for written_t, read_t, keys, across in each:
        states.append(state)
        rows.append(written_t - read_t @ state)
        state = across * state + keys.mT @ rows[-1]
    o = chunks.queries_from_start @ torch.stack(states, dim=1) + chunks.within @ torch.stack(rows, dim=1)
    o = o.permute(0, 1, 4, 2, 3, 5).flatten(1, 2)[:, :length].flatten(2, 3)
    return o, state.flatten(1, 2)


class _Chunks(NamedTuple):
    """A segment's chunks, with what does not depend on the state.

    Attributes:
        values: beta v, [B, T, G, h, Q, V].
        keys_from_start: beta exp(l) k, [B, T, G, h, Q, K]; zero for documents that the state before the
            chunk is not of.
        queries_from_start: exp(l) q, likewise.
        keys_to_end: exp(l_Q - l) k; zero for documents that the state behind the chunk is not of.
        across: exp(l_Q), [B, T, G, h, C, 1]; zero where a document begins.
        system: A, [B, T, G, h, Q, Q], its lower triangle.
        within: q_i^T exp(l_i - l_j) k_j, the same shape; both zero where j is of another document.
    """

    values: Tensor
    keys_from_start: Tensor
    queries_from_start: Tensor
    keys_to_end: Tensor
    across: Tensor
    system: Tensor
    within: Tensor

    @classmethod
    def of(
        cls, inputs: Inputs, *, dtype: torch.dtype, size: int, documents: ChunkDocuments | None
    ) -> _Chunks:
        groups = inputs.q.shape[2]
        q, k = normalized(*(_by_group(in_chunks(x.to(dtype), size), groups) for x in (inputs.q, inputs.k)))
        v = _by_group(in_chunks(inputs.v.to(dtype), size), groups)
        beta = _by_group(in_chunks(inputs.beta.to(dtype)[..., None], size), groups)
        log = inputs.log_decay.reshape(*inputs.beta.shape, -1).double()
        # The difference of two cumulative sums loses what their size swallows: these are float64.
        log = torch.cumsum(_by_group(in_chunks(log, size), groups), dim=-2)
        end = log[..., -1:, :]
        visible = torch.ones(size, size, dtype=torch.bool, device=v.device).tril()
        here = ending = passing = None
        if documents is not None:
            token, state = documents
            visible = (visible & (token[:, :, None] == token[:, None, :]))[:, None, None]
            by_token = token[:, None, None, :, None]
            here, ending = (by_token == each.view(-1, 1, 1, 1, 1) for each in (state[:-1], state[1:]))
            passing = (state[1:] == state[:-1])[:, None, None, None, None]
        from_start = decay(log.to(dtype), here)
        by_keys, by_queries = decayed_products((k, q), k, log, visible)
        return cls(
            values=beta * v,
            keys_from_start=beta * from_start * k,
            queries_from_start=from_start * q,
            keys_to_end=decay((end - log).to(dtype), ending) * k,
            across=decay(end.to(dtype), passing).mT,
            system=beta * by_keys,
            within=by_queries,
        )

    def solved(self, width: int) -> tuple[Tensor, Tensor]:
        """U [B, T, G, h, Q, width], with zeros beyond V, and W [B, T, G, h, Q, K]."""
        right = torch.cat([self.values, self.keys_from_start], dim=-1)
        solved = torch.linalg.solve_triangular(self.system, right, upper=False, unitriangular=True)
        written, read = solved.split([self.values.shape[-1], self.keys_from_start.shape[-1]], dim=-1)
        return F.pad(written, (0, width - written.shape[-1])), read


def _by_group(x: Tensor, groups: int) -> Tensor:
    """[B, T, Q, H, X] -> [B, T, G, h, Q, X]."""
    return x.unflatten(3, (groups, -1)).permute(0, 1, 3, 4, 2, 5)
