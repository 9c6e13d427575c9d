"""The keys of an evaluate stage: which model, with which attention, on what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from pipelines.errors import EspanError, InvalidKeyError
from pipelines.evaluate.beginning import planned
from pipelines.models import tokenizers
from pipelines.models.bos import BosKey
from pipelines.models.references import check_model, external_files, plan_of_model, resolve_model
from pipelines.models.tokenizer_answers import check_remembered
from pipelines.needles.compose import RECALL_TASKS, RecallTask
from pipelines.prepare.shards import MANIFEST, holdout_folder
from pipelines.recipe.keys.attention import Attention, FullSection
from pipelines.recipe.keys.section import CheckContext, Context, Section, Stage
from pipelines.recipe.path_keys import MODEL, TOKENIZER, StageOrPath
from pipelines.system import storage
from pipelines.system.capacity import Capacity, expected_capacity
from pipelines.system.precision import Precision, choose_precision
from pipelines.system.worker_resources import Reservation, as_many_as_fit, reserve

Lengths = Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1)]


class RecallSection(Section):
    """Needle recall: `samples` prompts of every task at every length.

    Attributes:
        lengths: tokens in a prompt, its questions and answers included.
        samples: prompts of each task at each length.
        tasks: see `pipelines.needles.compose`.
        tokenizer: of the prompts; default: the model's own.
    """

    lengths: Lengths
    samples: PositiveInt = 64
    tasks: Annotated[tuple[RecallTask, ...], Field(min_length=1)] = RECALL_TASKS
    tokenizer: Annotated[str | None, TOKENIZER] = None

    @field_validator("lengths", "tasks")
    @classmethod
    def _no_repetition(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return _distinct(values)


class PerplexitySection(Section):
    """Perplexity of the same tokens at growing context; see `pipelines.evaluate.perplexity`.

    Attributes:
        data: a prepare stage, or a folder of shards.
        split: which of its rows.
        lengths: tokens in view, the scored ones included.
        rows: documents scored, at most.
        scored: how many tokens at the end of a document count; default: half the shortest length.
    """

    data: StageOrPath
    split: Literal["holdout", "train"] = "holdout"
    lengths: Lengths
    rows: PositiveInt = 64
    scored: PositiveInt | None = None

    @field_validator("lengths")
    @classmethod
    def _no_repetition(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        return _distinct(values)

    @model_validator(mode="after")
    def _context_before_scored(self) -> PerplexitySection:
        if self.scored is not None and self.scored >= min(self.lengths):
            raise InvalidKeyError("scored", f"must be less than the shortest length, {min(self.lengths)}")
        return self

    @property
    def scored_tokens(self) -> int:
        """How many tokens of each document count."""
        return self.scored or min(self.lengths) // 2

    def folder(self, shards: str) -> str:
        """Returns the folder of the rows to score, below the folder that `data` stands for."""
        return holdout_folder(shards) if self.split == "holdout" else shards


class WorkerResources(Section):
    """What one worker gets of the cluster.

    Attributes:
        cpus: logical CPUs, and with it threads.
        gpus: by default one where the cluster has, or its autoscaler can start, nodes with GPUs.
    """

    cpus: PositiveInt = 1
    gpus: Literal[0, 1] | None = None


class EvaluateStage(Stage):
    """The keys below `evaluate:`.

    Attributes:
        model: a train stage, `builtin:tiny`, a folder or a hub name.
        attention: what the attention layers compute while the model is scored.
        recall: needle recall, or None.
        perplexity: perplexity by length, or None.
        bos: begin prompts, and what precedes the scored tokens, with the beginning-of-sequence token, which
            their lengths include: `auto`: as the model's tokenizer does, or else the perplexity data.
        workers: Ray tasks that score side by side; default: as many as the cluster has room for. It does not
            change the scores.
        resources: of one worker.
        tokens_per_batch: tokens that go through the model together, at most, unless one row alone has more.
        precision: of the weights and the arithmetic; `auto` is bf16 on GPUs that have it, else fp32.
    """

    execution_keys: ClassVar[frozenset[str]] = frozenset({"workers"})

    model: Annotated[str, MODEL]
    attention: Attention = FullSection()
    recall: RecallSection | None = None
    perplexity: PerplexitySection | None = None
    bos: BosKey = "auto"
    workers: PositiveInt | None = None
    resources: WorkerResources = WorkerResources()
    tokens_per_batch: PositiveInt = 4096
    precision: Precision = "auto"

    @model_validator(mode="after")
    def _something_to_score(self) -> EvaluateStage:
        if self.recall is None and self.perplexity is None:
            raise InvalidKeyError("", "nothing to evaluate; give recall, perplexity or both")
        return self

    @model_validator(mode="after")
    def _sees_nothing_ahead(self) -> EvaluateStage:
        # selection: chunk looks at every query of a chunk, and the answers stand among them.
        if self.attention.kind == "span" and self.attention.selection == "chunk":
            raise InvalidKeyError(
                "attention.selection",
                "'chunk' lets later tokens decide what earlier ones see; scores need 'causal'",
            )
        return self

    def references(self) -> tuple[str, ...]:
        """The model and the shards."""
        return (self.model, self.perplexity.data) if self.perplexity else (self.model,)

    def external_inputs(self) -> tuple[str, ...]:
        """The model's files, the shards' manifest, which holds their hashes, and the tokenizer's files."""
        shards = (
            (storage.join(self.perplexity.folder(self.perplexity.data), MANIFEST),) if self.perplexity else ()
        )
        given = self.recall.tokenizer if self.recall else None
        tokenizer = tokenizers.external_files(given) if given else ()
        return (*external_files(self.model), *shards, *tokenizer)

    def check(self, context: CheckContext) -> None:
        """Refuses a missing model or tokenizer, shards without held-out rows, lengths they do not have."""
        check_model("model", self.model, context)
        if self.perplexity:
            _check_shards(self.perplexity, context)
        if self.recall:
            self._check_tokenizer(self.recall, context)
        planned(self, context)

    def reservation(self, capacity: Capacity) -> Reservation:
        """Returns what each worker reserves where there is `capacity`; how many there are is for later.

        Raises:
            EspanError: nobody tells whether there are GPUs.
        """
        return reserve(None, self.resources.cpus, self.resources.gpus, capacity)

    def plan(self, context: CheckContext) -> Mapping[str, str]:
        """What workers reserve, in which precision, how many tokens they score, by what is measured."""
        there = expected_capacity()
        workers = self.reservation(there)
        count = self.workers or as_many_as_fit(workers.resources, there)
        plan = {
            **plan_of_model(self.model, context),
            "workers": str(replace(workers, workers=count)),
            "precision": choose_precision(self.precision, workers).text(workers.gpus),
        }
        if self.recall:
            tasks, lengths, samples = len(self.recall.tasks), self.recall.lengths, self.recall.samples
            tokens = tasks * samples * sum(lengths)
            plan["recall"] = f"{tasks} tasks x {len(lengths)} lengths x {samples} prompts, {tokens:,} tokens"
            found = self.recall_tokenizer(context)
            plan["tokenizer"] = tokenizers.pinned(found) if found else f"that of stage '{self.model}'"
        if self.perplexity:
            lengths, rows = self.perplexity.lengths, self.perplexity.rows
            plan["perplexity"] = f"{len(lengths)} lengths x {rows} documents, {rows * sum(lengths):,} tokens"
        beginning = None if context.finished else planned(self, context)
        if beginning and (text := beginning.text(self.bos)):
            plan["beginning"] = f"texts begin {text}"
        return plan

    def recall_tokenizer(self, context: CheckContext) -> str | None:
        """Returns the tokenizer of the prompts; None for that of a train stage, or where there is none."""
        if self.recall and self.recall.tokenizer:
            return self.recall.tokenizer
        if self.model in context.earlier:
            return None
        return resolve_model(self.model, {}).tokenizer

    def _check_tokenizer(self, keys: RecallSection, context: CheckContext) -> None:
        found = self.recall_tokenizer(context)
        if found is None and self.model not in context.earlier:
            raise InvalidKeyError(
                "recall.tokenizer",
                f"recall needs a tokenizer, and {self.model} has none of its own; name the one that it was "
                "trained with (that of the data, as a rule) in recall.tokenizer",
            )
        if found is not None:
            try:
                check_remembered(found)
            except EspanError as error:
                raise InvalidKeyError(
                    "recall.tokenizer" if keys.tokenizer else "model", str(error)
                ) from error


def run(stage: EvaluateStage, context: Context) -> Mapping[str, Any]:
    """Scores the model, writes `scores.json` and `samples.jsonl`, and returns the scores by length."""
    from pipelines.evaluate.run import evaluate

    scores = evaluate(stage, context)
    scores.write(context.output)
    recall = {length: scores.recall_at(length) for length in scores.recall_lengths}
    perplexity = {score.length: score.perplexity for score in scores.perplexity}
    headline = []
    if recall:
        longest = max(recall)
        headline.append(f"recall {recall[longest]:.1%} at {longest:,}")
    if perplexity:
        longest = max(perplexity)
        headline.append(f"perplexity {perplexity[longest]:.2f} at {longest:,}")
    return {"headline": ", ".join(headline), "recall": recall, "perplexity": perplexity}


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(f"{repeated[0]} is given twice")
    return values


def _check_shards(keys: PerplexitySection, context: CheckContext) -> None:
    found = context.require_stage_or_path("perplexity.data", keys.data, kinds=("prepare",))
    if found is None:
        return
    prepared = found.stage.model_dump()
    longest, sequence_length = max(keys.lengths), prepared["sequence_length"]
    if longest > sequence_length:
        raise InvalidKeyError(
            f"perplexity.lengths.{keys.lengths.index(longest)}",
            f"{longest} is more than sequence_length {sequence_length} of stage '{keys.data}'",
        )
    if keys.split == "holdout" and not prepared["holdout"]:
        what = f"stage '{keys.data}' holds no rows out; give it holdout: 0.05, or set split: train here"
        raise InvalidKeyError("perplexity.data", what)
