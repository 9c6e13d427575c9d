"""Scores units in Ray tasks; each loads the model once and streams back the outcome of unit after unit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import ray
import torch
from torch import nn

from pipelines.errors import EspanError
from pipelines.evaluate.perplexity import WindowSource, score_perplexity
from pipelines.evaluate.recall import score_recall
from pipelines.evaluate.scores import prompt_hash
from pipelines.evaluate.units import RecallUnit, Unit, UnitResult, deal
from pipelines.models.fitting import attention_config
from pipelines.models.loading import load_model
from pipelines.models.references import ModelSource
from pipelines.models.tokenizers import load_tokenizer
from pipelines.needles.compose import RecallSample, recall_prompt
from pipelines.needles.find import cases_in
from pipelines.recipe.keys.attention import Attention
from pipelines.system.devices import check_devices, find_device
from pipelines.system.precision import multiply_in_float32
from pipelines.system.progress import Progress
from se_model import attach
from se_model.span.statistics import record_selections

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Scorer:
    """Everything a worker needs to score any unit; small, and the same for all.

    Attributes:
        model: where the weights are.
        tokenizer: reference of the prompts' tokenizer; None where recall is not measured.
        attention: what the attention layers compute.
        dtype: of the weights and the arithmetic.
        seed: of the prompts and of what the attention draws.
        windows: the held-out documents; None where perplexity is not measured.
        bos: the token that begins prompts, if any.
        scored: tokens at the end of a window that count.
        cpus: threads for arithmetic.
        gpus: 1 to score on a GPU.
        check_bf16: bf16 was chosen without knowing the GPUs' type.
        memory: bytes of main memory that a worker reserves.
    """

    model: ModelSource
    tokenizer: str | None
    attention: Attention
    dtype: torch.dtype
    seed: int
    windows: WindowSource | None
    bos: int | None
    scored: int
    cpus: int
    gpus: int
    check_bf16: bool = False
    memory: int = 0

    def load_model(self) -> nn.Module:
        """Returns the model, its adapter merged in, with the attention attached.

        Raises:
            NoBfloat16Error: `check_bf16`, and this worker's GPU does not have it.
            EspanError: the worker reserved a GPU and has none, or the model cannot be loaded.
        """
        torch.set_num_threads(self.cpus)
        if self.gpus:
            check_devices([find_device()], needs_bf16=self.check_bf16)
            multiply_in_float32(torch.device("cuda"))
        model = load_model(self.model, dtype=self.dtype, merge=True).requires_grad_(False)
        if self.attention.kind != "full":
            attach(model, attention_config(self.attention, self.seed))
        return model.to("cuda" if self.gpus else "cpu")

    def score(self, unit: Unit, model: nn.Module) -> UnitResult:
        """Returns the outcome of one unit; `model` is what `load_model` returned."""
        if isinstance(unit, RecallUnit):
            return self._recall(unit, model)
        assert self.windows is not None, "perplexity units come with windows"
        windows = self.windows.read(unit.first, unit.count, unit.length)
        nats = score_perplexity(model, windows, scored=self.scored)
        return UnitResult(nats=nats, prompts=[prompt_hash(window) for window in windows.tolist()])

    def _recall(self, unit: RecallUnit, model: nn.Module) -> UnitResult:
        assert self.tokenizer is not None, "recall units come with a tokenizer"
        tokenizer = _tokenizer(self.tokenizer)
        samples = self._prompts(unit, tokenizer)
        rows = [(sample.input_ids, [len(sample.input_ids)]) for sample in samples]
        with record_selections() as selections:
            selections.ask(partial(cases_in, tokenizer, rows, joined=False))
            answers = score_recall(model, samples)
        prompts = [prompt_hash(sample.input_ids) for sample in samples]
        return UnitResult(answers=answers, hits=selections.hits(), prompts=prompts)

    def _prompts(self, unit: RecallUnit, tokenizer: PreTrainedTokenizerBase) -> list[RecallSample]:
        indices = range(unit.first, unit.first + unit.count)
        return [
            recall_prompt(
                unit.task,
                length=unit.length,
                seed=self.seed,
                index=index,
                tokenizer=tokenizer,
                bos=self.bos,
            )
            for index in indices
        ]


_tokenizer = lru_cache(maxsize=1)(load_tokenizer)


def score_units(
    scorer: Scorer, units: Sequence[Unit], *, workers: int, label: str, progress: Progress
) -> dict[Unit, UnitResult]:
    """Returns the outcome of every unit, scored by `workers` Ray tasks.

    Raises:
        NoBfloat16Error: bf16 was chosen without knowing the GPUs' type, and one does not have it.
        EspanError: a worker failed, with its message.
    """
    # "DEFAULT": inside a trial of Ray Tune, tasks would otherwise have to fit into what the trial reserved.
    task = ray.remote(_score_share).options(
        num_cpus=scorer.cpus,
        num_gpus=scorer.gpus,
        memory=scorer.memory,
        num_returns="streaming",
        scheduling_strategy="DEFAULT",
    )
    streams = [task.remote(scorer, share) for share in deal(units, workers)]
    outcomes: dict[Unit, UnitResult] = {}
    with progress.task(label, total=sum(unit.tokens for unit in units), unit="tokens") as shown:
        for unit, outcome in _as_they_come(streams):
            outcomes[unit] = outcome
            shown.advance(unit.tokens)
    return outcomes


def _score_share(scorer: Scorer, units: Sequence[Unit]) -> Iterator[tuple[Unit, UnitResult]]:
    model = scorer.load_model()
    for unit in units:
        yield unit, scorer.score(unit, model)


def _as_they_come(streams: Sequence[Any]) -> Iterator[tuple[Unit, UnitResult]]:
    """Yields what the Ray generators yield, whichever is ready; ends the others when one fails."""
    running = list(streams)
    try:
        while running:
            (ready, *_), _ = ray.wait(running, num_returns=1)
            try:
                yield ray.get(next(ready))
            except StopIteration:
                running.remove(ready)
    except ray.exceptions.RayError as error:
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        if isinstance(cause, EspanError):
            raise cause from error
        raise EspanError(f"a scoring worker failed: {type(cause).__name__}: {cause}") from error
    finally:
        for stream in running:
            ray.cancel(stream)
