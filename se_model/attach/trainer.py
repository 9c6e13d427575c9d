"""Forward calls numbered by transformers' `Trainer`."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from se_model.attach.attachment import set_step


class TrainerSteps(TrainerCallback):
    """Numbers the forward calls of each step from the steps that a `Trainer` (transformers 5.23) has made.

    An attached model counts its calls alone, but begins at 0 in a new process. With this among the trainer's
    callbacks, `trainer.train(resume_from_checkpoint=...)` draws what it would have drawn without the stop.
    """

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called before the first forward of each optimizer step."""
        model: nn.Module = kwargs["model"]
        set_step(model, state.global_step * args.gradient_accumulation_steps)
