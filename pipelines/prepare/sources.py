"""What a corpus is made of, as a recipe says it: files of text, and generated documents with needles."""

from __future__ import annotations

import codecs
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, field_validator

from pipelines import storage
from pipelines.errors import InvalidKeyError
from pipelines.needles import NeedleDocuments
from pipelines.stage import Section

AUTO_ENCODING = "auto"
COMPRESSIONS = {".jsonl.zst": "zstd", ".jsonl.gz": "gzip"}
ENDINGS = (".txt", ".jsonl", *COMPRESSIONS, ".parquet")

Weight = Annotated[float | None, Field(gt=0, allow_inf_nan=False)]


class PathSource(Section):
    """Documents in files.

    A `.txt` file is one document; a `.jsonl` file (also `.jsonl.zst`, `.jsonl.gz`) has one on each line, a
    `.parquet` file one in each row, in the field `text`. Byte-order marks are stripped, and line ends of
    `.txt` files become line feeds.

    Attributes:
        path: a file, a folder (all files below it whose ending is known) or a glob; a path or an fsspec URL.
        text: the field of a JSON line or Parquet row that holds the document.
        weight: this source's share of all drawn tokens, see `PrepareStage`.
        encoding: of `.txt` and `.jsonl` files: any of Python's, or `auto` for UTF-8 and, where a document
            is not valid UTF-8, Latin-1.
    """

    path: Annotated[str, Field(min_length=1)]
    text: Annotated[str, Field(min_length=1)] = "text"
    weight: Weight = None
    encoding: str = "utf-8"

    @field_validator("encoding")
    @classmethod
    def _known(cls, encoding: str) -> str:
        if encoding == AUTO_ENCODING:
            return encoding
        try:
            return codecs.lookup(encoding).name
        except LookupError:
            raise ValueError(f"unknown encoding '{encoding}'; try utf-8, latin-1 or auto") from None

    @property
    def label(self) -> str:
        """What manifests call this source."""
        return self.path

    def files(self) -> list[str]:
        """Returns the files of this source, sorted.

        Raises:
            InvalidKeyError: nothing is there, or nothing with a known ending.
        """
        found = storage.glob(self.path)
        if not found:
            raise InvalidKeyError("path", f"no file matches '{self.path}'")
        usable = [file for file in found if file.endswith(ENDINGS)]
        if not usable:
            known = ", ".join(ENDINGS)
            raise InvalidKeyError("path", f"no file of '{self.path}' has a known ending ({known})")
        return usable


class NeedlesSource(Section):
    """Generated documents: filler text with needles and questions about them.

    The documents differ from those of every other source and stage of the recipe, whatever their settings.

    Attributes:
        needles: what a document looks like.
        documents: how many to generate.
        weight: this source's share of all drawn tokens, see `PrepareStage`.
    """

    needles: NeedleDocuments
    documents: Annotated[int, Field(ge=1)]
    weight: Weight = None

    @property
    def label(self) -> str:
        """What manifests call this source."""
        return "needles"


def file_size(file: str) -> int:
    """Returns the size of a file in bytes."""
    file_system, path = storage.filesystem(file)
    return int(file_system.size(path))


def _kind(value: Any) -> str:
    is_needles = "needles" in value if isinstance(value, dict) else isinstance(value, NeedlesSource)
    return "needles source" if is_needles else "path source"


Source = Annotated[
    Annotated[PathSource, Tag("path source")] | Annotated[NeedlesSource, Tag("needles source")],
    Discriminator(_kind),
]
