"""Runs an evaluation: finds the documents, has every unit scored, and sums the outcomes up."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from pipelines.context import Context
from pipelines.errors import EspanError
from pipelines.evaluate.beginning import of_source
from pipelines.evaluate.check import reservation
from pipelines.evaluate.parallel import Scorer, score_units
from pipelines.evaluate.perplexity import WindowSource, find_windows
from pipelines.evaluate.scores import (
    Measure,
    PerplexityScore,
    RetrievalScore,
    Sample,
    Scores,
    TaskScore,
    write_samples,
)
from pipelines.evaluate.units import RecallUnit, Unit, UnitResult, perplexity_units, recall_units
from pipelines.models.merging import loaded_bytes
from pipelines.models.references import resolve_model
from pipelines.models.tokenizers import pinned
from pipelines.prepare.shards import split_folder
from pipelines.recipe.keys.evaluate import EvaluateKeys, PerplexitySection
from pipelines.system.capacity import cluster_capacity
from pipelines.system.precision import NoBfloat16Error, choose_precision, torch_dtype, without_bf16
from pipelines.system.reserved_tasks import memory_to_reserve
from pipelines.system.versions import decisive_versions, machine
from pipelines.system.worker_resources import as_many_as_fit, check_room
from se_model.span.hits import Hits


def run(keys: EvaluateKeys, context: Context) -> Mapping[str, Any]:
    """Scores the model, writes `scores.json` and `samples.jsonl`, and returns the scores by length."""
    scores = evaluate(keys, context)
    scores.write(context.output)
    recall = {
        length: mean.value
        for length in scores.lengths("recall")
        if (mean := scores.mean_at("recall", length))
    }
    perplexity = {score.length: score.perplexity for score in scores.perplexity}
    headline = []
    if recall:
        longest = max(recall)
        headline.append(f"recall {recall[longest]:.1%} at {longest:,}")
    if perplexity:
        longest = max(perplexity)
        headline.append(f"perplexity {perplexity[longest]:.2f} at {longest:,}")
    return {"headline": ", ".join(headline), "recall": recall, "perplexity": perplexity}


def evaluate(keys: EvaluateKeys, context: Context) -> Scores:
    """Scores `keys.model` and writes the outcome of each prompt and document to `samples.jsonl`.

    Raises:
        EspanError: no document is long enough, a worker fails, or a loss is not a number.
    """
    started = time.monotonic()
    there = cluster_capacity()
    workers = reservation(keys, there)
    check_room(workers, there)
    choice = choose_precision(keys.precision, workers)
    windows = _windows(keys.perplexity, context) if keys.perplexity else None
    model = resolve_model(keys.model, context.inputs)
    tokenizer = (keys.recall.tokenizer or model.tokenizer) if keys.recall else None
    if keys.recall and tokenizer is None:
        raise EspanError(
            f"model '{keys.model}' has no tokenizer, which recall needs; name one in recall.tokenizer"
        )
    widest = torch.float32 if choice.assumed else torch_dtype(choice.precision)
    needed = loaded_bytes(model, widest)
    memory = memory_to_reserve(needed, workers.resources, there, context.name, context.progress)
    bos = of_source(keys, model, tokenizer, windows.shards if windows else None)
    scorer = Scorer(
        model=model,
        tokenizer=tokenizer and pinned(tokenizer),
        attention=keys.attention,
        dtype=torch_dtype(choice.precision),
        seed=context.seed,
        windows=replace(windows, bos=bos) if windows else None,
        bos=bos,
        scored=keys.perplexity.scored_tokens if keys.perplexity else 0,
        cpus=keys.resources.cpus,
        gpus=int(workers.gpus),
        check_bf16=choice.assumed,
        memory=memory,
    )
    units = _units(keys, windows)
    each = {**workers.resources, "memory": float(memory)}
    count = min(keys.workers or as_many_as_fit(each, there), len(units))
    context.progress.message(f"{context.name}: workers: {replace(workers, workers=count)}")
    context.progress.message(f"{context.name}: precision: {choice.text(workers.gpus)}")
    score = partial(
        score_units,
        units=units,
        workers=count,
        label=f"{context.name}: scoring",
        progress=context.progress,
    )
    try:
        outcomes = score(scorer)
    except NoBfloat16Error as error:  # all scores or none are in bf16
        choice = without_bf16(error)
        context.progress.message(f"{context.name}: precision: {choice.text(workers.gpus)}")
        outcomes = score(replace(scorer, dtype=torch_dtype(choice.precision), check_bf16=False))
    rows = _Rows.gather(units, outcomes)
    write_samples(context.output, rows.samples(scorer.scored))
    return Scores(
        model=keys.written.model,
        attention=keys.attention.model_dump(mode="json"),
        precision=choice.precision,
        seed=context.seed,
        tasks=tuple(
            TaskScore.of_recall(task, length, answers) for (task, length), answers in rows.recall.items()
        ),
        perplexity=tuple(
            PerplexityScore.of(length, scorer.scored, nats) for length, nats in rows.perplexity.items()
        ),
        retrieval=tuple(
            RetrievalScore.model_validate({"length": length, **means})
            for length, hits in rows.hits.items()
            if (means := Hits.together(hits).means())
        ),
        seconds=round(time.monotonic() - started, 3),
        machine=machine(),
        versions=decisive_versions(),
    )


def _windows(keys: PerplexitySection, context: Context) -> WindowSource:
    shards = context.path_of(keys.data)
    return find_windows(split_folder(shards, keys.split), longest=max(keys.lengths), windows=keys.rows)


def _units(keys: EvaluateKeys, windows: WindowSource | None) -> list[Unit]:
    units: list[Unit] = []
    if recall := keys.recall:
        units += recall_units(
            recall.tasks, recall.lengths, recall.samples, tokens_per_batch=keys.tokens_per_batch
        )
    if keys.perplexity and windows:
        lengths, found = keys.perplexity.lengths, len(windows.ends)
        units += perplexity_units(lengths, found, tokens_per_batch=keys.tokens_per_batch)
    return units


@dataclass
class _Rows:
    """The outcome of every prompt by (task, length), and of every document by length, in order.

    `prompts`: by (task, length), the hash of each, `perplexity` being the task of documents.
    `hits`: by length of the prompts, what their choices of blocks found.
    """

    recall: dict[tuple[str, int], list[list[bool]]] = field(default_factory=lambda: defaultdict(list))
    perplexity: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    prompts: dict[tuple[str, int], list[str]] = field(default_factory=lambda: defaultdict(list))
    hits: dict[int, list[Hits]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def gather(cls, units: Sequence[Unit], outcomes: Mapping[Unit, UnitResult]) -> _Rows:
        rows = cls()
        for unit in units:
            outcome = outcomes[unit]
            if isinstance(unit, RecallUnit):
                rows.recall[unit.task, unit.length] += outcome.answers
                rows.prompts[unit.task, unit.length] += outcome.prompts
                if outcome.hits is not None:
                    rows.hits[unit.length].append(outcome.hits)
            else:
                rows.perplexity[unit.length] += outcome.nats
                rows.prompts["perplexity", unit.length] += outcome.prompts
        return rows

    def samples(self, scored: int) -> Iterator[Sample]:
        """Yields one record per prompt and per document; `scored` tokens of each document count."""
        for (task, length), outcomes in self.recall.items():
            for index, answers in enumerate(outcomes):
                yield self._sample(
                    "recall", task, length, index, "recall", sum(answers) / len(answers), answers=answers
                )
        for length, documents in self.perplexity.items():
            for index, nats in enumerate(documents):
                yield self._sample(
                    "perplexity", "perplexity", length, index, "loss", nats / scored, nats=nats
                )

    def _sample(
        self, measure: Measure, task: str, length: int, index: int, metric: str, value: float, **extras: Any
    ) -> Sample:
        return Sample(
            measure=measure,
            task=task,
            length=length,
            index=index,
            prompt=self.prompts[task, length][index],
            metric=metric,
            value=value,
            **extras,
        )
