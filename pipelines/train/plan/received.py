"""What the workers of a context-parallel group send each other, remembered and as `espan plan` prints it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipelines.models.configuration import Described
from pipelines.system.machine import bytes_text
from pipelines.train.plan.sharding import row_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from pipelines.recipe.keys.train import TrainKeys


def row_shape(stage: TrainKeys, sequence_length: int, packed: bool) -> dict[str, Any]:
    """Returns the fields of the `se_model.parallel.formula.Share` that a worker holds of a micro-batch."""
    return {
        "ranks": stage.context_parallel,
        "rows": 1 if packed else stage.micro_batch_rows,
        "tokens": row_tokens(stage, sequence_length, packed),
        "itemsize": 2 if stage.precision == "bf16" else 4,
        "packed": packed,
    }


def received(stage: TrainKeys, model: Described, shape: dict[str, Any], micro_batches: int) -> dict[str, int]:
    """Returns how many bytes one worker receives in a step, as `pipelines.train.plan.exchange.exchanged`."""

    def count(configuration: PreTrainedConfig) -> dict[str, int]:
        from pipelines.train.plan.exchange import exchanged
        from se_model.parallel.formula import Share

        return exchanged(stage, configuration, Share(**shape), micro_batches)

    keys = {
        "attention": stage.attention.model_dump(mode="json"),
        "activation_checkpointing": stage.activation_checkpointing,
        "shape": shape,
        "micro_batches": micro_batches,
    }
    volumes: dict[str, int] = model.remembered("exchange", keys, count)
    return volumes


def exchange_text(volumes: dict[str, int]) -> str:
    """Returns the volumes as `espan plan` prints them."""
    parts = ", ".join(f"{name} {bytes_text(count)}" for name, count in volumes.items())
    return f"up to {bytes_text(sum(volumes.values()))} received by a worker in a step: {parts}"
