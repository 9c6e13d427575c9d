"""RULER's tasks: prompts made once, in parallel, and kept beside the scores as tasks of lm-eval."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import ray

from pipelines.evaluate.harness.measure import Label
from pipelines.evaluate.harness.tasks import Loaded, load_tasks, task_manager
from pipelines.models.tokenizers import load_tokenizer, tokenizer_hash
from pipelines.recipe.keys.ruler import RULER_GROUPS, QuestionTask, RulerSection, RulerTask
from pipelines.ruler.compositions import Sources
from pipelines.ruler.essays import read_essays
from pipelines.ruler.questions import read_questions
from pipelines.ruler.tasks import needs_essays
from pipelines.ruler.write import (
    PromptsKey,
    RulerManifest,
    TaskEntry,
    prompts_key,
    write,
    write_documents,
    write_tasks,
)
from pipelines.system import storage
from pipelines.system.capacity import cluster_capacity
from pipelines.system.progress import Progress
from pipelines.system.reserved_tasks import failure_of

METRIC = "string_match"
"""Mean over prompts of the fraction of expected strings that the text holds."""


@dataclass(frozen=True)
class _Data:
    """Where the texts lie that prompts are made of."""

    essays: str | None
    questions: tuple[tuple[QuestionTask, str], ...]
    needs_essays: bool

    def read(self) -> Sources:
        return Sources(
            essays=read_essays(self.essays) if self.needs_essays else None,
            questions={task: read_questions(task, place) for task, place in self.questions},
        )


def make_prompts(
    keys: RulerSection, folder: str, *, tokenizer: str, seed: int, label: str, progress: Progress
) -> RulerManifest:
    """Makes the prompts below `folder`, unless they are there already; returns what they are.

    tokenizer: its reference; label: for progress.

    Raises:
        EspanError: a length is impossible for a task, data is missing, or the tokenizer does not know the
            prompts' words.
    """
    data = _Data(keys.essays, _questions(keys), any(map(needs_essays, keys.tasks)))
    loaded = load_tokenizer(tokenizer)
    key = prompts_key(
        tasks=keys.tasks,
        lengths=keys.lengths,
        samples=keys.samples,
        seed=seed,
        tokenizer=loaded,
        reference=tokenizer,
        tokenizer_sha256=tokenizer_hash(loaded),
        sources=data.read(),
    )
    return write(folder, key, lambda: _made(folder, key, data, _in_order(keys), label, progress))


def load_prompts(folder: str, manifest: RulerManifest) -> tuple[Loaded, dict[str, Label]]:
    """Returns the prompts as loaded tasks of lm-eval, and what each is called in the scores."""
    labels = {
        entry.name: Label(entry.task, RULER_GROUPS[entry.task], entry.length, {str(entry.length): METRIC})
        for entry in manifest.entries
    }
    with tempfile.TemporaryDirectory(prefix="espan-ruler-") as scratch:
        place = folder
        if storage.is_remote(folder):  # lm-eval looks for tasks in a local folder
            place = scratch
            storage.download_folder(folder, scratch)
            write_tasks(scratch, manifest)
        return load_tasks(list(labels), task_manager(place, builtin=False), fewshot=0), labels


def depth(document: Mapping[str, Any]) -> float | None:
    """Where in a document the answer stands, from 0 to 1; None where it stands in no one place."""
    return document.get("depth")


def _in_order(keys: RulerSection) -> list[tuple[RulerTask, int]]:
    """Tasks and lengths in the order in which their prompts are made.

    The shortest come first, since a length that is too short for a task shows there; then the longest, which
    take longest.
    """
    shortest, *others = sorted(keys.lengths)
    return [(task, length) for length in (shortest, *reversed(others)) for task in keys.tasks]


def _questions(keys: RulerSection) -> tuple[tuple[QuestionTask, str], ...]:
    given: dict[QuestionTask, str | None] = {"qa_squad": keys.squad, "qa_hotpot": keys.hotpot}
    return tuple((task, place) for task, place in given.items() if place is not None and task in keys.tasks)


def _made(
    folder: str,
    key: PromptsKey,
    data: _Data,
    order: Sequence[tuple[RulerTask, int]],
    label: str,
    progress: Progress,
) -> dict[tuple[RulerTask, int], TaskEntry]:
    """Has the documents of every task and length written by Ray tasks, as many at once as there is room for.

    When one fails, those that run are waited for, or what they write could come after the prompts of a run
    that follows. Cancelled they are not: Ray (2.60) may abort the process that cancels a task while the task
    ends ("Tried to complete task that was not pending").
    """
    make = ray.remote(_make).options(num_cpus=1, scheduling_strategy="DEFAULT")
    # A cluster that can grow does so for tasks that wait.
    there = cluster_capacity()
    at_once = len(order) if there.unknown else max(1, there.room({"CPU": 1.0}))
    waiting = deque(order)
    running: dict[ray.ObjectRef, tuple[RulerTask, int]] = {}
    entries: dict[tuple[RulerTask, int], TaskEntry] = {}
    with progress.task(f"{label}: prompts", total=len(order), unit="tasks") as shown:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    where = waiting.popleft()
                    running[make.remote(folder, key, *where, data)] = where
                (ready, *_), _ = ray.wait(list(running), num_returns=1)
                entries[running.pop(ready)] = ray.get(ready)
                shown.advance()
        except ray.exceptions.RayError as error:
            ray.wait(list(running), num_returns=len(running))
            raise failure_of(error, "making RULER's prompts failed") from error
    return entries


def _make(folder: str, key: PromptsKey, task: RulerTask, length: int, data: _Data) -> TaskEntry:
    tokenizer = load_tokenizer(key.tokenizer)
    return write_documents(folder, key, task, length, tokenizer=tokenizer, sources=_sources(data))


@lru_cache(maxsize=1)
def _sources(data: _Data) -> Sources:
    """The texts, read once in each process."""
    return data.read()
