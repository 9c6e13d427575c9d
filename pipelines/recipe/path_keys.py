"""What a key of a recipe may name besides plain values: files, earlier stages, models and tokenizers.

Such keys carry a mark in their type. `Section.absolute` reads it, so that every process is given the same
place: a path is made absolute once, in the driver. A name stays as it is: of a stage, of what ships with the
package, of a model on the hub.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

from pipelines.recipe.references import is_builtin, is_hub_name
from pipelines.system.locations import absolute, is_remote, local_path


@dataclass(frozen=True)
class Reference:
    """The mark of a key that holds, or lists, paths.

    Attributes:
        stage: the value may also be the name of an earlier stage, which then takes precedence.
        hub: the value may also be a name on the model hub (`name` or `owner/name`); an existing path wins.
        folder: where it might be a name, only an existing folder makes it a path.
    """

    stage: bool = False
    hub: bool = False
    folder: bool = False

    def absolute(self, written: str, stages: Collection[str]) -> str:
        """Returns `written` with its path made absolute; names stay.

        A word without a slash that is not a path is treated as a misspelt name, and stays as well.
        """
        if (self.stage and written in stages) or is_builtin(written) or is_remote(written):
            return written
        there = os.path.isdir if self.folder else os.path.exists
        return written if self._may_be_name(written) and not there(local_path(written)) else absolute(written)

    def _may_be_name(self, written: str) -> bool:
        if self.hub:
            return is_hub_name(written)
        return self.stage and "/" not in written and not written.startswith((".", "~"))


def _not_empty(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    return text


# Not Field(min_length=1): pydantic would refuse names of files that are not UTF-8.
NotEmpty = AfterValidator(_not_empty)
Path = Annotated[str, NotEmpty, Reference()]
StageOrPath = Annotated[str, Reference(stage=True)]
TOKENIZER = Reference(hub=True)
MODEL = Reference(stage=True, hub=True, folder=True)
