"""Counts what the workers of a context-parallel group send each other in a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.models.architecture import attached_skeleton
from pipelines.models.fitting import attention_config
from se_model.attach import layer_exchanges
from se_model.parallel.formula import Share
from se_model.parallel.volumes import PURPOSES

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
    received = dict.fromkeys(PURPOSES, 0)
    for each in layer_exchanges(
        attached_skeleton(configuration, attention_config(stage.attention, 0)), share
    ):
        volume = each.volume
        received[each.purpose] += micro_batches * (forwards * volume.forward + volume.backward)
    return received
