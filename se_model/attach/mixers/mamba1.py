"""The Mamba-1 layers of transformers: Jamba's, and Zamba's, which has several independent heads."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache
from transformers.models.jamba.modeling_jamba import JambaMambaDecoderLayer, JambaMambaMixer
from transformers.models.zamba.modeling_zamba import ZambaMambaMixer

from se_model.attach.mixers.mixer import AttachedMixer
from se_model.parallel import SequenceShard
from se_model.parallel.formula import Share
from se_model.parallel.volumes import Exchanged, selective_scan_exchange
from se_model.recurrence import CONVOLUTION, MAMBA1, Carried, SelectiveScanSizes, selective_scan
from se_model.span.documents import DocumentBounds


class Mamba1Mixer(AttachedMixer):
    """Mamba-1, from the parts that both layers name alike."""

    recurrences = (MAMBA1, CONVOLUTION)

    @property
    def sizes(self) -> SelectiveScanSizes:
        """The layer's numbers."""
        raise NotImplementedError

    def exchanged(self, share: Share) -> Exchanged:
        """Inputs of the convolution, and states."""
        return selective_scan_exchange(self.sizes, share)

    def mix(self, hidden: Tensor, carried: Carried, documents: DocumentBounds | None) -> Tensor:
        """Projection, convolution and recurrence, skip and gate, projection."""
        layer: Any = self
        inputs, gate = self._split(layer.in_proj(hidden))

        def convolve(inputs: Tensor, before: Tensor | None) -> Tensor:
            convolved: Tensor = layer.act(layer.conv1d(inputs, before, documents))
            return convolved

        u, y = selective_scan(
            inputs,
            sizes=self.sizes,
            convolve=convolve,
            project=self._projected,
            A_log=layer.A_log.flatten(0, -2),
            carried=carried,
            documents=documents,
            backend=self.recurrence_backend,
        )
        dtype = _wide(hidden)
        y = (y + u * layer.D.flatten().to(dtype)) * F.silu(gate.to(dtype))
        output: Tensor = layer.out_proj(y.to(hidden.dtype))
        return output

    def _split(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        """The recurrence's inputs and the gate, [B, L, D] each."""
        raise NotImplementedError

    def _projected(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dt [B, L, D], B and C [B, L, G, N], made of the convolved inputs [B, L, D]."""
        raise NotImplementedError


class AttachedJambaMambaMixer(Mamba1Mixer, JambaMambaMixer):
    """Jamba's, which has norms on dt, B and C."""

    @property
    def sizes(self) -> SelectiveScanSizes:
        """The layer's numbers."""
        layer: Any = self
        return SelectiveScanSizes(
            channels=layer.intermediate_size,
            groups=1,
            state_size=layer.ssm_state_size,
            kernel=layer.conv_kernel_size,
        )

    def _split(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        inputs, gate = projected.chunk(2, dim=-1)
        return inputs, gate

    def _projected(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        layer: Any = self
        sizes = [layer.time_step_rank, layer.ssm_state_size, layer.ssm_state_size]
        dt, B, C = layer.x_proj(u).split(sizes, dim=-1)
        # Called as the module that it is, where transformers reads its weight: an adapter around it counts.
        dt = layer.dt_proj(layer.dt_layernorm(dt))
        B, C = layer.b_layernorm(B), layer.c_layernorm(C)
        return F.softplus(dt.to(_wide(dt))), B[:, :, None], C[:, :, None]


class AttachedJambaMambaDecoderLayer(JambaMambaDecoderLayer):
    """The layer around Jamba's mixer: transformers' own tells the mixer nothing of what the model is told."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        shard: SequenceShard | None = None,
        cu_seqlens: DocumentBounds | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """hidden_states: [B, L, E], with a shard its own n tokens of each row. Returns the same shape."""
        layer: Any = self
        hidden_states = hidden_states + layer.mamba(
            hidden_states=layer.input_layernorm(hidden_states),
            cache_params=past_key_values,
            attention_mask=attention_mask,
            shard=shard,
            cu_seqlens=cu_seqlens,
        )
        output: Tensor = hidden_states + layer.feed_forward(layer.pre_ff_layernorm(hidden_states))
        return output


class AttachedZambaMambaMixer(Mamba1Mixer, ZambaMambaMixer):
    """Zamba's: each head has its own B and C, and its own projections to them and to dt."""

    @property
    def sizes(self) -> SelectiveScanSizes:
        """The layer's numbers."""
        layer: Any = self
        return SelectiveScanSizes(
            channels=layer.intermediate_size,
            groups=layer.n_mamba_heads,
            state_size=layer.ssm_state_size,
            kernel=layer.conv_kernel_size,
        )

    def _split(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        inputs, gate = projected.unflatten(-1, (-1, 2)).unbind(-1)
        return inputs, gate

    def _projected(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        layer: Any = self
        by_head = u.unflatten(-1, (layer.n_mamba_heads, -1))
        sizes = [layer.time_step_rank, layer.ssm_state_size, layer.ssm_state_size]
        dt, B, C = torch.einsum("blhd,hrd->blhr", by_head, layer.x_proj_weight).split(sizes, dim=-1)
        dt = torch.einsum("blhr,hdr->blhd", dt, layer.dt_proj_weight) + layer.dt_proj_bias
        return F.softplus(dt.to(_wide(dt))).flatten(2), B, C


def _wide(tensor: Tensor) -> torch.dtype:
    """What steps, skip and gate are computed in."""
    return torch.promote_types(tensor.dtype, torch.float32)


LAYERS = (
    AttachedJambaMambaMixer,
    AttachedJambaMambaDecoderLayer,
    AttachedZambaMambaMixer,
)
