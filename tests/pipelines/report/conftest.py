"""A workspace such as a run leaves it, written through the formats themselves; no stage has to run for it."""

import math
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipelines.evaluate.scores import PerplexityScore, Sample, Scores, TaskScore, write_samples
from pipelines.prepare.shards import Manifest, SourceEntry, TokenizerEntry, split_folder, write_manifest
from pipelines.recipe.parse import ResolvedRecipe, read_recipe
from pipelines.records import FINISHED, STARTED
from pipelines.run.lineage import FileHashes, finished_record, identify, started_record
from pipelines.system import storage
from pipelines.train.worker.metrics import MetricsLog
from tests.pipelines.report.full_scores import write_full_scores

LENGTHS = (256, 2048)
RECIPE = """
    name: small-run
    seed: 17
    workspace: {workspace}
    stages:
      corpus:
        prepare:
          sources: [{{needles: {{tokens: 2047}}, documents: 40}}]
          tokenizer: builtin:tiny
          sequence_length: 2048
          holdout: 0.1
      before:
        evaluate: {{model: "builtin:tiny", recall: {{lengths: [256, 2048], samples: 4}}}}
      tuned:
        train:
          data: corpus
          model: builtin:tiny
          attention: {{kind: span, chunk_sizes: [256, 512]}}
          hylora: {{rank: 8, alpha: 16}}
          steps: 30
          tokens_per_step: 16384
          learning_rate: 2.0e-3
      after:
        evaluate: {{model: tuned, recall: {{lengths: [256, 2048], samples: 4}}}}
      release:
        export: {{model: tuned, format: both}}
      page:
        report: {{}}
    """


class Workspace:
    """A run that is being written, stage by stage."""

    def __init__(self, folder: Path, text: str = RECIPE) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        recipe_file = folder.parent / f"{folder.name}.yaml"
        recipe_file.write_text(textwrap.dedent(text).format(workspace=folder))
        self.recipe: ResolvedRecipe = read_recipe(recipe_file)
        self._known: dict[str, Any] = {}
        self._minutes = 0

    def path(self, stage: str) -> str:
        return str(self.folder / stage)

    def start(self, stage: str) -> Mapping[str, Any]:
        resolved = self.recipe.stages[stage]
        hashes = FileHashes.load(str(self.folder))
        self._known[stage] = identify(self.recipe, resolved, self._known, hashes)
        record = started_record(resolved, self._known[stage])
        storage.write_json_atomic(storage.join(self.path(stage), STARTED), record)
        return record

    def finish(self, stage: str, result: Mapping[str, Any], seconds: float = 12.5) -> None:
        self._minutes += 1
        began, ended = (
            f"2026-11-22T11:{minute:02d}:00+00:00" for minute in (self._minutes, self._minutes + 1)
        )
        record = finished_record(self.recipe, self.start(stage), result, began, ended, seconds)
        storage.write_json_atomic(storage.join(self.path(stage), FINISHED), record)


def write_scores(folder: str, model: str, recall: Mapping[int, float], perplexity: float) -> None:
    """Scores whose recall at each length is as given, in 64 prompts of two tasks."""
    outcomes = {
        (task, length): [[index < share * 64] for index in range(64)]
        for task in ("single", "multi_key")
        for length, share in recall.items()
    }
    Scores(
        model=model,
        attention={"kind": "full"},
        precision="fp32",
        seed=17,
        seconds=3.0,
        tasks=tuple(
            TaskScore.of_recall(task, length, answers) for (task, length), answers in outcomes.items()
        ),
        perplexity=tuple(
            PerplexityScore.of(length, 10, [10 * math.log(perplexity)] * 4) for length in recall
        ),
    ).write(folder)
    write_samples(
        folder,
        [
            Sample(
                measure="recall", task=task, length=length, index=index, prompt=f"{index}", metric="recall",
                value=float(answer),
            )
            for (task, length), answers in outcomes.items()
            for index, (answer,) in enumerate(answers)
        ],
    )  # fmt: skip


def write_corpus(folder: str, source: str) -> None:
    for split, place, rows in (("train", folder, 36), ("holdout", split_folder(folder, "holdout"), 4)):
        tokens = rows * 2048
        entry = SourceEntry(
            source=source,
            weight=None,
            documents=rows,
            tokens=tokens,
            packed_tokens=tokens,
            left_out_tokens=0,
            dropped_tokens=0,
            rejected_documents=3,
            encodings={},
        )
        tokenizer = TokenizerEntry(reference="builtin:tiny", sha256="", vocabulary_size=300, eos_token_id=1)
        manifest = {
            "split": split,
            "packing": "documents",
            "sequence_length": 2048,
            "rows": rows,
            "tokens": tokens,
            "shards": [{"file": "shard-00000.arrow", "rows": rows, "bytes": 1, "sha256": ""}],
            "tokenizer": tokenizer,
            "sources": [entry],
            "seed": 17,
            "recipe_hash": "",
        }
        write_manifest(place, Manifest.model_validate(manifest))


def found_at(step: int) -> dict[str, Any]:
    """What a training on needles found, the second layer nothing."""
    return {
        "retrieval_asked": step / 40,
        "retrieval_not_asked": 0.3,
        "retrieval_chance": 0.125,
        "retrieval_asked_by_head": [[step / 40, 0.515], [None, None]],
        "retrieval_not_asked_by_head": [[0.255, 0.345], [None, None]],
    }


def write_training(folder: str, steps: int = 30, needles: bool = False) -> None:
    with MetricsLog(folder, resumed_step=0) as log:
        for step in range(1, steps + 1):
            log.write(
                {
                    "step": step,
                    "loss": 3 - step / 40,
                    "learning_rate": 2e-3,
                    "gradient_norm": 0.5,
                    "tokens_per_second": 9000.0,
                    "retrieval_filled": 0.8,
                    "retrieval_distance": 600.0,
                    "retrieval_distinct": 0.7,
                    **(found_at(step) if needles else {}),
                }
            )
    counts = {"parameters": 1000, "trainable_parameters": 250, "tensors": 4, "trainable_tensors": 1}
    kinds = {"attention projections": counts, "state-space projections": counts | {"trainable_parameters": 0}}
    coverage = {"format": "espan-coverage/1", "kinds": kinds}
    storage.write_json_atomic(storage.join(folder, "coverage.json"), coverage)


MakeWorkspace = Callable[..., Workspace]


@pytest.fixture(scope="session")
def make_workspace(tmp_path_factory: pytest.TempPathFactory) -> MakeWorkspace:
    """Makes a workspace with its stages finished up to and including `until`.

    `found`: the training tells which needles it found; `full`: the evaluations measured everything.
    """

    def make(
        until: str = "release",
        after: float = 0.75,
        source: str = "needles",
        found: bool = False,
        full: bool = False,
    ) -> Workspace:
        workspace = Workspace(tmp_path_factory.mktemp("workspace") / "run")
        results: dict[str, Mapping[str, Any]] = {
            "corpus": {"headline": "36 rows"},
            "before": {"headline": "recall 25.0% at 2,048"},
            "tuned": {"headline": "loss 3.000 -> 2.250"},
            "after": {},
            "release": {
                "written": [
                    {"format": form, "path": workspace.path(f"release/{form}"), "largest_difference": 9.5e-7}
                    for form in ("merged", "adapter")
                ]
            },
        }
        write_corpus(workspace.path("corpus"), source)
        write_scores(workspace.path("before"), "builtin:tiny", {256: 1.0, 2048: 0.25}, 9.0)
        Path(workspace.path("tuned")).mkdir()
        write_training(workspace.path("tuned"), needles=found)
        write_scores(workspace.path("after"), "tuned", {256: 1.0, 2048: after}, 8.0)
        if full:
            write_full_scores(workspace.path("before"), "builtin:tiny", 0.6)
            write_full_scores(workspace.path("after"), "tuned", 0.9)
        for stage, result in results.items():
            workspace.finish(stage, result)
            if stage == until:
                break
        return workspace

    return make
