"""The configuration of a Mamba-2-Hybrid: Mamba-2 layers with a few attention layers among them."""

from __future__ import annotations

import difflib
import os
from dataclasses import fields
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig

from se_model.hybrid.published import is_published_config, translate_published_config


class Mamba2HybridConfig(PreTrainedConfig):
    """Describes a model of the state-spaces/mamba2attn family; the defaults are mamba2attn-2.7b.

    Every layer is ``x + mixer(norm(x))`` with a Mamba-2 mixer, or an attention mixer where
    ``attn_layer_indices`` says so; there are no MLPs. An unknown key is refused.

    Sizes:
        vocab_size: rows of the embedding, those that pad it included.
        hidden_size, num_hidden_layers, attn_layer_indices: width, depth, and which layers attend.
    Mamba-2 layers (the inner width is ``expand * hidden_size``, cut into heads of ``mamba_head_dim``):
        state_size, n_groups: N, and how many groups of heads share one B and C.
        conv_kernel, conv_bias: width of the causal convolution over x, B, C.
        mamba_proj_bias: biases of in_proj and out_proj.
        time_step_min, time_step_max, time_step_floor, A_initial_range: initialisation of dt_bias and A_log.
        time_step_limit: bounds on the step size after softplus.
        ssm_chunk_size: tokens that the chunked form handles at once; changes speed and memory only.
    Attention layers:
        num_attention_heads, num_key_value_heads (0: as many), head_dim (0: hidden_size / heads).
        attention_conv_kernel: width of the causal convolution over q, k, v before RoPE; 0: none.
        rotary_dim, rope_theta: RoPE on the first ``rotary_dim`` dimensions of a head (0: none), its halves
            not interleaved.
        qkv_bias, attention_out_bias: biases of in_proj and out_proj.
    Elsewhere:
        residual_in_fp32: the residual stream is held in float32 whatever the weights' dtype.
        rescale_prenorm_residual: initial out_proj weights are divided by sqrt(num_hidden_layers).

    Raises:
        ValueError: on an unknown key or sizes that do not fit together.
    """

    model_type = "mamba2_hybrid"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - transformers adds it to a list

    vocab_size: int = 50288
    hidden_size: int = 2560
    num_hidden_layers: int = 64
    attn_layer_indices: list[int] | tuple[int, ...] = (9, 18, 27, 36, 45, 56)

    state_size: int = 128
    expand: int = 2
    mamba_head_dim: int = 64
    n_groups: int = 1
    conv_kernel: int = 4
    conv_bias: bool = True
    mamba_proj_bias: bool = False
    time_step_min: float = 0.001
    time_step_max: float = 0.1
    time_step_floor: float = 1e-4
    time_step_limit: list[float] | tuple[float, float] | None = None
    A_initial_range: list[float] | tuple[float, float] = (1.0, 16.0)
    ssm_chunk_size: int = 64

    num_attention_heads: int = 30
    num_key_value_heads: int = 0
    head_dim: int = 128
    attention_conv_kernel: int = 4
    rotary_dim: int = 64
    rope_theta: float = 10000.0
    qkv_bias: bool = False
    attention_out_bias: bool = False

    rms_norm_eps: float = 1e-5
    residual_in_fp32: bool = True
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    rescale_prenorm_residual: bool = True
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        _refuse_unknown(kwargs, {field.name for field in fields(self)})
        self.attn_layer_indices = sorted(self.attn_layer_indices)
        if not self.num_key_value_heads:
            self.num_key_value_heads = self.num_attention_heads
        if not self.head_dim:
            self.head_dim = self.hidden_size // max(self.num_attention_heads, 1)
        super().__post_init__(**kwargs)
        self._check_positive()
        self._check_layers()
        self._check_heads()

    @property
    def inner_size(self) -> int:
        """Width of x and z inside a Mamba-2 layer."""
        return self.expand * self.hidden_size

    @property
    def mamba_num_heads(self) -> int:
        """Heads of a Mamba-2 layer."""
        return self.inner_size // self.mamba_head_dim

    @property
    def layer_types(self) -> list[str]:
        """What each layer keeps while decoding, in transformers' words: states, keys and values, or both."""
        attention = "hybrid" if self.attention_conv_kernel else "full_attention"
        chosen = set(self.attn_layer_indices)
        return [attention if i in chosen else "linear_attention" for i in range(self.num_hidden_layers)]

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in transformers; a published state-spaces config.json arrives translated."""
        raw, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return (translate_published_config(raw) if is_published_config(raw) else raw), kwargs

    def _check_positive(self) -> None:
        for name in (
            "vocab_size hidden_size num_hidden_layers state_size expand n_groups "
            "mamba_head_dim ssm_chunk_size num_attention_heads num_key_value_heads head_dim rope_theta "
            "rms_norm_eps"
        ).split():
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")
        if self.conv_kernel < 2:
            raise ValueError(f"conv_kernel must be at least 2; got {self.conv_kernel}")
        if self.attention_conv_kernel < 0 or self.attention_conv_kernel == 1:
            raise ValueError(
                f"attention_conv_kernel must be 0 or at least 2; got {self.attention_conv_kernel}"
            )

    def _check_layers(self) -> None:
        indices = list(self.attn_layer_indices)
        if not indices:
            raise ValueError("attn_layer_indices is empty: a hybrid has at least one attention layer")
        if len(set(indices)) != len(indices) or indices[0] < 0 or indices[-1] >= self.num_hidden_layers:
            raise ValueError(
                f"attn_layer_indices must be distinct and within 0..{self.num_hidden_layers - 1}; "
                f"got {indices}"
            )

    def _check_heads(self) -> None:
        if self.inner_size % self.mamba_head_dim or self.mamba_num_heads % self.n_groups:
            raise ValueError(
                f"mamba_head_dim {self.mamba_head_dim} must divide expand * hidden_size = {self.inner_size}, "
                f"and n_groups {self.n_groups} the number of heads that gives"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads {self.num_key_value_heads} must divide num_attention_heads "
                f"{self.num_attention_heads}"
            )
        if self.rotary_dim % 2 or not 0 <= self.rotary_dim <= self.head_dim:
            raise ValueError(f"rotary_dim must be even and within 0..{self.head_dim}; got {self.rotary_dim}")


# What PreTrainedConfig takes besides its fields, and what its to_dict writes into config.json.
_INHERITED_KEYS = frozenset(
    "model_type torch_dtype num_labels name_or_path attn_implementation experts_implementation "
    "output_attentions per_layer_config quantization_config auto_map".split()
)


def _refuse_unknown(given: dict[str, Any], known: set[str]) -> None:
    accepted = known | _INHERITED_KEYS | set(GenerationConfig().to_dict())
    for key in given:
        if key in accepted or key.startswith("_"):
            continue
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"Mamba2HybridConfig has no key {key!r}{hint}")
