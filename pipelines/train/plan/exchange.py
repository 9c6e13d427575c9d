"""Counts what the workers of a context-parallel group send each other in a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

<<<<<<< HEAD:pipelines/train/plan/exchange.py
from pipelines.models.fitting import attention_config
from pipelines.recipe.keys.attention import NoMemorySection, SpanSection, WindowSection
from pipelines.train.plan.architecture import skeleton
from se_model.attach import attention_layers
from se_model.attach.state_space import ShardedMixer
from se_model.parallel.formula import (
    Heads,
    Share,
    Volume,
    convolution,
    full_attention,
    span_attention,
    state_space,
    window_attention,
)
=======
from pipelines.train.architecture import skeleton
from se_model.attach import layer_exchanges
from se_model.parallel.formula import Share
from se_model.parallel.volumes import PURPOSES
>>>>>>> f5dcf45 (Layers say what they exchange under context parallelism, one path for all models):pipelines/train/exchange.py

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from pipelines.recipe.keys.train import TrainKeys


def exchanged(
    stage: TrainKeys, configuration: PreTrainedConfig, share: Share, micro_batches: int
) -> dict[str, int]:
    """Returns how many bytes one worker receives in a step from its group, at most, by what they are for.

    Args:
        stage: the keys.
        configuration: the model's.
        share: what a worker holds of a micro-batch.
        micro_batches: how many it runs in a step.
    """
    # Activation checkpointing runs the layers, and with them their exchanges, once more in the backward pass.
    forwards = 2 if stage.activation_checkpointing else 1
<<<<<<< HEAD:pipelines/train/plan/exchange.py

    def step(layer: Volume, layers: int) -> int:
        return micro_batches * layers * (forwards * layer.forward + layer.backward)

    heads = _heads(configuration)
    attention = _attention(stage, share, heads)
    if configuration.model_type != "mamba2_hybrid":
        model = skeleton(configuration, attention_config(stage.attention, 0))
        mixers: list[Any] = [module for module in model.modules() if isinstance(module, ShardedMixer)]
        return {
            "attention": step(attention, len(attention_layers(model))),
            "convolutions": sum(
                step(convolution(share, channels=mixer.conv_dim, kernel=mixer.conv_kernel_size), 1)
                for mixer in mixers
            ),
            "state-space layers": sum(
                step(
                    state_space(
                        share,
                        heads=mixer.num_heads,
                        head_size=mixer.head_dim,
                        state_size=mixer.ssm_state_size,
                    ),
                    1,
                )
                for mixer in mixers
            ),
        }
    attending = len(configuration.attn_layer_indices)
    others = configuration.num_hidden_layers - attending
    state_width = configuration.n_groups * configuration.state_size
    mixing = convolution(
        share, channels=configuration.inner_size + 2 * state_width, kernel=configuration.conv_kernel
    )
    attended = convolution(
        share,
        channels=(heads.query + 2 * heads.key_value) * heads.size,
        kernel=configuration.attention_conv_kernel,
    )
    states = state_space(
        share,
        heads=configuration.mamba_num_heads,
        head_size=configuration.mamba_head_dim,
        state_size=configuration.state_size,
    )
    return {
        "attention": step(attention, attending),
        "convolutions": step(mixing, others) + step(attended, attending),
        "state-space layers": step(states, others),
    }


def _heads(configuration: PreTrainedConfig) -> Heads:
    query = configuration.num_attention_heads
    size = getattr(configuration, "head_dim", None) or configuration.hidden_size // query
    return Heads(query, getattr(configuration, "num_key_value_heads", None) or query, size)


def _attention(stage: TrainKeys, share: Share, heads: Heads) -> Volume:
    attention = stage.attention
    if isinstance(attention, WindowSection):
        return window_attention(share, heads, attention.window)
    if isinstance(attention, NoMemorySection):
        # Of any chunk as much as may lie on the rank before, whether documents begin there or not.
        return window_attention(share, heads, max(attention.chunk_sizes))
    if isinstance(attention, SpanSection):
        refresh = None
        if attention.selection == "causal":
            refresh = attention.refresh or attention.block_size
        return _largest(
            [
                span_attention(
                    share,
                    heads,
                    chunk_size=size,
                    block_size=attention.block_size,
                    top_k=attention.top_k,
                    summary=attention.summary,
                    refresh=refresh,
                )
                for size in attention.chunk_sizes
            ]
        )
    return full_attention(share, heads)


def _largest(volumes: list[Volume]) -> Volume:
    return max(volumes, key=lambda each: each.total)
=======
    received = dict.fromkeys(PURPOSES, 0)
    for each in layer_exchanges(skeleton(configuration, stage.attention.build(seed=0)), share):
        volume = each.volume
        received[each.purpose] += micro_batches * (forwards * volume.forward + volume.backward)
    return received
>>>>>>> f5dcf45 (Layers say what they exchange under context parallelism, one path for all models):pipelines/train/exchange.py
