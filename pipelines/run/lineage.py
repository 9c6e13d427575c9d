"""What a stage is made from: its fingerprint, and what its records say (see `pipelines.records`)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.models import hub
from pipelines.recipe.parse import ResolvedRecipe, ResolvedStage
from pipelines.records import FORMAT
from pipelines.run.stages import check_of
from pipelines.system import storage
from pipelines.system.versions import code_version, dependency_versions, machine

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
    stage's fingerprint. Paths that do not exist are ignored: the stage's check says whether they must exist.
    A name on the model hub counts by its commit.

    Raises:
        EspanError: it is unknown which commit a name on the hub stands for.
    """
    inputs = {name: known[name].fingerprint for name in stage.depends}
    check = check_of(stage.kind)
    outside = [
        place
        for place in check.external_inputs(stage.keys)
        if place.removeprefix(hub.MARK).split("/")[0] not in inputs
    ]
    files = {file: hashes.of(file) for file in check.files_read(stage.keys)}
    for place in outside:
        if place.startswith(hub.MARK):
            files[place] = hub.pinned(place.removeprefix(hub.MARK))
        else:
            files |= {file: hashes.of(file) for file in storage.glob(place)}
    # As written: absolute paths would make a moved checkout another input.
    keys = stage.keys.decisive(stage.keys.written.model_dump(mode="json"))
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
        status = os.stat(name)  # of a link's target, which may change while the link does not
        mark = [status.st_size, status.st_mtime_ns, status.st_ino]
        remembered = self.remembered.get(name)
        if remembered is None or remembered[:-1] != mark:
            self.remembered[name] = [*mark, storage.content_hash(name)]
            self.changed = True
        return str(self.remembered[name][-1])

    def save(self) -> None:
        """Saves new hashes."""
        if self.changed:
            storage.write_json_atomic(self.place, self.remembered)
            self.changed = False


def started_record(stage: ResolvedStage, identity: Identity) -> dict[str, Any]:
    """Returns what `started.json` holds."""
    return {
        "format": FORMAT,
        "name": stage.name,
        "kind": stage.kind.name,
        "fingerprint": identity.fingerprint,
        "keys": stage.keys.written.model_dump(mode="json"),
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
