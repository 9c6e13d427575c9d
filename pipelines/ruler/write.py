"""Prompts on disk, the format `espan-ruler/1`: a folder that lm-eval takes as `--include_path`.

    manifest.json                         written last: a folder without one is unfinished
    ruler_vt_4096/ruler_vt_4096.yaml      the task, for lm-eval
    ruler_vt_4096/data.arrow              its documents, an Arrow file, see `pipelines.ruler.generate`

A task names its documents by an absolute path, since lm-eval reads them from wherever it was started. Of a
folder that was copied elsewhere, `write_tasks` writes the tasks anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.errors import EspanError
from pipelines.recipe.keys.ruler import RULER_GROUPS, RulerTask
from pipelines.ruler.compositions import Sources
from pipelines.ruler.generate import generate
from pipelines.ruler.harness import task_yaml
from pipelines.ruler.tasks import needs_essays, task_name
from pipelines.ruler.tokens import check_known
from pipelines.system import storage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MANIFEST = "manifest.json"
DATA = "data.arrow"

_CHECKED = 4
"""Of so many documents the words are looked at; others of the task have the same templates."""

_SCHEMA = pa.schema(
    [
        ("index", pa.int64()),
        ("input", pa.string()),
        ("outputs", pa.list_(pa.string())),
        ("length", pa.int64()),
        ("max_length", pa.int64()),
        ("gen_prefix", pa.string()),
        ("depth", pa.float64()),
        ("input_example", pa.string()),
    ]
)


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PromptsKey(_Record):
    """All that decides what the prompts are.

    Attributes:
        tasks, lengths: prompts are made of every task at every length.
        samples: how many of each.
        seed: of everything that is drawn.
        tokenizer: what the recipe called it; it may be renamed, `tokenizer_sha256` may not.
        tokenizer_sha256: its `tokenizers.tokenizer_hash`.
        beginning: tokens that it begins and ends an empty text with, which lengths include.
        sources: hashes of essays and of questions by task.
    """

    tasks: tuple[RulerTask, ...]
    lengths: tuple[int, ...]
    samples: Annotated[int, Field(ge=1)]
    seed: int
    tokenizer: str
    tokenizer_sha256: str
    beginning: tuple[int, ...] = ()
    sources: dict[str, str]

    def same_as(self, other: PromptsKey) -> bool:
        """Returns whether the prompts are the same."""
        return self.model_copy(update={"tokenizer": other.tokenizer}) == other


class TaskEntry(_Record):
    """One task at one length: lm-eval's name, which is its folder's too, and the documents' file."""

    name: str
    task: RulerTask
    length: int
    rows: int
    bytes: int
    sha256: str


class RulerManifest(_Record):
    """`manifest.json`: what the prompts were made from, and the files that hold them."""

    format: Literal["espan-ruler/1"] = "espan-ruler/1"
    key: PromptsKey
    entries: tuple[TaskEntry, ...]


def prompts_key(
    *,
    tasks: Sequence[RulerTask],
    lengths: Sequence[int],
    samples: int,
    seed: int,
    tokenizer: PreTrainedTokenizerFast,
    reference: str,
    tokenizer_sha256: str,
    sources: Sources,
) -> PromptsKey:
    """Returns the key of prompts; of the sources, it holds those that one of `tasks` uses."""
    hashes: dict[str, str] = {task: each.sha256 for task, each in sources.questions.items() if task in tasks}
    if sources.essays is not None and any(needs_essays(task) for task in tasks):
        hashes["essays"] = sources.essays.sha256
    return PromptsKey(
        tasks=tuple(tasks),
        lengths=tuple(lengths),
        samples=samples,
        seed=seed,
        tokenizer=reference,
        tokenizer_sha256=tokenizer_sha256,
        beginning=tuple(tokenizer("")["input_ids"]),
        sources=hashes,
    )


def write(
    folder: str, key: PromptsKey, make: Callable[[], Mapping[tuple[RulerTask, int], TaskEntry]]
) -> RulerManifest:
    """Writes all prompts of `key` below `folder`, unless they are there; others that are there are replaced.

    make: has `write_documents` write every task at every length, and returns what it returned.

    Raises:
        EspanError: there is a manifest of another format; or what `make` raises.
    """
    found = find_manifest(folder)
    if found is not None and found.key.same_as(key) and _complete(folder, found):
        write_tasks(folder, found)
        return found
    clear(folder)
    made = make()
    entries = tuple(made[task, length] for task in key.tasks for length in key.lengths)
    manifest = RulerManifest(key=key, entries=entries)
    write_tasks(folder, manifest)
    storage.write_json_atomic(storage.join(folder, MANIFEST), manifest.model_dump(mode="json"))
    return manifest


def write_documents(
    folder: str,
    key: PromptsKey,
    task: RulerTask,
    length: int,
    *,
    tokenizer: PreTrainedTokenizerFast,
    sources: Sources,
) -> TaskEntry:
    """Writes one task of `key` at one length; the folder is finished by `write`.

    Raises:
        EspanError: the length is impossible for the task, or the tokenizer does not know the prompts' words.
    """
    indices = range(key.samples)
    documents = generate(task, length, indices=indices, seed=key.seed, tokenizer=tokenizer, sources=sources)
    check_known(tokenizer, task, documents[:_CHECKED])
    content = _arrow(documents)
    name = task_name(task, length)
    storage.write_bytes_atomic(storage.join(folder, name, DATA), content)
    return TaskEntry(
        name=name,
        task=task,
        length=length,
        rows=len(documents),
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def write_tasks(folder: str, manifest: RulerManifest) -> None:
    """Writes every task's YAML, which names the documents where they lie now."""
    for entry in manifest.entries:
        data = storage.absolute(storage.join(folder, entry.name, DATA))
        place = storage.join(folder, entry.name, f"{entry.name}.yaml")
        storage.write_text_atomic(place, task_yaml(entry.task, entry.length, data))


def find_manifest(folder: str) -> RulerManifest | None:
    """Returns the manifest of a finished folder of prompts; None where there is none.

    Raises:
        EspanError: it is not one of this format.
    """
    place = storage.join(folder, MANIFEST)
    if not storage.exists(place):
        return None
    try:
        return RulerManifest.model_validate(storage.read_json(place))
    except (ValidationError, ValueError) as error:
        what = "not a manifest of format espan-ruler/1; remove the folder, or name another"
        raise EspanError(f"{place}: {what}") from error


def clear(folder: str) -> None:
    """Removes the prompts below a folder, the manifest first; whatever else is there stays."""
    storage.remove(storage.join(folder, MANIFEST))
    names = {task_name(task, 0).removesuffix("0") for task in RULER_GROUPS}
    for place in storage.list_folders(folder):
        stem, _, length = place.rpartition("_")
        if length.isdigit() and f"{stem.rpartition('/')[2]}_" in names:
            storage.remove_folder(place)


def _complete(folder: str, manifest: RulerManifest) -> bool:
    for entry in manifest.entries:
        place = storage.join(folder, entry.name, DATA)
        if not storage.exists(place) or storage.file_size(place) != entry.bytes:
            return False
    return True


def _arrow(documents: Sequence[Mapping[str, Any]]) -> bytes:
    """Returns an Arrow file of documents; a field that none of them has is left out."""
    there = [field for field in _SCHEMA if field.name in documents[0]]
    table = pa.Table.from_pylist([dict(document) for document in documents], schema=pa.schema(there))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()
