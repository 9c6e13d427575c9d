"""What a worker scores with: the model, loaded once, and its part in rows that several workers share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import lcm
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.errors import EspanError
from pipelines.models.fitting import attention_config
from pipelines.models.loading import load_model
from pipelines.models.recurrences import check_recurrences, recurrences_in
from pipelines.models.references import ModelSource
from pipelines.models.tokenizers import load_tokenizer
from pipelines.recipe.keys.attention import Attention
from pipelines.system.devices import check_devices, find_device
from pipelines.system.precision import multiply_in_float32
from se_model import attach
from se_model.attach import attached, check_parallel
from se_model.predictions import Predictions, predictions

if TYPE_CHECKING:
    from se_model.parallel import ContextParallelGroup


@dataclass(frozen=True)
class Scorer:
    """Everything a worker needs to score any unit; small, and the same for all.

    Attributes:
        model: where the weights are.
        attention: what the attention layers compute.
        dtype: of the weights and the arithmetic.
        seed: of what the attention draws.
        cpus: that a worker reserves, and threads for arithmetic; of less than one, one thread.
        gpus: 1 to score on a GPU.
        check_bf16: bf16 was chosen without knowing the GPUs' type.
        memory: bytes of main memory that a worker reserves.
        context_parallel: workers that share each row.
        recurrence: the backend of recurrent layers.
    """

    model: ModelSource
    attention: Attention
    dtype: torch.dtype
    seed: int
    cpus: float
    gpus: int
    check_bf16: bool = False
    memory: int = 0
    context_parallel: int = 1
    recurrence: str = "auto"

    def load(self, group: ContextParallelGroup | None = None) -> Worker:
        """Returns a worker with the model, its adapter merged in, and the attention attached.

        Raises:
            NoBfloat16Error: `check_bf16`, and this worker's GPU does not have it.
            EspanError: the worker reserved a GPU and has none, or the model cannot be loaded, cannot share
                its rows or has no recurrence for the backend.
        """
        torch.set_num_threads(max(1, int(self.cpus)))
        if self.gpus:
            check_devices([find_device()], needs_bf16=self.check_bf16)
            multiply_in_float32(torch.device("cuda"))
        model = load_model(self.model, dtype=self.dtype, merge=True).requires_grad_(False)
        try:
            # Full attention is attached only where it has to take a part of a row, or where the layers beside
            # it are told how to compute.
            if self.attention.kind != "full" or group is not None or self.recurrence != "auto":
                attach(model, attention_config(self.attention, self.seed), recurrence=self.recurrence)
                check_recurrences(recurrences_in(model), self.recurrence, gpu=bool(self.gpus))
            if group is not None:
                check_parallel(model)
        except ValueError as error:
            raise EspanError(f"{self.model.name} cannot be scored as asked: {error}") from error
        model.to("cuda" if self.gpus else "cpu")
        return Worker(model, group, lcm(*self.attention.chunks))


@dataclass(frozen=True)
class Worker:
    """A loaded model.

    Attributes:
        group: the workers that share each row with this one; None where it has rows of its own.
        chunk_multiple: what each worker's part of a row must be a multiple of.
        head_tokens: positions whose logits are in memory together.
    """

    model: nn.Module
    group: ContextParallelGroup | None = None
    chunk_multiple: int = 1
    head_tokens: int = 1024

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def predict(
        self,
        input_ids: Tensor,
        rows: Tensor,
        positions: Tensor,
        targets: Tensor,
        lengths: Tensor | None = None,
    ) -> Predictions:
        """`se_model.predictions` in whole rows, given on any device; every worker of a group returns all.

        input_ids: [B, L]; rows, positions, targets: [N]; lengths: [B], tokens of each row, behind which it is
        padded.
        """
        input_ids, rows, positions, targets = (
            each.to(self.device) for each in (input_ids, rows, positions, targets)
        )
        shard = None
        if self.group is not None:
            from se_model.parallel import SequenceShard

            # What stands behind a row changes nothing in it.
            multiple = self.group.size * self.chunk_multiple
            input_ids = F.pad(input_ids, (0, -input_ids.shape[1] % multiple))
            shard = SequenceShard.of(self.group, input_ids.shape[1], chunk_multiple=self.chunk_multiple)
        mask = None
        # No token sees a later one, but the paper's span attention chooses blocks by all queries of a chunk.
        if lengths is not None and getattr(attached(self.model), "selection", None) == "chunk":
            places = torch.arange(input_ids.shape[1], device=self.device)
            mask = (places < lengths.to(self.device)[:, None]).long()
        return predictions(
            self.model,
            input_ids,
            rows,
            positions,
            targets,
            shard=shard,
            attention_mask=mask,
            head_tokens=self.head_tokens,
        )


tokenizer_of = lru_cache(maxsize=2)(load_tokenizer)
"""A tokenizer by its reference, loaded once in each worker."""
