"""What is refused of RULER and of lm-eval's tasks before anything starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.context import CheckContext
from pipelines.errors import EspanError, InvalidKeyError
from pipelines.evaluate.harness.tasks import check_names, task_manager
from pipelines.models.architecture import described_model
from pipelines.recipe.keys.evaluate import EvaluateKeys
from pipelines.recipe.keys.harness import TASK_LISTS, HarnessSection
from pipelines.recipe.keys.ruler import RulerSection
from pipelines.ruler.essays import read_essays
from pipelines.ruler.tasks import needs_essays
from pipelines.system import storage

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def check_harness(keys: HarnessSection) -> None:
    """Refuses a folder of tasks that is not there, and names of tasks that nobody knows.

    Raises:
        InvalidKeyError: names the key.
    """
    if keys.include is not None:
        if storage.is_remote(keys.include):
            what = "lm-eval reads task files from a folder of this machine; copy them to one"
            raise InvalidKeyError("harness.include", f"{keys.include}: {what}")
        if not storage.is_folder(keys.include):
            raise InvalidKeyError("harness.include", f"{keys.include}: no such folder of task files")
    # lm-eval's own index takes seconds to read: only where a name is none of this package's lists.
    if not all(name in TASK_LISTS for name in keys.tasks):
        check_names(keys.tasks, task_manager(keys.include, keys.tasks))


def check_ruler(keys: RulerSection, stage: EvaluateKeys, context: CheckContext) -> None:
    """Refuses texts that are not there, and lengths that the model does not read.

    Raises:
        InvalidKeyError: names the key.
    """
    if keys.essays is not None and any(map(needs_essays, keys.tasks)):
        try:
            read_essays(keys.essays)
        except EspanError as error:
            raise InvalidKeyError("ruler.essays", str(error)) from error
    for name, place in (("squad", keys.squad), ("hotpot", keys.hotpot)):
        if place is not None and not storage.exists(place):
            raise InvalidKeyError(f"ruler.{name}", f"{place}: no such file of questions")
    model = described_model(stage.model, context)
    if model is not None:
        check_lengths(keys, stage.model, model.remembered("positions", None, positions_of))


def check_lengths(keys: RulerSection, model: str, positions: int | None) -> None:
    """Refuses lengths beyond the positions of a model, if that has a known number.

    Raises:
        InvalidKeyError: `ruler.lengths.N`.
    """
    longest = max(keys.lengths)
    if positions is not None and longest > positions:
        raise InvalidKeyError(
            f"ruler.lengths.{keys.lengths.index(longest)}",
            f"{longest:,} tokens are more than the {positions:,} positions of {model}; lower it",
        )


def positions_of(config: PreTrainedConfig) -> int | None:
    """Returns how many tokens a model reads, as lm-eval finds it; None where its configuration is silent."""
    from lm_eval.models.utils import resolve_max_length

    return resolve_max_length(config, default=0) or None
