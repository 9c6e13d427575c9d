"""DeepSpeed, kept in one file: its configuration, its start, and what it stores."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipelines.errors import EspanError
from pipelines.system.plain_path import plain_path
from pipelines.train.worker.checkpoints import ADAPTER_FOLDER, ENGINE_FOLDER
from pipelines.train.worker.sharded_saving import save_sharded
from se_model.loss import causal_lm_loss

if TYPE_CHECKING:
    from pipelines.recipe.keys.train import TrainKeys
    from se_model.parallel import SequenceShard
    from se_model.span.documents import DocumentBounds

_BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's own default. Buffers of this size are allocated whole, so small models get smaller ones."""

_STATE_BYTES = 3 * 4


class LossModel(nn.Module):
    """A causal language model whose forward is its loss: ZeRO-3's hooks need one forward per micro-batch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, documents: DocumentBounds | None, shard: SequenceShard | None = None
    ) -> Tensor:
        """Returns the summed loss of `input_ids: [B, L]`, or of this worker's `shard` of them.

        See `se_model.loss.causal_lm_loss`.
        """
        return causal_lm_loss(self.model, input_ids, cu_seqlens=documents, shard=shard)[0]


class Engine:
    """One worker's DeepSpeed engine around a causal language model, and the optimizer that goes with it.

    Args:
        model: with `requires_grad` set on what trains; whole, or this worker's share (ZeRO-3).
        stage: the training stage's keys.
        workers: their number; gradients are averaged over them.
        accumulation: micro-batches per step on each worker.
        from_universal: the state that `load` will be given was written by another number of workers.

    Raises:
        EspanError: nothing trains.
    """

    def __init__(
        self,
        model: nn.Module,
        stage: TrainKeys,
        *,
        workers: int,
        accumulation: int,
        from_universal: bool = False,
    ) -> None:
        deepspeed = import_deepspeed()
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not trainable:
            raise EspanError("no parameter of the model trains")
        self._workers = workers
        self._adapter = stage.hylora is not None
        optimizer = torch.optim.AdamW(
            decay_groups(trainable, stage.weight_decay), lr=stage.learning_rate, betas=stage.betas
        )
        elements = sum(_shape(parameter).numel() for parameter in trainable)
        with _without_compiler():
            self._engine, *_ = deepspeed.initialize(
                model=LossModel(model),
                optimizer=optimizer,
                config=deepspeed_config(stage, elements, accumulation, from_universal),
                dist_init_required=False,
            )
        self._engine.train()

    @property
    def model(self) -> Any:
        """The language model, its weights possibly split over the workers (ZeRO-3)."""
        return self._engine.module.model

    def loss_sum(
        self, input_ids: Tensor, documents: DocumentBounds | None, shard: SequenceShard | None = None
    ) -> Tensor:
        """Returns the summed loss of one micro-batch, or of this worker's shard, `[]`, with its graph."""
        return self._engine(input_ids, documents, shard)

    def backward(self, loss_sum: Tensor, targets: int) -> None:
        """Adds a micro-batch's share of the gradients.

        Args:
            loss_sum: what `loss_sum` returned.
            targets: predicted tokens of the whole step, over all workers.
        """
        # DeepSpeed averages over the workers; the loss is a sum over them divided by the targets of all.
        # Under context parallelism too: a worker's loss is that of its shard, and what other workers' losses
        # owe to its tokens comes back to it through the exchanges.
        self._engine.backward(loss_sum * (self._workers / targets), scale_wrt_gas=False)

    def finish_micro_batch(self) -> None:
        """Counts a micro-batch that is not a step's last; the last one is counted by `update`."""
        self._engine.step()

    def update(self, learning_rate: float) -> float:
        """Clips and applies the step's gradients; returns their norm before clipping."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def save(self, folder: Path) -> None:
        """Writes optimizer, engine state and trained weights below a local folder; every worker calls it."""
        folder = plain_path(folder, globbed=True)
        self._engine.save_checkpoint(
            str(folder), tag=ENGINE_FOLDER, save_latest=False, exclude_frozen_parameters=self._adapter
        )
        if self._adapter:
            self.save_model(folder / ADAPTER_FOLDER)

    def checkpoint_bytes(self) -> int:
        """Returns about how much `save` writes, over all workers.

        Three float32 numbers for each that trains (its master copy and AdamW's two means), and the trained
        weights themselves, twice where they are an adapter.
        """
        trainable = [each for each in self._engine.module.parameters() if each.requires_grad]
        # Under ZeRO-3 a parameter holds its share alone; `ds_numel` is all of it.
        elements = [int(getattr(each, "ds_numel", each.numel())) for each in trainable]
        weights = sum(count * each.element_size() for count, each in zip(elements, trainable, strict=True))
        return sum(elements) * _STATE_BYTES + weights * (2 if self._adapter else 1)

    def load(self, folder: Path, tag: str = ENGINE_FOLDER) -> None:
        """Restores the state that `save` wrote, or its universal form in `folder/tag`; every worker calls it.

        Raises:
            EspanError: DeepSpeed found nothing it can use.
        """
        weight_decays = [group["weight_decay"] for group in self._engine.optimizer.param_groups]
        path, _ = self._engine.load_checkpoint(
            str(plain_path(folder, globbed=True)), tag=tag, load_module_strict=not self._adapter
        )
        if path is None:
            raise EspanError(
                f"DeepSpeed cannot read the checkpoint in {folder}; remove it to use the one before"
            )
        # From a universal checkpoint DeepSpeed 0.19.8 gives all groups the first one's settings, and under
        # ZeRO-3 one step counter, which then counts once for every group (runtime/zero/stage3.py,
        # load_hp_checkpoint_state_from_checkpoint_dir_stage3). Can go when it keeps groups apart.
        for group, weight_decay in zip(self._engine.optimizer.param_groups, weight_decays, strict=True):
            group["weight_decay"] = weight_decay
        for state in self._engine.optimizer.optimizer.state.values():
            if torch.is_tensor(state.get("step")):
                state["step"] = state["step"].clone()

    def save_model(self, folder: Path) -> None:
        """Writes the adapter, or the whole model where there is none, as safetensors.

        Every worker calls it; the first writes.
        """
        if not self._adapter and self._engine.zero_optimization_partition_weights():
            save_sharded(self.model, folder)
            return
        state = self._full_state()
        if state is None:
            return
        # Trained embeddings are in the state already; without this setting, PEFT asks the model hub.
        options = {"save_embedding_layers": False} if self._adapter else {}
        self.model.save_pretrained(str(folder), state_dict=state, **options)

    def _full_state(self) -> Mapping[str, Tensor] | None:
        """Returns the adapter's state, or the whole model's, on the first worker, None on the others."""
        if self._engine.zero_optimization_partition_weights():
            state = self._engine._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=True)
        else:
            state = self._engine.module.state_dict() if self._engine.global_rank == 0 else None
        return (
            None if state is None else {name.removeprefix("model."): tensor for name, tensor in state.items()}
        )


def deepspeed_config(
    stage: TrainKeys, elements: int, accumulation: int, from_universal: bool
) -> dict[str, Any]:
    """Returns DeepSpeed's configuration for a stage that trains `elements` numbers."""
    bucket = min(_BUCKET_ELEMENTS, elements)
    return {
        "train_micro_batch_size_per_gpu": stage.micro_batch_rows,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": stage.clip or 0.0,
        "zero_optimization": {
            "stage": stage.deepspeed.zero,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
        },
        "bf16": {"enabled": stage.precision == "bf16"},
        "checkpoint": {"load_universal": from_universal},
        "steps_per_print": 2**31,
    }


def decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Splits parameters into matrices, which decay, and vectors (norms, biases, A_log, D), which never do."""
    parameters = list(parameters)
    decaying = [parameter for parameter in parameters if len(_shape(parameter)) > 1]
    others = [parameter for parameter in parameters if len(_shape(parameter)) <= 1]
    groups = [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _shape(parameter: nn.Parameter) -> torch.Size:
    """Returns the shape of a whole parameter; of one that is split over the workers, DeepSpeed's record."""
    return getattr(parameter, "ds_shape", parameter.shape)


def import_deepspeed() -> Any:
    """Returns DeepSpeed with quiet logging, and without the operator that it compiles on a CPU."""
    import deepspeed.ops

    if not torch.cuda.is_available():
        # On a CPU DeepSpeed 0.19.8 compiles an operator for collectives through shared memory when it
        # first communicates (deepspeed/comm/torch.py, build_shm_op): half a minute and a C++ compiler, for
        # something that gloo does. It asks this table whether the operator is compatible; filling the table
        # in also saves probing compilers for all others. Can go when DeepSpeed offers a setting for it.
        deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    deepspeed.utils.logger.setLevel(logging.WARNING)
    return deepspeed


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Keeps `torch.compile` from loading its compiler, which takes seconds, while DeepSpeed starts.

    To find out whether it supports AdamW, DeepSpeed 0.19.8 imports its Muon optimizer, whose functions are
    decorated with `torch.compile` (deepspeed/runtime/zero/utils.py, is_zero_supported_optimizer). Nothing
    here calls them. Can go when that import does.
    """
    name = "TORCHDYNAMO_DISABLE"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
