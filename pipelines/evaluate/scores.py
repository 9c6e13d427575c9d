"""The format of `scores.json`: what an evaluation found, on which machine, with which versions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.errors import EspanError
from pipelines.system import storage

SCORES_FILE = "scores.json"
SAMPLES_FILE = "samples.jsonl"
# exp() of more is not a float, and JSON has no infinity.
_LARGEST_EXPONENT = 700.0


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class RecallScore(_Record):
    """Recall of one task at one length.

    Attributes:
        length: tokens in a prompt, the questions and answers included.
        samples: prompts scored.
        answers: expected answers over all prompts.
        recall: mean over prompts of the fraction of expected answers that the model gives, as RULER scores.
        standard_error: of `recall`, from the spread between prompts.
        exact: fraction of prompts with every answer right.
    """

    task: str
    length: int
    samples: int
    answers: int
    recall: float
    standard_error: float
    exact: float

    @classmethod
    def of(cls, task: str, length: int, outcomes: Sequence[Sequence[bool]]) -> RecallScore:
        """Sums up `outcomes`: for each prompt, whether each of its answers was given."""
        fractions = [sum(prompt) / len(prompt) for prompt in outcomes]
        mean = math.fsum(fractions) / len(fractions)
        squares = math.fsum((fraction - mean) ** 2 for fraction in fractions)
        return cls(
            task=task,
            length=length,
            samples=len(outcomes),
            answers=sum(map(len, outcomes)),
            recall=mean,
            standard_error=math.sqrt(squares / max(1, len(fractions) - 1) / len(fractions)),
            exact=sum(map(all, outcomes)) / len(outcomes),
        )


class PerplexityScore(_Record):
    """Perplexity of the same tokens when `length` tokens, themselves included, are in view.

    Attributes:
        length: tokens in a window.
        windows: windows scored, each from another document.
        scored_tokens: tokens whose loss counts, over all windows.
        loss: mean negative log-likelihood in nats per scored token.
        perplexity: `exp(loss)`.
        standard_error: of `loss`, from the spread between windows.
    """

    length: int
    windows: int
    scored_tokens: int
    loss: float
    perplexity: float
    standard_error: float

    @classmethod
    def of(cls, length: int, scored: int, window_losses: Sequence[float]) -> PerplexityScore:
        """Sums up `window_losses`: nats summed over the `scored` last tokens of each window.

        Raises:
            EspanError: a loss is infinite or not a number.
        """
        means = [loss / scored for loss in window_losses]
        mean = math.fsum(means) / len(means)
        if not math.isfinite(mean):
            raise EspanError(
                f"perplexity at {length} tokens: the loss is not a number; check weights and precision"
            )
        squares = math.fsum((window - mean) ** 2 for window in means)
        return cls(
            length=length,
            windows=len(means),
            scored_tokens=scored * len(means),
            loss=mean,
            perplexity=math.exp(min(mean, _LARGEST_EXPONENT)),
            standard_error=math.sqrt(squares / max(1, len(means) - 1) / len(means)),
        )


ByHead = tuple[tuple[float | None, ...], ...]
"""For each layer one share for each key/value head; None where a layer had no cases."""


class RetrievalScore(_Record):
    """How often the memory blocks that are chosen hold the needles, at one length of all tasks' prompts.

    Attributes:
        length: tokens in a prompt.
        asked: share of the needles asked for, among those that could be chosen, whose block is chosen.
        not_asked: the same for needles that are not asked for; None where there are none.
        chance: what `asked` would be for blocks drawn at random.
        asked_by_head: `asked` by layer and key/value head; `not_asked_by_head` the same for the others.
    """

    length: int
    asked: float
    not_asked: float | None = None
    chance: float
    asked_by_head: ByHead
    not_asked_by_head: ByHead | None = None


class Scores(_Record):
    """Everything in `scores.json`.

    Attributes:
        model: the model as the recipe names it.
        attention: what every attention layer computed while it was scored, as a recipe writes it.
        precision: of the weights and the arithmetic.
        seed: of the prompts.
        retrieval: by length; left out of the file where no attention chooses blocks, and so it is missing
            from files older than it.
        seconds: wall-clock time of the scoring, models' loading included.
        machine: what it ran on.
        versions: of the packages that decide the numbers.
    """

    format: Literal["espan-scores/1"] = "espan-scores/1"
    model: str
    attention: Mapping[str, Any]
    precision: str
    seed: int
    recall: tuple[RecallScore, ...] = ()
    perplexity: tuple[PerplexityScore, ...] = ()
    retrieval: Annotated[tuple[RetrievalScore, ...], Field(exclude_if=lambda scores: not scores)] = ()
    seconds: float
    machine: Mapping[str, Any] = Field(default_factory=dict)
    versions: Mapping[str, str] = Field(default_factory=dict)

    @property
    def recall_lengths(self) -> tuple[int, ...]:
        """Every length at which recall was measured, ascending."""
        return tuple(sorted({score.length for score in self.recall}))

    @property
    def recall_tasks(self) -> tuple[str, ...]:
        """Every task, in the order of the recipe."""
        return tuple(dict.fromkeys(score.task for score in self.recall))

    def recall_at(self, length: int, task: str | None = None) -> float | None:
        """Recall of `task`, or the mean over all tasks, at `length`; None where it was not measured."""
        values = [
            score.recall for score in self.recall if score.length == length and task in (None, score.task)
        ]
        return math.fsum(values) / len(values) if values else None

    def recall_error_at(self, length: int) -> float | None:
        """Standard error of the mean over all tasks at `length`; None where recall was not measured."""
        errors = [score.standard_error for score in self.recall if score.length == length]
        return math.sqrt(math.fsum(error**2 for error in errors)) / len(errors) if errors else None

    def perplexity_at(self, length: int) -> PerplexityScore | None:
        """Perplexity at `length`; None where it was not measured."""
        return next((score for score in self.perplexity if score.length == length), None)

    @classmethod
    def read(cls, folder: str) -> Scores:
        """Reads `scores.json` of an evaluation's folder.

        Raises:
            EspanError: there is none, or it does not hold the format.
        """
        path = storage.join(folder, SCORES_FILE)
        try:
            return cls.model_validate(storage.read_json(path))
        except FileNotFoundError as error:
            raise EspanError(f"{path}: not found; run the evaluate stage first") from error
        except (ValidationError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise EspanError(
                f"{path}: is not in format espan-scores/1 ({first}); run the evaluate stage again"
            ) from error

    def write(self, folder: str) -> str:
        """Writes `scores.json` into `folder`, whole or not at all, and returns its path."""
        path = storage.join(folder, SCORES_FILE)
        storage.write_json_atomic(path, self.model_dump(mode="json"))
        return path
