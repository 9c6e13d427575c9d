"""A worker's memory, counted: the stage's model run without memory, and what the engine holds beside it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from pipelines.errors import EspanError, InvalidKeyError, one_line
from pipelines.models.configuration import Described
from pipelines.models.fitting import attention_config, hylora_config
from pipelines.train.plan.memory.batch import Batch
from pipelines.train.plan.memory.engine import Sharing, Weights, fullest
from pipelines.train.plan.memory.parts import MemoryParts
from pipelines.train.plan.memory.timeline import Stretch, moments
from pipelines.train.plan.received import received, row_shape
from pipelines.train.plan.sharding import row_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from pipelines.recipe.keys.train import TrainKeys
    from pipelines.train.plan.memory.passes import Skeleton

_WIDEST = 4  # bytes of a number in a file of weights
PROCESS_BYTES = 600 << 20
"""Python with torch, Ray, transformers and DeepSpeed, before any model."""


class UncountableError(EspanError):
    """The model does not run without memory, so its needs cannot be counted."""


@dataclass(frozen=True)
class Rows:
    """What the data is made of.

    Attributes:
        length: tokens in a row.
        packed: rows hold documents that must not see each other.
    """

    length: int
    packed: bool


class Counted:
    """A stage's model, and the rows that it trains on; counts are kept, so that variants cost little.

    Args:
        model: what is known of the model, or its configuration.
        rows: what the data is made of.
    """

    def __init__(self, model: Described | PreTrainedConfig, rows: Rows) -> None:
        self.model = model if isinstance(model, Described) else Described.of(model)
        self.rows = rows
        self._skeletons: dict[str, Skeleton] = {}
        self._runs: dict[str, tuple[Weights, list[Stretch]]] = {}

    def parts(self, stage: TrainKeys, *, gpu: bool) -> MemoryParts:
        """Returns the peak memory of one worker of `stage`, on a GPU or in main memory.

        Raises:
            InvalidKeyError: the model cannot run such rows, or cannot be trained this way.
            UncountableError: it does not run without memory.
        """
        try:
            weights, stretches = self.pass_of(stage, gpu=gpu)
        except EspanError:
            raise
        except ValueError as error:
            raise InvalidKeyError("model", one_line(error)) from error
        except Exception as error:  # whatever an architecture does with tensors that have no values
            what = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            raise UncountableError(f"{self.model.model_type} does not run without memory ({what})") from error
        sharing = Sharing(stage.deepspeed.zero, stage.workers, self._micro_batches(stage) > 1, gpu)
        parts = fullest(weights, sharing, moments(stretches))
        return replace(
            parts,
            exchange=self._exchange(stage),
            process=0 if gpu else PROCESS_BYTES,
        )

    def pass_of(self, stage: TrainKeys, *, gpu: bool) -> tuple[Weights, list[Stretch]]:
        """Returns the model's weights, and the memory of a forward and backward pass.

        Raises:
            ValueError: as the model's own forward.
        """
        keys = {
            "batch": asdict(self._batch(stage)),
            "checkpointing": stage.activation_checkpointing,
            "gpu": gpu,
            **_skeleton_keys(stage),
        }
        name = json.dumps(keys, sort_keys=True)
        if name not in self._runs:
            weights, stretches = self.model.remembered(
                "pass", keys, lambda found: self._run(found, stage, gpu)
            )
            self._runs[name] = Weights.of(weights), [Stretch(**each) for each in stretches]
        return self._runs[name]

    def loading_bytes(self, stage: TrainKeys) -> int:
        """Returns what a worker on a GPU holds in main memory while it loads the model's weights.

        They go to the GPU, whole or the worker's share, as they are read: one tensor is here at a time.
        """
        largest = self.model.remembered(
            "largest", _skeleton_keys(stage), lambda found: self._skeleton(found, stage).weights.largest
        )
        return PROCESS_BYTES + int(largest) * _WIDEST

    def _run(self, configuration: PreTrainedConfig, stage: TrainKeys, gpu: bool) -> list[Any]:
        skeleton = self._skeleton(configuration, stage)
        stretches = skeleton.run(self._batch(stage), checkpointing=stage.activation_checkpointing, gpu=gpu)
        return [asdict(skeleton.weights), [asdict(each) for each in stretches]]

    def _batch(self, stage: TrainKeys) -> Batch:
        tokens = row_tokens(stage, self.rows.length, self.rows.packed) // stage.context_parallel
        return Batch(1 if self.rows.packed else stage.micro_batch_rows, tokens, self.rows.packed)

    def _micro_batches(self, stage: TrainKeys) -> int:
        rows = stage.tokens_per_step // self.rows.length
        return rows // (stage.groups * stage.micro_batch_rows)

    def _exchange(self, stage: TrainKeys) -> int:
        """Bytes of what came from the workers that share a row, kept for the backward pass."""
        if stage.context_parallel == 1:
            return 0
        once = stage.model_copy(update={"activation_checkpointing": False})
        shape = row_shape(stage, self.rows.length, self.rows.packed)
        # Forward and backward passes receive about as much; only what the first brings stays.
        both = sum(received(once, self.model, shape, 1).values()) // 2
        if not stage.activation_checkpointing:
            return both
        return both // int(self.model.remembered("layers", None, lambda found: found.num_hidden_layers))

    def _skeleton(self, configuration: PreTrainedConfig, stage: TrainKeys) -> Skeleton:
        import torch

        from pipelines.train.plan.memory.passes import Skeleton

        name = json.dumps(_skeleton_keys(stage), sort_keys=True)
        if name not in self._skeletons:
            self._skeletons[name] = Skeleton(
                configuration,
                attention_config(stage.attention, 0),
                None if stage.hylora is None else hylora_config(stage.hylora),
                torch.bfloat16 if stage.precision == "bf16" else torch.float32,
            )
        return self._skeletons[name]


def _skeleton_keys(stage: TrainKeys) -> dict[str, Any]:
    """Returns all of the keys that `Counted._skeleton` looks at."""
    return {
        "attention": stage.attention.model_dump(mode="json"),
        "hylora": None if stage.hylora is None else stage.hylora.model_dump(mode="json"),
        "precision": stage.precision,
    }


_MODELS_KEPT = 4
_counted: dict[str, Counted] = {}


def counted_model(model: Described | PreTrainedConfig, rows: Rows) -> Counted:
    """Returns the counts of a model on such rows, always the same: checking and planning share them."""
    contents = model.contents if isinstance(model, Described) else model.to_json_string()
    try:
        key = json.dumps([contents, asdict(rows)])
    except TypeError:  # keys of a new model that are no JSON
        return Counted(model, rows)
    if key not in _counted:
        if len(_counted) == _MODELS_KEPT:
            _counted.clear()
        _counted[key] = Counted(model, rows)
    return _counted[key]
