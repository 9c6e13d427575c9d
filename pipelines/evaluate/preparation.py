"""Makes ready what is to be measured, before a model is loaded: documents, prompts, the data of tasks."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from pipelines.context import Context
from pipelines.errors import EspanError
from pipelines.evaluate.beginning import of_source
from pipelines.evaluate.measures import Measure, Perplexity, Recall
from pipelines.evaluate.perplexity import perplexity_units
from pipelines.evaluate.recall import recall_units
from pipelines.evaluate.windows import WindowSource, find_windows
from pipelines.models.merging import configuration_of
from pipelines.models.references import ModelSource
from pipelines.models.tokenizers import load_tokenizer, pinned
from pipelines.prepare.shards import split_folder
from pipelines.recipe.keys.evaluate import EvaluateKeys, PerplexitySection, RecallSection
from pipelines.recipe.keys.harness import HarnessSection
from pipelines.recipe.keys.ruler import RulerSection
from pipelines.system import storage

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from pipelines.evaluate.harness.measure import Harness
    from pipelines.evaluate.language_model.encode import Encoder


def prepare(keys: EvaluateKeys, context: Context, model: ModelSource) -> list[Measure]:
    """Returns what the recipe asks for, in the order of its keys.

    Raises:
        EspanError: no document is long enough, there is no tokenizer, or a task's data is not at hand.
    """
    windows = _windows(keys.perplexity, context) if keys.perplexity else None
    prompts = _tokenizer(keys.model, model, keys.recall.tokenizer, "recall") if keys.recall else None
    bos = of_source(keys, model, prompts, windows.shards if windows else None)
    measures: list[Measure] = []
    if keys.recall and prompts:
        measures.append(_recall(keys.recall, prompts, context.seed, bos, keys.tokens_per_batch))
    if keys.perplexity and windows:
        units = perplexity_units(
            replace(windows, bos=bos),
            keys.perplexity.lengths,
            scored=keys.perplexity.scored_tokens,
            bins=keys.perplexity.positions,
            tokens_per_batch=keys.tokens_per_batch,
        )
        measures.append(Perplexity(units))
    if keys.ruler:
        measures.append(_ruler(keys.ruler, keys, context, model))
    if keys.harness:
        measures.append(_harness(keys.harness, keys, context, model))
    return measures


def _windows(keys: PerplexitySection, context: Context) -> WindowSource:
    shards = context.path_of(keys.data)
    return find_windows(split_folder(shards, keys.split), longest=max(keys.lengths), windows=keys.rows)


def _recall(keys: RecallSection, tokenizer: str, seed: int, bos: int | None, tokens_per_batch: int) -> Recall:
    units = recall_units(
        keys.tasks,
        keys.lengths,
        keys.samples,
        tokenizer=tokenizer,
        seed=seed,
        bos=bos,
        tokens_per_batch=tokens_per_batch,
    )
    return Recall(units)


def _ruler(keys: RulerSection, stage: EvaluateKeys, context: Context, model: ModelSource) -> Harness:
    from pipelines.evaluate.harness.check import check_lengths
    from pipelines.evaluate.harness.measure import Harness
    from pipelines.evaluate.harness.ruler import depth, load_prompts, make_prompts

    tokenizer = _tokenizer(stage.model, model, keys.tokenizer, "ruler")
    config, encoder = _model_side(stage, model, tokenizer)
    check_lengths(keys, f"model '{stage.model}'", encoder.limit)
    folder = storage.join(context.output, "ruler")
    manifest = make_prompts(
        keys,
        folder,
        tokenizer=tokenizer,
        seed=context.seed,
        label=context.name,
        progress=context.progress,
    )
    loaded, labels = load_prompts(folder, manifest)
    return Harness(
        name="ruler",
        loaded=loaded,
        encoder=encoder,
        tokenizer=tokenizer,
        tokens_per_batch=stage.tokens_per_batch,
        config=config,
        lengths=keys.lengths * (len(keys.tasks) * keys.samples),
        labels=labels,
        depth=depth,
    )


def _harness(keys: HarnessSection, stage: EvaluateKeys, context: Context, model: ModelSource) -> Harness:
    from pipelines.evaluate.harness.measure import Harness
    from pipelines.evaluate.harness.prompts import prompt_lengths
    from pipelines.evaluate.harness.tasks import check_names, expanded, load_tasks, task_manager

    tokenizer = _tokenizer(stage.model, model, None, "harness")
    manager = task_manager(keys.include, keys.tasks)
    check_names(keys.tasks, manager)
    total = len(expanded(keys.tasks))
    with context.progress.task(f"{context.name}: data of tasks", total=total, unit="tasks") as shown:
        loaded = load_tasks(keys.tasks, manager, fewshot=keys.fewshot, advance=shown.advance)
    config, encoder = _model_side(stage, model, tokenizer)
    lengths = prompt_lengths(loaded, encoder, keys.limit)
    if lengths and stage.context_parallel > 1:
        raise EspanError(
            f"harness: the answers of {', '.join(lengths)} are generated, which one worker does alone; leave "
            "context_parallel out, or those tasks"
        )
    return Harness(
        name="harness",
        loaded=loaded,
        encoder=encoder,
        tokenizer=tokenizer,
        tokens_per_batch=stage.tokens_per_batch,
        config=config,
        lengths=list(chain.from_iterable(lengths.values())),
        limit=keys.limit,
    )


def _model_side(stage: EvaluateKeys, model: ModelSource, tokenizer: str) -> tuple[PreTrainedConfig, Encoder]:
    """Returns a model's configuration, and what makes tokens of requests to it."""
    from pipelines.evaluate.language_model.encode import Encoder

    config = configuration_of(model)
    add_bos = None if stage.bos == "auto" else stage.bos
    return config, Encoder.of(config, load_tokenizer(tokenizer), add_bos=add_bos)


def _tokenizer(name: str, model: ModelSource, given: str | None, measure: str) -> str:
    """Returns the tokenizer of a measure, at its pinned revision.

    Raises:
        EspanError: none is given, and the model has none.
    """
    found = given or model.tokenizer
    if found is None:
        raise EspanError(
            f"model '{name}' has no tokenizer, which {measure} needs; "
            + (f"name one in {measure}.tokenizer" if measure != "harness" else "put one into its folder")
        )
    return pinned(found)
