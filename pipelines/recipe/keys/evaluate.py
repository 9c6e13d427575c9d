"""The keys of an evaluate stage: which model, with which attention, on what."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from pipelines.errors import InvalidKeyError
from pipelines.recipe.keys.attention import Attention, FullSection
from pipelines.recipe.keys.common import BosKey, Lengths, Precision, RecurrenceKey, distinct
from pipelines.recipe.keys.harness import HarnessSection
from pipelines.recipe.keys.needles import RECALL_TASKS, RecallTask
from pipelines.recipe.keys.ruler import RulerSection
from pipelines.recipe.keys.section import Section, StageKeys
from pipelines.recipe.path_keys import MODEL, TOKENIZER, StageOrPath


class RecallSection(Section):
    """Needle recall: `samples` prompts of every task at every length.

    Attributes:
        lengths: tokens in a prompt, its questions and answers included.
        samples: prompts of each task at each length.
        tasks: RULER's needle tasks in miniature: one needle, one of many, many of many, and chains of keys.
        tokenizer: tokenizer of the prompts; default: the model's own.
    """

    lengths: Lengths
    samples: PositiveInt = 64
    tasks: Annotated[tuple[RecallTask, ...], Field(min_length=1)] = RECALL_TASKS
    tokenizer: Annotated[str | None, TOKENIZER] = None

    @field_validator("lengths", "tasks")
    @classmethod
    def _no_repetition(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return distinct(values)


class PerplexitySection(Section):
    """Perplexity of the same tokens at growing context; see `pipelines.evaluate.perplexity`.

    Attributes:
        data: a prepare stage, or a folder of shards.
        split: which rows of the data to score.
        lengths: context lengths in tokens, the scored tokens included.
        rows: the largest number of documents to score.
        scored: how many tokens at the end of a document count; default: half the shortest length.
        positions: into how many bins of positions the loss of all tokens is summed at the greatest length; 0
            for none.
    """

    data: StageOrPath
    split: Literal["holdout", "train"] = "holdout"
    lengths: Lengths
    rows: PositiveInt = 64
    scored: PositiveInt | None = None
    positions: NonNegativeInt = 16

    @field_validator("lengths")
    @classmethod
    def _no_repetition(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        return distinct(values)

    @model_validator(mode="after")
    def _context_before_scored(self) -> PerplexitySection:
        if self.scored is not None and self.scored >= min(self.lengths):
            raise InvalidKeyError("scored", f"must be less than the shortest length, {min(self.lengths)}")
        return self

    @property
    def scored_tokens(self) -> int:
        """How many tokens of each document count."""
        return self.scored or min(self.lengths) // 2


def check_sees_nothing_ahead(attention: Attention) -> None:
    """Refuses attention by which an answer is seen before it is given.

    Raises:
        InvalidKeyError: names the key.
    """
    # selection: chunk looks at every query of a chunk, and the answers stand among them.
    if attention.kind == "span" and attention.selection == "chunk":
        raise InvalidKeyError(
            "attention.selection",
            "'chunk' lets later tokens decide what earlier ones see; scores need 'causal'",
        )


class WorkerResources(Section):
    """Resources of one worker.

    Attributes:
        cpus: logical CPUs, which is also the number of threads; default: one, or a part of one where this
            machine has fewer cores than workers that share a row.
        gpus: by default one where the cluster has, or its autoscaler can start, nodes with GPUs.
    """

    cpus: PositiveInt | None = None
    gpus: Literal[0, 1] | None = None


class EvaluateKeys(StageKeys):
    """The keys below `evaluate:`.

    Attributes:
        model: a train stage, `builtin:tiny`, `builtin:ruler-tiny`, a folder or a hub name.
        attention: what the attention layers compute while the model is scored.
        recurrence: what computes recurrent layers, as in a train stage; with `auto` and full attention
            transformers does, or the model's own code.
        recall: needle recall; left out, it is not measured.
        perplexity: perplexity by length; left out, it is not measured.
        ruler: RULER's tasks; left out, none is run.
        harness: tasks of lm-eval; left out, none is run.
        bos: begin prompts, and what precedes the scored tokens, with the beginning-of-sequence token, which
            their lengths include; `auto` does as the model's tokenizer does, or else as the perplexity data.
        workers: Ray actors that score in parallel; default: as many as the cluster has room for. Their
            number does not change the scores.
        context_parallel: workers that share each prompt or document, equal parts of it; divides `workers`.
        resources: CPUs and GPUs of each worker.
        tokens_per_batch: the most tokens that go through the model together, unless a single row has more.
        precision: type of weights and arithmetic; `auto` is bf16 on GPUs that support it, else fp32.
    """

    execution_keys: ClassVar[frozenset[str]] = frozenset({"workers"})

    model: Annotated[str, MODEL]
    attention: Attention = FullSection()
    recurrence: RecurrenceKey = "auto"
    recall: RecallSection | None = None
    perplexity: PerplexitySection | None = None
    ruler: RulerSection | None = None
    harness: HarnessSection | None = None
    bos: BosKey = "auto"
    workers: PositiveInt | None = None
    context_parallel: PositiveInt = 1
    resources: WorkerResources = WorkerResources()
    tokens_per_batch: PositiveInt = 4096
    precision: Precision = "auto"

    @model_validator(mode="after")
    def _something_to_score(self) -> EvaluateKeys:
        if all(measure is None for measure in (self.recall, self.perplexity, self.ruler, self.harness)):
            raise InvalidKeyError(
                "", "nothing to evaluate; give recall, perplexity, ruler or harness, or several of them"
            )
        return self

    @model_validator(mode="after")
    def _sees_nothing_ahead(self) -> EvaluateKeys:
        check_sees_nothing_ahead(self.attention)
        return self

    @model_validator(mode="after")
    def _generates_alone(self) -> EvaluateKeys:
        if self.ruler is not None and self.context_parallel > 1:
            raise InvalidKeyError(
                "ruler",
                "its answers are generated, which one worker does alone; leave context_parallel out, or "
                "measure recall and perplexity over several workers",
            )
        return self

    @model_validator(mode="after")
    def _whole_groups(self) -> EvaluateKeys:
        if self.workers is not None and self.workers % self.context_parallel:
            raise InvalidKeyError(
                "context_parallel",
                f"{self.context_parallel} does not divide workers ({self.workers}), which are dealt to rows "
                "in groups of that size",
            )
        return self

    def references(self) -> tuple[str, ...]:
        """The model and the shards."""
        return (self.model, self.perplexity.data) if self.perplexity else (self.model,)
