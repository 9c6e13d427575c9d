"""Runs an evaluation: finds the documents, has every unit scored, and sums the outcomes up."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from pipelines.context import Context
from pipelines.evaluate.check import crews_of, reservation
from pipelines.evaluate.fleet import Fleet
from pipelines.evaluate.headline import headline, means
from pipelines.evaluate.measures import Found
from pipelines.evaluate.outcomes import FOLDER, Outcomes
from pipelines.evaluate.preparation import prepare
from pipelines.evaluate.scores import Scores, write_samples
from pipelines.evaluate.worker import Scorer
from pipelines.models.merging import loaded_bytes
from pipelines.models.references import resolve_model
from pipelines.recipe.keys.evaluate import EvaluateKeys
from pipelines.system import storage
from pipelines.system.capacity import cluster_capacity
from pipelines.system.precision import Choice, NoBfloat16Error, choose_precision, torch_dtype, without_bf16
from pipelines.system.reserved_tasks import memory_to_reserve
from pipelines.system.versions import decisive_versions, machine
from pipelines.system.worker_resources import check_room


def run(keys: EvaluateKeys, context: Context) -> Mapping[str, Any]:
    """Scores the model, writes `scores.json` and `samples.jsonl`, and returns the scores by length."""
    scores = evaluate(keys, context)
    scores.write(context.output)
    storage.remove_folder(storage.join(context.output, FOLDER))
    return {
        "headline": headline(scores),
        "recall": means(scores, "recall"),
        "perplexity": {score.length: score.perplexity for score in scores.perplexity},
        "ruler": means(scores, "ruler"),
    }


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
    model = resolve_model(keys.model, context.inputs)
    widest = torch.float32 if choice.assumed else torch_dtype(choice.precision)
    measures = prepare(keys, context, model)
    needed = loaded_bytes(model, widest) + max(measure.room(widest) for measure in measures)
    memory = memory_to_reserve(needed, workers.resources, there, context.name, context.progress)
    scorer = Scorer(
        model=model,
        attention=keys.attention,
        dtype=torch_dtype(choice.precision),
        seed=context.seed,
        cpus=workers.cpus,
        gpus=int(workers.gpus),
        check_bf16=choice.assumed,
        memory=memory,
        context_parallel=keys.context_parallel,
        recurrence=keys.recurrence,
    )
    crews = crews_of(keys, {**workers.resources, "memory": float(memory)}, there)
    count = crews * keys.context_parallel
    context.progress.message(f"{context.name}: workers: {replace(workers, workers=count)}")

    def score(choice: Choice) -> Found:
        context.progress.message(f"{context.name}: precision: {choice.text(workers.gpus)}")
        kept = Outcomes(storage.join(context.output, FOLDER, choice.precision))
        with Fleet(
            replace(scorer, dtype=torch_dtype(choice.precision), check_bf16=choice.assumed),
            crews=crews,
            outcomes=kept,
            label=context.name,
            progress=context.progress,
        ) as fleet:
            found = Found()
            for measure in measures:
                measure.measure(fleet, found)
            return found

    try:
        found = score(choice)
    except NoBfloat16Error as error:  # all scores or none are in bf16
        choice = without_bf16(error)
        found = score(choice)
    write_samples(context.output, found.samples)
    return Scores(
        model=keys.written.model,
        attention=keys.attention.model_dump(mode="json"),
        precision=choice.precision,
        seed=context.seed,
        tasks=tuple(found.tasks),
        perplexity=tuple(found.perplexity),
        positions=tuple(found.positions),
        retrieval=tuple(found.retrieval),
        throughput=tuple(found.throughput),
        seconds=round(time.monotonic() - started, 3),
        machine=machine(),
        versions=decisive_versions(),
    )
