"""What a stage was made from: its fingerprint, and the record that says it is finished.

A stage is finished when `<workspace>/<stage>/stage.json` holds its fingerprint. That file is written last and
atomically; `started.json` is written first, so that an unfinished folder says what it was going to be.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pipelines.models import hub
from pipelines.recipe.parse import ResolvedRecipe, ResolvedStage
from pipelines.system import storage

FORMAT = "espan-stage/1"
FINISHED, STARTED = "stage.json", "started.json"
_HASHES = ".hashes.json"


@dataclass(frozen=True)
class Identity:
    """What decides whether a stage must run again.

    Attributes:
        fingerprint: SHA-256 over kind, keys, seed, the stages it uses and the files it reads.
        inputs: fingerprints of the stages it uses, by name.
        files: content hash of every file it reads from outside the workspace.
    """

    fingerprint: str
    inputs: Mapping[str, str]
    files: Mapping[str, str]


def identify(
    recipe: ResolvedRecipe, stage: ResolvedStage, known: Mapping[str, Identity], hashes: FileHashes
) -> Identity:
    """Returns the identity of `stage`, given those of the stages before it.

    A place among its `external_inputs` that names an earlier stage, or lies below one, is covered by that
    stage's fingerprint; one where nothing is counts as nothing: `Stage.check` says whether it must be there.
    A name on the model hub counts by its commit.

    Raises:
        EspanError: nobody knows which commit a name on the hub stands for.
    """
    inputs = {name: known[name].fingerprint for name in stage.depends}
    outside = [
        place
        for place in stage.stage.external_inputs()
        if place.removeprefix(hub.MARK).split("/")[0] not in inputs
    ]
    files = {file: hashes.of(file) for file in stage.stage.files_read()}
    for place in outside:
        if place.startswith(hub.MARK):
            files[place] = hub.pinned(place.removeprefix(hub.MARK))
        else:
            files |= {file: hashes.of(file) for file in storage.glob(place)}
    # As written: absolute paths would make a moved checkout another input.
    keys = stage.stage.written.model_dump(mode="json", exclude=set(stage.stage.execution_keys))
    # Names without folders: the same files elsewhere, as in a moved checkout, are the same input.
    contents = [[os.path.basename(file), content] for file, content in files.items()]
    content = {
        "kind": stage.kind.name,
        "keys": keys,
        "seed": recipe.seed,
        "inputs": inputs,
        "files": contents,
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return Identity(hashlib.sha256(storage.encode(canonical)).hexdigest(), inputs, files)


@dataclass
class FileHashes:
    """Content hashes of files, remembered in the workspace by size, time of change and inode.

    A corpus of many gigabytes is read once for its hash and not again at every start.
    """

    place: str
    remembered: dict[str, list[Any]] = field(default_factory=dict)
    changed: bool = False

    @classmethod
    def load(cls, workspace: str) -> FileHashes:
        """Reads what earlier runs in `workspace` remembered; an unreadable file is the same as none."""
        place = storage.join(workspace, _HASHES)
        try:
            return cls(place, dict(storage.read_json(place)))
        except (FileNotFoundError, ValueError):
            return cls(place)

    def of(self, file: str) -> str:
        """Returns the content hash of one file."""
        if storage.is_remote(file):
            return storage.content_hash(file)
        name = storage.absolute(file)
        status = os.stat(name)  # of what a link leads to, which may change while the link does not
        mark = [status.st_size, status.st_mtime_ns, status.st_ino]
        remembered = self.remembered.get(name)
        if remembered is None or remembered[:-1] != mark:
            self.remembered[name] = [*mark, storage.content_hash(name)]
            self.changed = True
        return str(self.remembered[name][-1])

    def save(self) -> None:
        """Writes what was learnt."""
        if self.changed:
            storage.write_json_atomic(self.place, self.remembered)
            self.changed = False


def read_record(output: str, name: str = FINISHED) -> dict[str, Any] | None:
    """Returns a stage's record; None when there is none, or none that can be read."""
    try:
        record = storage.read_json(storage.join(output, name))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("format") == FORMAT else None


def started_record(stage: ResolvedStage, identity: Identity) -> dict[str, Any]:
    """Returns what `started.json` holds."""
    return {
        "format": FORMAT,
        "name": stage.name,
        "kind": stage.kind.name,
        "fingerprint": identity.fingerprint,
        "keys": stage.stage.written.model_dump(mode="json"),
        "inputs": dict(identity.inputs),
        "files": dict(identity.files),
    }


def finished_record(
    recipe: ResolvedRecipe,
    started: Mapping[str, Any],
    result: Mapping[str, Any],
    began: str,
    ended: str,
    seconds: float,
) -> dict[str, Any]:
    """Returns what `stage.json` holds: the above, the whole recipe, versions, times and the stage's result.

    Args:
        began: when the stage started, ISO 8601 in UTC; `ended` likewise.
        seconds: how long it ran; of a resumed stage, the last part only.
    """
    return {
        **started,
        "result": dict(result),
        "began": began,
        "ended": ended,
        "seconds": round(seconds, 3),
        "recipe": recipe.as_dict(),
        "code": code_version(),
        "versions": dependency_versions(),
        "machine": machine(),
    }


@cache
def dependency_versions() -> dict[str, str]:
    """Returns the version of every installed distribution, and of Python."""
    found = {
        dist.metadata["Name"].lower(): dist.version
        for dist in metadata.distributions()
        if dist.metadata["Name"]
    }
    return {"python": platform.python_version(), **dict(sorted(found.items()))}


@cache
def code_version() -> dict[str, str]:
    """Returns the version of this package and, in a git checkout, the commit it is at."""
    version = dependency_versions().get("expansion-span", "not installed")
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return {"version": version}
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return {"version": version, "commit": f"unknown ({type(error).__name__})"}
    return {"version": version, "commit": done.stdout.strip()}


def machine() -> dict[str, Any]:
    """Returns what the stage ran on."""
    from pipelines.system.machine import cpu_count, total_memory

    return {"platform": platform.platform(), "cpus": cpu_count(), "memory_bytes": total_memory()}
