"""Which backend will compute each recurrence of a model, as far as this machine tells."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.models.configuration import Described
from pipelines.models.fitting import attention_config
from pipelines.train.plan.architecture import skeleton
from pipelines.train.recurrences import Found, recurrences_in, recurrences_text

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from pipelines.recipe.keys.train import TrainKeys


def planned_recurrences(keys: TrainKeys, model: Described | None, *, gpu: bool) -> dict[str, str]:
    """Returns the plan's line about the recurrences of the model; none where it has none or is unknown."""

    def find(configuration: PreTrainedConfig) -> list[Found]:
        return recurrences_in(skeleton(configuration, attention_config(keys.attention, 0)))

    if model is None:
        return {}
    asked = keys.attention.model_dump(mode="json")
    found = [Found(*each) for each in model.remembered("recurrences", asked, find)]
    return {"recurrences": recurrences_text(found, gpu=gpu)} if found else {}
