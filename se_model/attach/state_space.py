"""Mamba-2 layers of transformers (5.23) with their row over several ranks.

Five architectures share one Mamba-2 layer, except for what `ShardedFalconH1Mixer` overrides. `attach` gives
these layers a class of this file. Without a shard it is the layer itself; with one it computes, from the
layer's own modules and parameters, what the layer would compute for these tokens on the whole row. Names,
parameters and whatever wraps the modules inside stay as they are.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.bamba.modeling_bamba import BambaMixer
from transformers.models.falcon_h1.modeling_falcon_h1 import FalconH1Mixer
from transformers.models.granitemoehybrid.modeling_granitemoehybrid import GraniteMoeHybridMambaLayer
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHMamba2Mixer
from transformers.models.zamba2.modeling_zamba2 import Zamba2MambaMixer

from se_model.attach.marks import MARK, Attachment
from se_model.hybrid.past import past_of
from se_model.parallel import SequenceShard
from se_model.parallel.formula import Share
from se_model.parallel.volumes import Exchanged, mamba2_exchange
from se_model.recurrence import Mamba2Sizes, mamba2


class ShardedMixer(nn.Module):
    """What the classes below add to the layer that transformers builds."""

    def forward(
        self,
        hidden_states: Tensor,
        cache_params: Any = None,
        attention_mask: Tensor | None = None,
        shard: SequenceShard | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """hidden_states: [B, L, E], with a shard its own n tokens of each row. Returns the same shape.

        Raises:
            ValueError: for a cache or padding beside a shard, and where the model was given a shard
                that does not arrive here.
        """
        if shard is None:
            attachment: Attachment = getattr(self, MARK)
            attachment.require_whole_rows(self)
            output: Tensor = super().forward(
                hidden_states, cache_params=cache_params, attention_mask=attention_mask, **kwargs
            )
            return output
        if cache_params is not None or attention_mask is not None:
            raise ValueError(
                f"{type(self).__name__} is given a shard: its row has no padding, and it keeps no cache "
                "(pass use_cache=False)"
            )
        return self._over_ranks(hidden_states, shard)

    @property
    def sizes(self) -> Mamba2Sizes:
        """The layer's numbers."""
        layer: Any = self
        return Mamba2Sizes(
            heads=layer.num_heads,
            head_size=layer.head_dim,
            groups=layer.n_groups,
            state_size=layer.ssm_state_size,
            kernel=layer.conv_kernel_size,
            chunk_size=layer.chunk_size,
        )

    def exchanged(self, share: Share) -> Exchanged:
        """What a rank receives for this layer where a row is shared."""
        return mamba2_exchange(self.sizes, share)

    def _over_ranks(self, hidden: Tensor, shard: SequenceShard) -> Tensor:
        layer: Any = self
        sizes = self.sizes
        gate, inputs, dt = self._projected(hidden).split([sizes.inner, sizes.channels, sizes.heads], dim=-1)
        # Between convolution and output projection all is float32 or better, as in the layer itself.
        dtype = torch.promote_types(inputs.dtype, torch.float32)

        def convolve(inputs: Tensor, before: Tensor | None) -> Tensor:
            assert before is not None, "a rank is always handed what comes before its tokens"
            convolved: Tensor = layer.act(self._convolved(inputs, before, shard.local_bounds))
            return convolved.to(dtype)

        y = mamba2(
            inputs,
            F.softplus(dt.to(dtype) + layer.dt_bias).clamp(*layer.time_step_limit),
            A_log=layer.A_log,
            D=layer.D,
            sizes=sizes,
            convolve=convolve,
            carried=past_of(None, shard, layer.layer_idx),
            documents=shard.documents,
        )
        output: Tensor = layer.out_proj(self._gated(y, gate).to(hidden.dtype))
        return output

    def _projected(self, hidden: Tensor) -> Tensor:
        layer: Any = self
        projected: Tensor = layer.in_proj(hidden)
        return projected

    def _convolved(self, inputs: Tensor, before: Tensor, bounds: tuple[int, ...]) -> Tensor:
        """[B, n, C] -> [B, n, C]. Before each piece of a document stands what the convolution sees there.

        The convolution is called as the module that it is: so an adapter's copy computes, and ZeRO-3 gathers.
        """
        layer: Any = self
        context = before.shape[1]
        rows, lengths = [], []
        for start, end in pairwise(bounds):
            rows += [before if start == 0 else torch.zeros_like(before), inputs[:, start:end]]
            lengths += [context, end - start]
        padded = torch.cat(rows, dim=1).to(layer.conv1d.weight.dtype)
        # Its own padding gives as many more at the end.
        convolved = layer.conv1d(padded.transpose(1, 2)).transpose(1, 2).to(inputs.dtype)
        return torch.cat(convolved.split([*lengths, context], dim=1)[1::2], dim=1)

    def _gated(self, y: Tensor, gate: Tensor) -> Tensor:
        layer: Any = self
        gated: Tensor = layer.norm(y, gate)
        return gated


class ShardedBambaMixer(ShardedMixer, BambaMixer):
    """Bamba's."""


class ShardedGraniteMoeHybridMambaLayer(ShardedMixer, GraniteMoeHybridMambaLayer):
    """Granite 4's."""


class ShardedNemotronHMamba2Mixer(ShardedMixer, NemotronHMamba2Mixer):
    """Nemotron-H's."""


class ShardedZamba2MambaMixer(ShardedMixer, Zamba2MambaMixer):
    """Zamba2's."""


class ShardedFalconH1Mixer(ShardedMixer, FalconH1Mixer):
    """Falcon-H1's, which multiplies before and after its projection, and may have no norm."""

    def _projected(self, hidden: Tensor) -> Tensor:
        layer: Any = self
        projected: Tensor = layer.in_proj(hidden * layer.ssm_in_multiplier) * layer.mup_vector
        return projected

    def _gated(self, y: Tensor, gate: Tensor) -> Tensor:
        return super()._gated(y, gate) if self.mamba_rms_norm else y * F.silu(gate)


_SHARDED: dict[type[nn.Module], type[ShardedMixer]] = {
    BambaMixer: ShardedBambaMixer,
    FalconH1Mixer: ShardedFalconH1Mixer,
    GraniteMoeHybridMambaLayer: ShardedGraniteMoeHybridMambaLayer,
    NemotronHMamba2Mixer: ShardedNemotronHMamba2Mixer,
    Zamba2MambaMixer: ShardedZamba2MambaMixer,
}
_ORIGINAL: dict[type[nn.Module], type[nn.Module]] = {
    sharded: original for original, sharded in _SHARDED.items()
}


def let_mixers_shard(model: nn.Module, attachment: Attachment) -> None:
    """Make the Mamba-2 layers of `model` take a ``shard``; those of other classes stay as they are.

    A class derived from a known one is another: its forward may be, too.
    """
    for module in model.modules():
        if type(module) in _SHARDED:
            module.__class__ = _SHARDED[type(module)]
        if type(module) in _ORIGINAL:
            setattr(module, MARK, attachment)


def restore_mixers(model: nn.Module) -> None:
    """Undo `let_mixers_shard`."""
    for module in model.modules():
        if type(module) in _ORIGINAL:
            delattr(module, MARK)
            module.__class__ = _ORIGINAL[type(module)]
