"""What can be said of an evaluation before anything starts: whether all is there, and how much is scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pipelines.context import Check, CheckContext
from pipelines.errors import EspanError, InvalidKeyError, one_line
from pipelines.evaluate.beginning import planned
from pipelines.evaluate.harness.check import check_harness, check_ruler
from pipelines.evaluate.tokenizer import given_tokenizers, prompt_tokenizer, recall_tokenizer
from pipelines.models import tokenizers
from pipelines.models.architecture import described_model
from pipelines.models.recurrences import KEY, Found, planned_recurrences, recurrences_text, refusal_of_wish
from pipelines.models.references import check_model, external_files, plan_of_model
from pipelines.models.tokenizer_answers import check_remembered
from pipelines.prepare.shards import MANIFEST, split_folder
from pipelines.recipe.keys.evaluate import EvaluateKeys, PerplexitySection, RecallSection
from pipelines.recipe.keys.prepare import PrepareKeys
from pipelines.recipe.keys.ruler import RulerSection
from pipelines.system import storage
from pipelines.system.capacity import Capacity, expected_capacity
from pipelines.system.precision import choose_precision
from pipelines.system.worker_resources import Reservation, as_many_as_fit, reserve


def external_inputs(keys: EvaluateKeys) -> tuple[str, ...]:
    """Returns the files of model, shards (the manifest, which has their hashes), tokenizers and tasks."""
    ruler, harness = keys.ruler, keys.harness
    places = [ruler.essays, ruler.squad, ruler.hotpot] if ruler else []
    places += [harness.include] if harness else []
    given = ruler.tokenizer if ruler else None
    return (
        *external_files(keys.model),
        *inputs_of_scoring(keys.recall, keys.perplexity),
        *(place for place in places if place is not None),
        *(tokenizers.external_files(given) if given else ()),
    )


def inputs_of_scoring(recall: RecallSection | None, perplexity: PerplexitySection | None) -> tuple[str, ...]:
    """Returns what scores depend on beside the model: the shards' manifest and the tokenizer's files."""
    shards: tuple[str, ...] = ()
    if perplexity:
        shards = (storage.join(split_folder(perplexity.data, perplexity.split), MANIFEST),)
    given = recall.tokenizer if recall else None
    return (*shards, *(tokenizers.external_files(given) if given else ()))


def check(keys: EvaluateKeys, context: CheckContext) -> None:
    """Refuses a missing model, tokenizer, text or task, shards without held-out rows, lengths that they or
    the model do not have, and a backend that cannot compute the model's recurrences.

    Raises:
        InvalidKeyError: names the key.
    """
    check_model("model", keys.model, context)
    if keys.perplexity:
        _check_shards(keys.perplexity, context)
    for measure, given in given_tokenizers(keys):
        _check_tokenizer(measure, given, keys, context)
    if keys.ruler:
        check_ruler(keys.ruler, keys, context)
    if keys.harness:
        check_harness(keys.harness)
    planned(keys, context)
    if keys.recurrence != "auto":
        _check_recurrence(keys, context)


def plan(keys: EvaluateKeys, context: CheckContext) -> Mapping[str, str]:
    """Returns what workers reserve, in which precision, how many tokens they score, by what is measured."""
    there = expected_capacity()
    workers = reservation(keys, there)
    count = crews_of(keys, workers.resources, there) * keys.context_parallel
    said = {
        **plan_of_model(keys.model, context),
        "workers": str(replace(workers, workers=count)),
        "precision": choose_precision(keys.precision, workers).text(workers.gpus),
    }
    if keys.recall:
        said["recall"] = _prompts_text(keys.recall)
        found = recall_tokenizer(keys, context)
        said["tokenizer"] = tokenizers.pinned(found) if found else f"that of stage '{keys.model}'"
    if keys.ruler:
        said["ruler"] = _prompts_text(keys.ruler)
    if keys.harness:
        each = "all documents" if keys.harness.limit is None else f"{keys.harness.limit} documents of each"
        said["harness"] = f"{', '.join(keys.harness.tasks)}; {each}"
    if keys.perplexity:
        lengths, rows = keys.perplexity.lengths, keys.perplexity.rows
        said["perplexity"] = f"{len(lengths)} lengths x {rows} documents, {rows * sum(lengths):,} tokens"
    if keys.recurrence != "auto" and not context.finished and (kinds := _recurrences(keys, context)):
        said["recurrences"] = recurrences_text(kinds, keys.recurrence, gpu=workers.gpus > 0)
    beginning = None if context.finished else planned(keys, context)
    if beginning and (text := beginning.text(keys.bos)):
        said["beginning"] = f"texts begin {text}"
    return said


CHECK = Check(check=check, plan=plan, external_inputs=external_inputs)


def _prompts_text(keys: RecallSection | RulerSection) -> str:
    tasks, lengths, samples = len(keys.tasks), keys.lengths, keys.samples
    tokens = tasks * samples * sum(lengths)
    return f"{tasks} tasks x {len(lengths)} lengths x {samples} prompts, {tokens:,} tokens"


def reservation(keys: EvaluateKeys, capacity: Capacity) -> Reservation:
    """Returns what each worker reserves where there is `capacity`; how many there are is for later.

    Raises:
        EspanError: it is unknown whether there are GPUs.
    """
    # Those that share a row are needed all at once; of such groups any number will do.
    together = keys.context_parallel if keys.context_parallel > 1 else None
    return reserve(together, keys.resources.cpus, keys.resources.gpus, capacity)


def crews_of(keys: EvaluateKeys, resources: Mapping[str, float], capacity: Capacity) -> int:
    """Returns how many groups of workers score at once, each worker of which needs `resources`."""
    return max(1, (keys.workers or as_many_as_fit(resources, capacity)) // keys.context_parallel)


def _recurrences(keys: EvaluateKeys, context: CheckContext) -> list[Found] | None:
    """Returns the kinds of recurrence of the model; None if it is unknown before the run."""
    model = described_model(keys.model, context)
    return None if model is None else planned_recurrences(model, keys.attention)


def _check_recurrence(keys: EvaluateKeys, context: CheckContext) -> None:
    there = expected_capacity()
    try:
        found = _recurrences(keys, context)
    except ValueError as error:  # the model takes no attention, and with it no backend
        raise InvalidKeyError(KEY, one_line(error)) from error
    if found is None:
        return
    gpu = reservation(keys, there).gpus > 0
    if reason := refusal_of_wish(found, keys.recurrence, gpu=gpu, here=there.local):
        raise InvalidKeyError(KEY, reason)


def _check_tokenizer(measure: str, given: str | None, keys: EvaluateKeys, context: CheckContext) -> None:
    key = "model" if measure == "harness" else f"{measure}.tokenizer"
    found = prompt_tokenizer(given, keys, context)
    if found is None and keys.model not in context.earlier:
        advice = f"name the one that it was trained with (that of the data, as a rule) in {key}"
        if measure == "harness":
            advice = "put the one that it was trained with into its folder"
        raise InvalidKeyError(
            key, f"{measure} needs a tokenizer, and {keys.model} has none of its own; {advice}"
        )
    if found is not None:
        try:
            check_remembered(found)
        except EspanError as error:
            raise InvalidKeyError(key if given else "model", str(error)) from error


def _check_shards(keys: PerplexitySection, context: CheckContext) -> None:
    found = context.require_stage_or_path("perplexity.data", keys.data, kinds=("prepare",))
    if found is None:
        return
    assert isinstance(found.keys, PrepareKeys)
    longest, sequence_length = max(keys.lengths), found.keys.sequence_length
    if longest > sequence_length:
        raise InvalidKeyError(
            f"perplexity.lengths.{keys.lengths.index(longest)}",
            f"{longest} is more than sequence_length {sequence_length} of stage '{keys.data}'",
        )
    if keys.split == "holdout" and not found.keys.holdout:
        what = f"stage '{keys.data}' holds no rows out; give it holdout: 0.05, or set split: train here"
        raise InvalidKeyError("perplexity.data", what)
