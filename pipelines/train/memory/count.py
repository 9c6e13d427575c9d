"""A worker's memory, counted: the stage's model run without memory, and what the engine holds beside it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pipelines.errors import EspanError, InvalidKeyError
from pipelines.train.memory.engine import Sharing, Weights, fullest
from pipelines.train.memory.parts import Parts
from pipelines.train.memory.timeline import moments
from pipelines.train.shares import row_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from pipelines.train.memory.passes import Batch, Skeleton
    from pipelines.train.memory.timeline import Stretch
    from pipelines.train.stage import TrainStage

_WIDEST = 4  # bytes of a number in a file of weights
PROCESS_BYTES = 600 << 20
"""Python with torch, Ray, transformers and DeepSpeed, before any model."""


class UncountableError(EspanError):
    """The model does not run without memory, so nothing can be said."""


@dataclass(frozen=True)
class Rows:
    """What the data is made of.

    Attributes:
        length: tokens in a row.
        packed: rows hold documents that must not see each other.
    """

    length: int
    packed: bool


@dataclass(frozen=True, eq=False)
class Counted:
    """A stage's model, and the rows that it trains on; counts are kept, so that variants cost little."""

    configuration: PreTrainedConfig
    rows: Rows

    _skeletons: dict[Hashable, Skeleton] = field(default_factory=dict)
    _runs: dict[Hashable, list[Stretch]] = field(default_factory=dict)

    def parts(self, stage: TrainStage, *, gpu: bool) -> Parts:
        """Returns what one worker of `stage` holds at its fullest, on a GPU or in main memory.

        Raises:
            InvalidKeyError: the model cannot run such rows, or not train so.
            UncountableError: it does not run without memory.
        """
        try:
            weights, stretches = self.pass_of(stage, gpu=gpu)
        except ValueError as error:
            raise InvalidKeyError("model", " ".join(str(error).split())) from error
        except Exception as error:  # whatever an architecture does with tensors that have no values
            what = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            raise UncountableError(
                f"{self.configuration.model_type} does not run without memory ({what})"
            ) from error
        sharing = Sharing(stage.deepspeed.zero, stage.workers, self._micro_batches(stage) > 1, gpu)
        parts = fullest(weights, sharing, moments(stretches))
        return replace(
            parts,
            exchange=self._exchange(stage),
            process=0 if gpu else PROCESS_BYTES,
        )

    def pass_of(self, stage: TrainStage, *, gpu: bool) -> tuple[Weights, list[Stretch]]:
        """Returns the model's weights, and the memory of a forward and backward pass.

        Raises:
            ValueError: as the model's own forward.
        """
        skeleton, batch = self._skeleton(stage), self._batch(stage)
        key = (skeleton, batch, stage.activation_checkpointing, gpu)
        if key not in self._runs:
            self._runs[key] = skeleton.run(batch, checkpointing=stage.activation_checkpointing, gpu=gpu)
        return skeleton.weights, self._runs[key]

    def loading_bytes(self, stage: TrainStage) -> int:
        """Returns what a worker on a GPU holds in main memory while it loads the model's weights.

        They go to the GPU, whole or the worker's share, as they are read: one tensor is here at a time.
        """
        return PROCESS_BYTES + self._skeleton(stage).weights.largest * _WIDEST

    def _batch(self, stage: TrainStage) -> Batch:
        from pipelines.train.memory.passes import Batch

        tokens = row_tokens(stage, self.rows.length, self.rows.packed) // stage.context_parallel
        # Over several ranks transformers' layers take documents too, each rank's a row of its own here.
        packed = self.rows.packed and (
            stage.context_parallel == 1 or self.configuration.model_type == "mamba2_hybrid"
        )
        return Batch(1 if self.rows.packed else stage.micro_batch_rows, tokens, packed)

    def _micro_batches(self, stage: TrainStage) -> int:
        rows = stage.tokens_per_step // self.rows.length
        return rows // (stage.layout.groups * stage.micro_batch_rows)

    def _exchange(self, stage: TrainStage) -> int:
        """Bytes of what came from the workers that share a row, kept for the backward pass."""
        if stage.context_parallel == 1:
            return 0
        from pipelines.train.exchange import exchanged
        from se_model.parallel.formula import Share

        share = Share(
            ranks=stage.context_parallel,
            rows=1 if self.rows.packed else stage.micro_batch_rows,
            tokens=row_tokens(stage, self.rows.length, self.rows.packed),
            itemsize=2 if stage.precision == "bf16" else 4,
            packed=self.rows.packed,
        )
        once = stage.model_copy(update={"activation_checkpointing": False})
        # Forward and backward passes receive about as much; only what the first brings stays.
        received = sum(exchanged(once, self.configuration, share, 1).values()) // 2
        layers = int(self.configuration.num_hidden_layers)
        return received // layers if stage.activation_checkpointing else received

    def _skeleton(self, stage: TrainStage) -> Skeleton:
        import torch

        from pipelines.train.memory.passes import Skeleton

        key = (stage.attention, stage.hylora, stage.precision)
        if key not in self._skeletons:
            self._skeletons[key] = Skeleton(
                self.configuration,
                stage.attention.build(seed=0),
                None if stage.hylora is None else stage.hylora.build(),
                torch.bfloat16 if stage.precision == "bf16" else torch.float32,
            )
        return self._skeletons[key]


_MODELS_KEPT = 4
_counted: dict[tuple[str, Rows], Counted] = {}


def counted_model(configuration: PreTrainedConfig, rows: Rows) -> Counted:
    """Returns the counts of a model on such rows, always the same: checking and planning share them."""
    key = (configuration.to_json_string(), rows)
    if key not in _counted:
        if len(_counted) == _MODELS_KEPT:
            _counted.clear()
        _counted[key] = Counted(configuration, rows)
    return _counted[key]
