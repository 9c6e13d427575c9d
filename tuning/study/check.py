"""What can be said of a study before anything starts: what its base training and its scoring say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from pipelines.context import Check, CheckContext, EarlierStage
from pipelines.errors import InvalidKeyError
from pipelines.evaluate import check as evaluation
from pipelines.train import check as training
from tuning.study.keys import StudyKeys
from tuning.study.trial import TRAINED, Trial


def study_check(trials_of: Callable[[Any, int], Sequence[Trial]]) -> Check:
    """Returns what is asked of a kind of study, whose trials `trials_of(keys, seed)` lists."""

    def plan(keys: StudyKeys, context: CheckContext) -> Mapping[str, str]:
        count = len(trials_of(keys, context.seed))
        return {"trials": f"{count}, {keys.concurrent} at a time", **training.plan(keys.train, context)}

    return Check(check=check, plan=plan, external_inputs=external_inputs)


def external_inputs(keys: StudyKeys) -> tuple[str, ...]:
    """Returns the files that the base training and the scoring read."""
    scored = evaluation.inputs_of_scoring(keys.evaluate.recall, keys.evaluate.perplexity)
    return (*training.external_inputs(keys.train), *scored)


def check(keys: StudyKeys, context: CheckContext) -> None:
    """Refuses what the base training or the scoring refuses.

    Raises:
        InvalidKeyError: names the key, below `train` or `evaluate`.
    """
    with _below("train"):
        training.check(keys.train, context)
    trained = EarlierStage(TRAINED, "train", keys.train, context.output)
    with _below("evaluate"):
        evaluation.check(
            keys.evaluate.of(TRAINED), replace(context, earlier={**context.earlier, TRAINED: trained})
        )


@contextmanager
def _below(key: str) -> Iterator[None]:
    """Names the keys in errors as they are named from outside `key`."""
    try:
        yield
    except InvalidKeyError as error:
        raise InvalidKeyError(
            ".".join(filter(None, (key, error.key))), error.what, error.suggestion
        ) from error
