"""Runs a model's forward and backward pass without memory, to see what it holds."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipelines.train.plan.memory.batch import Batch
from pipelines.train.plan.memory.counter import META, LiveBytes
from pipelines.train.plan.memory.engine import Weights
from pipelines.train.plan.memory.functions import KernelFunctions
from pipelines.train.plan.memory.timeline import Stretch
from pipelines.train.plan.memory.watch import Watch
from se_model.attach import packing_refusal
from se_model.loss import causal_lm_loss

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from se_model.attentions import AttentionConfig
    from se_model.hylora import HyLoraConfig


class Skeleton:
    """A model as it would train, without memory for its weights.

    Args:
        configuration: the model's.
        attention: what its attention layers compute.
        hylora: what trains; every parameter for None.
        dtype: of weights and arithmetic.

    Raises:
        ValueError: the model cannot be trained this way.
    """

    def __init__(
        self,
        configuration: PreTrainedConfig,
        attention: AttentionConfig,
        hylora: HyLoraConfig | None,
        dtype: torch.dtype,
    ) -> None:
        from transformers import AutoModelForCausalLM

        from se_model import attach

        with _without_advice(), META:
            model: Any = AutoModelForCausalLM.from_config(configuration, dtype=dtype)
            self._plain = model
            if hylora is not None:
                from se_model import apply_hylora  # and with it peft

                model = apply_hylora(model, hylora)
            else:
                model.requires_grad_(True)
            # DeepSpeed, too, casts everything to one precision.
            self._model = attach(model.to(dtype), attention).train()
        self.weights = _weights(self._model)
        self._watch = Watch(self._model)

    def run(self, batch: Batch, *, checkpointing: bool, gpu: bool) -> list[Stretch]:
        """Returns the memory of a forward and backward pass, in stretches.

        Raises:
            ValueError: the model cannot run such a batch.
        """
        live = LiveBytes()
        live.leave_out([*self._model.parameters(), *self._model.buffers()])
        with _without_advice(), KernelFunctions(gpu), live:
            if checkpointing:
                # torch leaves modes for functions while it calls back to compute a layer again.
                again = partial(_once_more, gpu)
                self._plain.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": again})
            else:
                self._plain.gradient_checkpointing_disable()
            # The number of documents hardly matters; that there are several does.
            bounds = torch.tensor([0, batch.tokens // 2, batch.tokens], dtype=torch.int32)
            # Layers that take documents only on several ranks run as on one document here.
            packed = batch.packed and packing_refusal(self._plain) is None
            cu_seqlens = live.know(bounds) if packed else None
            input_ids = torch.empty(batch.rows, batch.tokens, dtype=torch.int64, device=META)
            self._watch.start(live)
            loss, _ = causal_lm_loss(self._model, input_ids, cu_seqlens=cu_seqlens)
            loss.backward()
            stretches = self._watch.finish()
        return stretches


def _once_more(gpu: bool) -> tuple[AbstractContextManager[None], KernelFunctions]:
    """What a layer runs in at first, and when it is computed again."""
    return nullcontext(), KernelFunctions(gpu)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Keeps libraries from telling the user what a training run will tell: names that change, slow paths."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)


def _weights(model: nn.Module) -> Weights:
    # Tied parameters are one, under whatever names.
    stored = {parameter.untyped_storage()._cdata: parameter for parameter in model.parameters()}
    parameters = list(stored.values())
    trained = [each for each in parameters if each.requires_grad]
    return Weights(
        numbers=sum(each.numel() for each in parameters),
        itemsize=max((each.element_size() for each in parameters), default=4),
        trained=(
            tuple(each.numel() for each in trained if each.ndim > 1),
            tuple(each.numel() for each in trained if each.ndim <= 1),
        ),
        largest=max((each.numel() for each in parameters), default=0),
        buffers=sum(buffer.nbytes for buffer in model.buffers()),
    )
