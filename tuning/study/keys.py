"""What `tune` and `compare` share: a base training, how its result is scored, how trials differ."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, PositiveInt, ValidationError, model_validator

from pipelines.errors import InvalidKeyError
from pipelines.recipe.keys.attention import RULES, Attention, FullSection
from pipelines.recipe.keys.common import BosKey, Precision, RecurrenceKey
from pipelines.recipe.keys.evaluate import (
    EvaluateKeys,
    PerplexitySection,
    RecallSection,
    check_sees_nothing_ahead,
)
from pipelines.recipe.keys.section import Section, StageKeys
from pipelines.recipe.keys.train import TrainKeys
from pipelines.recipe.path_keys import Reference


class Scoring(Section):
    """How each trial is scored: the keys of an evaluate stage, less the model.

    Attributes:
        attention: what the attention layers compute while the model is scored.
        recurrence: as in an evaluate stage.
        recall: needle recall; trials are ordered by it, so it cannot be left out.
        perplexity: perplexity by length; left out, it is not measured.
        bos: as in an evaluate stage.
        tokens_per_batch: tokens that go through the model together, at most.
        precision: as in an evaluate stage.
    """

    attention: Attention = FullSection()
    recurrence: RecurrenceKey = "auto"
    recall: RecallSection
    perplexity: PerplexitySection | None = None
    bos: BosKey = "auto"
    tokens_per_batch: PositiveInt = 4096
    precision: Precision = "auto"

    @model_validator(mode="after")
    def _sees_nothing_ahead(self) -> Scoring:
        check_sees_nothing_ahead(self.attention)
        return self

    def of(self, model: str) -> EvaluateKeys:
        """Returns the keys of an evaluation that scores `model` with one worker."""
        return EvaluateKeys.model_validate({**self.model_dump(), "model": model, "workers": 1})


class StudyKeys(StageKeys):
    """Base of `tune` and `compare`.

    Attributes:
        train: keys of a train stage, which every trial starts from.
        evaluate: how every trial is scored.
        concurrent: trials that train side by side.
    """

    execution_keys: ClassVar[frozenset[str]] = frozenset({"concurrent"})

    train: TrainKeys
    evaluate: Scoring
    concurrent: Annotated[int, Field(ge=1)] = 1

    def references(self) -> tuple[str, ...]:
        """What the base training and the scoring refer to."""
        scored = (self.evaluate.perplexity.data,) if self.evaluate.perplexity else ()
        return (*self.train.references(), *scored)


def absolute_change(key: str, value: Any, stages: Collection[str]) -> Any:
    """Returns the value of a changed key of a training, its path absolute if it is one."""
    field = TrainKeys.model_fields.get(key)
    marks = [each for each in field.metadata if isinstance(each, Reference)] if field else []
    return marks[0].absolute(value, stages) if marks and isinstance(value, str) else value


def with_changes(base: TrainKeys, changes: Mapping[str, Any], key: str) -> TrainKeys:
    """Returns `base` with other values at dotted keys (`attention.top_k`); a mapping replaces the whole key.

    Raises:
        InvalidKeyError: a key does not exist, or the result is not a train stage; `key` says where it stood.
    """
    keys = copy.deepcopy(base.model_dump())
    for dotted, value in changes.items():
        *folders, last = dotted.split(".")
        section = keys
        for folder in folders:
            inner = section.get(folder)
            if not isinstance(inner, dict):
                raise InvalidKeyError(key, f"train has no key '{dotted}'")
            section = inner
        section[last] = value
        if last == "rule":  # in place of the words that the base was written with
            for word in RULES["default"]:
                section.pop(word, None)
    try:
        return TrainKeys.model_validate(keys)
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        what = (
            str(cause) if isinstance(cause, InvalidKeyError) else f"{_dotted(first['loc'])}: {first['msg']}"
        )
        raise InvalidKeyError(key, f"gives no valid training: {what}") from None


def _dotted(location: tuple[str | int, ...]) -> str:
    return ".".join(map(str, location))
