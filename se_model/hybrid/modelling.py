"""Mamba-2-Hybrid as a transformers model."""

from __future__ import annotations

import math
import os
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from se_model.hybrid.attention import AttentionMixer
from se_model.hybrid.configuration import Mamba2HybridConfig
from se_model.hybrid.inputs import check_inputs, padding_of, positions_of
from se_model.hybrid.loading import is_published, load_published, refuse
from se_model.hybrid.mamba2 import Mamba2Mixer
from se_model.hybrid.normalization import GatedRMSNorm, RMSNorm
from se_model.hybrid.past import past_of
from se_model.hybrid.projection import ResidualProjection
from se_model.hybrid.rotary import rotary_angles
from se_model.loss import chunked_cross_entropy, shift_labels
from se_model.parallel import SequenceShard
from se_model.recurrence import CausalConv1d
from se_model.span.documents import DocumentBounds, Documents


class HybridBlock(GradientCheckpointingLayer):
    """x + mixer(norm(x)), on a residual stream that may be wider than the weights' dtype."""

    def __init__(self, config: Mamba2HybridConfig, layer_idx: int) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.is_attention = layer_idx in config.attn_layer_indices
        self.mixer = (AttentionMixer if self.is_attention else Mamba2Mixer)(config, layer_idx)

    def forward(
        self,
        x: Tensor,
        *,
        padding: Tensor | None = None,
        past_key_values: Cache | None = None,
        documents: DocumentBounds | None = None,
        shard: SequenceShard | None = None,
        **attention: Any,
    ) -> Tensor:
        """x: [B, L, hidden], the residual stream; ``attention`` reaches attention mixers only."""
        normed = self.norm(x)
        past = past_of(past_key_values, shard, self.mixer.layer_idx)
        if self.is_attention:
            y, _ = self.mixer(
                normed, padding=padding, past=past, documents=documents, shard=shard, **attention
            )
        else:
            y = self.mixer(normed, padding=padding, past=past, documents=documents)
        return x + y


class Mamba2HybridPreTrainedModel(PreTrainedModel):
    """What the bare model and the language model share: initialisation and abilities."""

    config: Mamba2HybridConfig
    config_class = Mamba2HybridConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _no_split_modules = ("HybridBlock",)
    _skip_keys_device_placement = ("past_key_values",)
    _supports_sdpa = True
    _supports_attention_backend = True
    _is_stateful = True
    _can_record_outputs = {  # noqa: RUF012 - transformers reads it from the class
        "hidden_states": HybridBlock,
        "attentions": OutputRecorder(AttentionMixer, index=1),
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # As mamba_ssm 2.3.2 (models/mixer_seq_simple.py): torch's own initialisation of linear and
        # convolution layers, out_proj scaled down with depth, a normal embedding. transformers' init skips
        # what was loaded, and modules without parameters of their own: no attention mixer arrives here.
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, RMSNorm | GatedRMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, nn.Linear):
            rescaled = self.config.rescale_prenorm_residual and isinstance(module, ResidualProjection)
            depth = self.config.num_hidden_layers if rescaled else 1
            _initialize_uniform(module.weight, fan_in=module.in_features * depth)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, CausalConv1d):
            for parameter in module.parameters():
                _initialize_uniform(parameter, fan_in=module.kernel_size[0])
        elif isinstance(module, Mamba2Mixer):
            module.initialize()


def _initialize_uniform(parameter: Tensor, fan_in: int) -> None:
    bound = 1 / math.sqrt(fan_in)
    init.uniform_(parameter, -bound, bound)


class Mamba2HybridModel(Mamba2HybridPreTrainedModel):
    """Embedding, blocks and the last norm."""

    def __init__(self, config: Mamba2HybridConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(HybridBlock(config, i) for i in range(config.num_hidden_layers))
        self.norm_f = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding."""
        self.embedding = value

    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cu_seqlens: Documents | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        shard: SequenceShard | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states after the last norm: [B, L, hidden]; arguments as in the language model's forward."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        if self.config.residual_in_fp32:
            x = x.to(torch.promote_types(x.dtype, torch.float32))

        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and cu_seqlens is None and shard is None
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        check_inputs(self.config, x.shape, attention_mask, cu_seqlens, past_key_values, shard)
        documents = None
        if shard is not None:
            documents = shard.documents
        elif cu_seqlens is not None:
            documents = DocumentBounds.of(cu_seqlens, x.shape[1], x.shape[0])
        position_ids = positions_of(x, attention_mask, position_ids, documents, past_key_values, shard)

        rotary = None
        if self.config.rotary_dim:
            rotary = rotary_angles(position_ids, self.config.rotary_dim, self.config.rope_theta, x.dtype)
        mask = None
        if documents is None and shard is None:
            mask = create_causal_mask(
                self.config, inputs_embeds=x, attention_mask=attention_mask, past_key_values=past_key_values
            )
        padding = padding_of(attention_mask, x.shape[1])
        for layer in self.layers:
            x = layer(
                x,
                padding=padding,
                past_key_values=past_key_values,
                documents=documents,
                shard=shard,
                rotary=rotary,
                attention_mask=mask,
                position_ids=position_ids,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm_f(x), past_key_values=past_key_values)


class Mamba2HybridForCausalLM(Mamba2HybridPreTrainedModel, GenerationMixin):
    """Mamba-2-Hybrid with a language-model head, by default tied to the embedding."""

    _tied_weights_keys = {"lm_head.weight": "backbone.embedding.weight"}  # noqa: RUF012 - as above

    def __init__(self, config: Mamba2HybridConfig) -> None:
        super().__init__(config)
        self.backbone = Mamba2HybridModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> Mamba2HybridForCausalLM:
        """As in transformers, but strict, and also for folders as state-spaces published them.

        Raises:
            ValueError: naming every tensor that is missing, unexpected or of another shape.
        """
        source = pretrained_model_name_or_path
        if is_published(source, kwargs):
            return load_published(cls, source, kwargs)
        wants_report = kwargs.pop("output_loading_info", False)
        tolerant = kwargs.pop("ignore_mismatched_sizes", False)
        result: Any = super().from_pretrained(
            source, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
        model, report = result
        misshapen = () if tolerant else report["mismatched_keys"]
        refuse(source, report["missing_keys"], report["unexpected_keys"], misshapen)
        return result if wants_report else model

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cu_seqlens: Documents | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
        shard: SequenceShard | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and the loss where there are labels.

        input_ids: int [B, L], or inputs_embeds: [B, L, hidden]; attention_mask: [B, past + L], 0 where a row
        is padded, on the left or the right (tokens are computed as if their row had no padding); cu_seqlens:
        [N + 1] with B = 1, the boundaries of the documents of a packed row, none of which sees another;
        position_ids: [B, L], by default counted from each row's first token, or from each document's;
        labels: [B, L], not shifted, -100 where there is none; logits_to_keep as in transformers;
        num_items_in_batch: what the sum of the token losses is divided by, if not by their number; shard:
        says that the tokens are this rank's of a longer row, and where its documents begin (then labels are
        for `se_model.loss.causal_lm_loss`). Other keyword arguments reach the attention function.

        In training mode logits are None when labels are given: the loss is computed a few tokens at a time.

        Raises:
            ValueError: on masks with holes, packed rows with a cache, a cache continued after right padding,
                a shard with any of cu_seqlens, mask, cache and labels.
        """
        if shard is not None and labels is not None:
            raise ValueError("the labels of a shard's last token lie on the next rank: use causal_lm_loss")
        outputs = self.backbone(
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cu_seqlens=cu_seqlens,
            past_key_values=past_key_values,
            use_cache=use_cache,
            shard=shard,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        loss = logits = None
        if labels is not None:
            total, count = chunked_cross_entropy(hidden, shift_labels(labels, cu_seqlens), self.lm_head)
            loss = total / (count if num_items_in_batch is None else num_items_in_batch)
        if labels is None or not self.training:
            logits = self.lm_head(slice_logits_to_keep(hidden, logits_to_keep))
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
