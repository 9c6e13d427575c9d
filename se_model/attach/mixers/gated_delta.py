"""The gated delta layers of transformers: one decay for each head (Qwen, OLMo), or for each channel (KDA)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.activations import ACT2FN
from transformers.models.bailing_hybrid.modeling_bailing_hybrid import BailingHybridDeltaAttention
from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearDeltaAttention
from transformers.models.olmo_hybrid.modeling_olmo_hybrid import OlmoHybridGatedDeltaNet
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet
from transformers.models.qwen3_5_moe.modeling_qwen3_5_moe import Qwen3_5MoeGatedDeltaNet
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from se_model.attach.mixers.mixer import AttachedMixer
from se_model.parallel.formula import Share
from se_model.parallel.volumes import Exchanged, delta_rule_exchange
from se_model.recurrence import CONVOLUTION, GATED_DELTA, Carried, GatedDeltaSizes, gated_delta_rule
from se_model.span.documents import DocumentBounds

CHUNK = 64
"""Tokens that act on each other directly: what transformers takes."""


class Projected(NamedTuple):
    """What a layer makes of its input: q, k and v side by side, the rule's decays and rates, the gate.

    Attributes:
        inputs: [B, L, channels].
        log_decay: [B, L, H], or [B, L, H, K] for each channel.
        beta: [B, L, H].
        gate: [B, L, H V].
    """

    inputs: Tensor
    log_decay: Tensor
    beta: Tensor
    gate: Tensor


class GatedDeltaMixer(AttachedMixer):
    """The gated delta rule, from the parts that the layers of Qwen and OLMo name alike."""

    recurrences = (GATED_DELTA, CONVOLUTION)

    @property
    def sizes(self) -> GatedDeltaSizes:
        """The layer's numbers."""
        layer: Any = self
        return GatedDeltaSizes(
            key_heads=layer.num_k_heads,
            heads=layer.num_v_heads,
            key_size=layer.head_k_dim,
            value_size=layer.head_v_dim,
            kernel=layer.conv_kernel_size,
            chunk_size=CHUNK,
        )

    def exchanged(self, share: Share) -> Exchanged:
        """Inputs of the convolution, states and transitions."""
        return delta_rule_exchange(self.sizes, share)

    def mix(self, hidden: Tensor, carried: Carried, documents: DocumentBounds | None) -> Tensor:
        """Projections, convolution and recurrence, norm and gate, projection."""
        layer: Any = self
        inputs, log_decay, beta, gate = self._projected(hidden)
        # Decays and rates are float32 or better, as in the layer itself.
        dtype = torch.promote_types(inputs.dtype, torch.float32)

        def convolve(inputs: Tensor, before: Tensor | None) -> Tensor:
            convolved: Tensor = ACT2FN[layer.activation](layer.conv1d(inputs, before, documents))
            return convolved

        o = gated_delta_rule(
            inputs,
            log_decay.to(dtype),
            beta.to(dtype),
            sizes=self.sizes,
            convolve=convolve,
            carried=carried,
            documents=documents,
            backend=self.recurrence_backend,
        )
        return self._output(o, gate.view_as(o))

    def _projected(self, hidden: Tensor) -> Projected:
        raise NotImplementedError

    def _output(self, o: Tensor, gate: Tensor) -> Tensor:
        """Norm, gate and projection of o [B, L, H, V]."""
        layer: Any = self
        output: Tensor = layer.out_proj(layer.norm(o, gate).flatten(-2))
        return output

    def _log_decay(self, steps: Tensor) -> Tensor:
        """- exp(A_log) softplus(steps + dt_bias), for steps [B, L, H]."""
        layer: Any = self
        dtype = torch.promote_types(steps.dtype, torch.float32)
        log_decay: Tensor = -layer.A_log.to(dtype).exp() * F.softplus(steps.to(dtype) + layer.dt_bias)
        return log_decay


class AttachedQwen3NextGatedDeltaNet(GatedDeltaMixer, Qwen3NextGatedDeltaNet):
    """Qwen3-Next's, whose projections hold a part for each head of keys."""

    def _projected(self, hidden: Tensor) -> Projected:
        layer: Any = self
        projected = layer.in_proj_qkvz(hidden), layer.in_proj_ba(hidden)
        q, k, v, gate, b, a = layer.fix_query_key_value_ordering(*projected)
        inputs = torch.cat([part.flatten(2) for part in (q, k, v)], dim=-1)
        return Projected(inputs, self._log_decay(a), b.sigmoid(), gate)


class _Qwen3_5Mixer(GatedDeltaMixer):
    def _projected(self, hidden: Tensor) -> Projected:
        layer: Any = self
        log_decay, beta = self._log_decay(layer.in_proj_a(hidden)), layer.in_proj_b(hidden).sigmoid()
        return Projected(layer.in_proj_qkv(hidden), log_decay, beta, layer.in_proj_z(hidden))


class AttachedQwen3_5GatedDeltaNet(_Qwen3_5Mixer, Qwen3_5GatedDeltaNet):
    """Qwen3.5's."""


class AttachedQwen3_5MoeGatedDeltaNet(_Qwen3_5Mixer, Qwen3_5MoeGatedDeltaNet):
    """That of Qwen3.5 with experts."""


class _SeparateProjections(GatedDeltaMixer):
    """Queries, keys and values by a projection each."""

    def _inputs(self, hidden: Tensor) -> Tensor:
        layer: Any = self
        return torch.cat([layer.q_proj(hidden), layer.k_proj(hidden), layer.v_proj(hidden)], dim=-1)

    def _output(self, o: Tensor, gate: Tensor) -> Tensor:
        layer: Any = self
        output: Tensor = layer.o_proj(layer.o_norm(o, gate).flatten(-2))
        return output


class AttachedOlmoHybridGatedDeltaNet(_SeparateProjections, OlmoHybridGatedDeltaNet):
    """OLMo-Hybrid's, whose rates may go up to 2."""

    def _projected(self, hidden: Tensor) -> Projected:
        layer: Any = self
        beta = layer.b_proj(hidden).sigmoid()
        if layer.allow_neg_eigval:
            beta = 2 * beta
        log_decay = self._log_decay(layer.a_proj(hidden))
        return Projected(self._inputs(hidden), log_decay, beta, layer.g_proj(hidden))


class _KimiDeltaMixer(_SeparateProjections):
    """Kimi delta attention: as many heads of keys as of values, and a decay for each channel."""

    @property
    def sizes(self) -> GatedDeltaSizes:
        layer: Any = self
        return GatedDeltaSizes(
            key_heads=layer.num_heads,
            heads=layer.num_heads,
            key_size=layer.head_dim,
            value_size=layer.head_dim,
            kernel=layer.conv_kernel_size,
            chunk_size=CHUNK,
        )

    def _projected(self, hidden: Tensor) -> Projected:
        layer: Any = self
        return Projected(
            self._inputs(hidden),
            layer.forget_gate(hidden),
            layer.b_proj(hidden).sigmoid(),
            self._gate(hidden),
        )

    def _gate(self, hidden: Tensor) -> Tensor:
        raise NotImplementedError


class AttachedKimiLinearDeltaAttention(_KimiDeltaMixer, KimiLinearDeltaAttention):
    """Kimi-Linear's."""

    def _gate(self, hidden: Tensor) -> Tensor:
        layer: Any = self
        gate: Tensor = layer.g_b_proj(layer.g_a_proj(hidden))
        return gate


class AttachedBailingHybridDeltaAttention(_KimiDeltaMixer, BailingHybridDeltaAttention):
    """Bailing's."""

    def _gate(self, hidden: Tensor) -> Tensor:
        layer: Any = self
        gate: Tensor = layer.g_proj(hidden)
        return gate


LAYERS = (
    AttachedQwen3NextGatedDeltaNet,
    AttachedQwen3_5GatedDeltaNet,
    AttachedQwen3_5MoeGatedDeltaNet,
    AttachedOlmoHybridGatedDeltaNet,
    AttachedKimiLinearDeltaAttention,
    AttachedBailingHybridDeltaAttention,
)
