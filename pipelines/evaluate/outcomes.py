"""What became of units, each kept the moment it is there: a continued evaluation scores none again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipelines.evaluate.units import Outcome
from pipelines.system import storage

FOLDER = "unfinished"
_SUFFIX = ".json"
_READERS = 16


@dataclass(frozen=True)
class Outcomes:
    """A folder with a file for each unit.

    Attributes:
        folder: of these outcomes alone; made when the first is kept.
    """

    folder: str

    def read(self) -> dict[str, Outcome]:
        """Returns what an evaluation that ended early has left, by the units' keys."""
        if not storage.exists(self.folder):
            return {}
        keys = [
            name.removesuffix(_SUFFIX) for name in storage.list_names(self.folder) if name.endswith(_SUFFIX)
        ]
        with ThreadPoolExecutor(_READERS) as threads:
            return dict(
                zip(keys, threads.map(lambda key: storage.read_json(self._place(key)), keys), strict=True)
            )

    def keep(self, key: str, outcome: Outcome) -> None:
        """Writes the outcome of a unit, whole or not at all."""
        storage.make_folder(self.folder)
        storage.write_json_atomic(self._place(key), outcome)

    def _place(self, key: str) -> str:
        return storage.join(self.folder, key + _SUFFIX)
