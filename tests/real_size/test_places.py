"""A path is the same place in every process, and whatever its name holds is ordinary."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.context import Context
from pipelines.models.builtin import builtin
from pipelines.models.loading import load_model
from pipelines.models.references import resolve_model
from pipelines.models.tokenizers import load_tokenizer
from pipelines.prepare.shards import Manifest, ShardReader, TokenizerEntry, read_manifest
from pipelines.recipe.keys.train import TrainKeys
from pipelines.recipe.parse import ResolvedRecipe, resolve
from pipelines.recipe.yaml_source import parse_yaml
from pipelines.run.lineage import FileHashes, identify
from pipelines.system import storage
from pipelines.system.plain_path import plain_path
from pipelines.train.job import resolve_job
from tests.pipelines.train.conftest import SPAN, TINY, write_corpus
from tuning.compare.keys import CompareKeys
from tuning.compare.trials import trials_of as trials_of_comparison
from tuning.tune.keys import TuneKeys
from tuning.tune.trials import trials_of as trials_of_search

ODD_NAMES = [
    "books [draft]",
    "what? all* of it!",
    "a#b%20c::d",
    "Bücher",  # one character for the umlaut
    "Bu\u0308cher",  # two
    "line\nend",
    "latin-\udce9",  # bytes that are not UTF-8
    "~home",
    "{one,two}",
    "sp ace ",
]

RECIPE = """
name: places
workspace: runs
stages:
  corpus: {prepare: {sources: [{path: books}, {path: "more/*.txt"}], tokenizer: words, sequence_length: 8}}
  tuned:
    train: {data: corpus, model: base, KEYS}
  again:
    train: {data: ./shards, model: tuned, KEYS}
  scores: {evaluate: {model: owner/name, perplexity: {data: shards, lengths: [4]}}}
  release: {export: {model: builtin:tiny, scores: [scores]}}
""".replace("KEYS", "attention: {kind: full}, steps: 1, tokens_per_step: 8, learning_rate: 1")


@pytest.fixture(params=ODD_NAMES)
def odd(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / request.param
    folder.mkdir()
    return folder


@pytest.fixture
def recipe_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], ResolvedRecipe]:
    def read(folder: Path) -> ResolvedRecipe:
        for name in ("books", "more", "words", "base", "shards", "corpus", "tuned"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for name in ("books", "more"):
            (folder / name / "a.txt").write_text("text")
        monkeypatch.chdir(folder)
        return resolve(parse_yaml(RECIPE, "r.yaml"), {})

    return read


def test_every_path_is_absolute_before_anything_starts_and_names_stay_names(
    recipe_at: Callable[[Path], ResolvedRecipe], tmp_path: Path
) -> None:
    stages = {name: one.keys for name, one in recipe_at(tmp_path).stages.items()}
    corpus, tuned, again, scores, release = (stages[name] for name in stages)
    assert [source.path for source in corpus.sources] == [f"{tmp_path}/books", f"{tmp_path}/more/*.txt"]
    assert corpus.tokenizer == f"{tmp_path}/words"  # a name on the hub, were the folder not there
    assert (tuned.data, tuned.model) == (
        "corpus",
        f"{tmp_path}/base",
    )  # the stage, not the folder
    assert (again.data, again.model) == (f"{tmp_path}/shards", "tuned")
    assert (scores.model, scores.perplexity.data) == ("owner/name", f"{tmp_path}/shards")
    assert (release.model, release.scores) == ("builtin:tiny", ("scores",))


def test_records_and_fingerprints_keep_paths_as_they_are_written(
    recipe_at: Callable[[Path], ResolvedRecipe], tmp_path: Path
) -> None:
    found = []
    for folder in (tmp_path / "here", tmp_path / "there"):
        recipe = recipe_at(folder)
        hashes = FileHashes.load(str(folder))
        found.append((identify(recipe, recipe.stages["corpus"], {}, hashes).fingerprint, recipe.as_dict()))
    assert found[0] == found[1]
    assert found[0][1]["stages"]["corpus"]["prepare"]["sources"][0]["path"] == "books"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("books", "HERE/books"),
        ("./books", "HERE/books"),
        ("../up", "HERE/../up"),
        ("~/books", "HOME/books"),
        ("file:///data/a%20b", "/data/a%20b"),
        ("file://localhost/data", "/data"),
        ("/data/http://host/a.txt", "/data/http:/host/a.txt"),
        ("s3://bucket/a [b]", "s3://bucket/a [b]"),
    ],
)
def test_what_a_path_counts_from(
    written: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/the/home")
    assert storage.absolute(written) == meant.replace("HERE", str(tmp_path)).replace("HOME", "/the/home")


def test_models_named_by_variants_and_searches_are_absolute_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    train = {"data": "corpus", "model": "owner/name", "attention": {"kind": "full"}}
    train |= {"steps": 1, "tokens_per_step": 8, "learning_rate": 1.0}
    study: dict[str, Any] = {"train": train, "evaluate": {"recall": {"lengths": [64]}}}
    compare = CompareKeys.model_validate(study | {"variants": {"a": {"model": "other"}, "b": None}})
    tune = TuneKeys.model_validate(study | {"space": {"model": ["other", "owner/name"]}})
    for stage, trials_of in ((compare, trials_of_comparison), (tune, trials_of_search)):
        named = [trial.train.model for trial in trials_of(stage.absolute(["corpus"]), 0) if trial.train]
        assert named[0] == f"{tmp_path}/other"
        assert all(trial.train.data == "corpus" for trial in trials_of(stage.absolute(), 0) if trial.train)


def test_workers_elsewhere_are_given_absolute_models_and_tokenizers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(builtin("builtin:tiny"))
    adapter = {"base_model_name_or_path": "model", "peft_type": "LORA"}
    storage.write_json_atomic("adapter/adapter_config.json", adapter)
    assert resolve_model("adapter", {}).base == f"{tmp_path}/model"
    folder = write_corpus(tmp_path / "shards")
    manifest = read_manifest(str(folder)).model_dump(mode="json")
    manifest["tokenizer"]["reference"] = "model"
    storage.write_json_atomic(str(folder / "manifest.json"), manifest)
    keys = {"data": "shards", "model": {"new": TINY}, "attention": SPAN, "steps": 1, "tokens_per_step": 64}
    stage = TrainKeys.model_validate(keys | {"learning_rate": 1.0}).absolute()
    job = resolve_job(stage, Context("tuned", str(tmp_path / "out"), 0, {}, str(tmp_path), {}))
    assert (job.data, job.tokenizer) == (f"{tmp_path}/shards", f"{tmp_path}/model")


def test_a_folder_is_found_by_its_name_and_searched(odd: Path) -> None:
    (odd / "in").mkdir()
    for name in ("a.txt", "in/b.txt", "c.md"):
        (odd / name).write_text(name)
    assert storage.glob(str(odd)) == [f"{odd}/a.txt", f"{odd}/c.md", f"{odd}/in/b.txt"]
    assert storage.glob(f"{odd}/*.txt") == [f"{odd}/a.txt"]
    assert storage.glob(f"{odd}/**/*.txt") == [f"{odd}/a.txt", f"{odd}/in/b.txt"]
    assert storage.glob(f"{odd}/a.txt") == [f"{odd}/a.txt"]


def test_an_existing_name_comes_before_the_pattern_it_could_be(tmp_path: Path) -> None:
    for name in ("[ab].txt", "a.txt", "b.txt", "*.txt"):
        (tmp_path / name).write_text(name)
    assert storage.glob(str(tmp_path / "[ab].txt")) == [str(tmp_path / "[ab].txt")]
    assert storage.glob(str(tmp_path / "*.txt")) == [str(tmp_path / "*.txt")]
    (tmp_path / "[ab].txt").unlink()
    assert storage.glob(str(tmp_path / "[ab].txt")) == [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]


def test_records_hold_any_name_and_give_it_back(odd: Path) -> None:
    record = odd / "record.json"
    storage.write_json_atomic(str(record), {str(odd): [str(odd)]})
    assert storage.read_json(str(record)) == {str(odd): [str(odd)]}
    json.loads(record.read_bytes())  # and it is JSON in UTF-8
    (odd / "a").write_text("content")
    hashes = FileHashes.load(str(odd))
    first = hashes.of(str(odd / "a"))
    hashes.save()
    assert FileHashes.load(str(odd)).of(str(odd / "a")) == first


def test_shards_models_and_tokenizers_load_from_anywhere(odd: Path) -> None:
    model = odd / "model"
    model.mkdir()
    for file in builtin("builtin:tiny").iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    tokenizer = load_tokenizer(str(model))
    assert load_tokenizer(str(model / "tokenizer.json")).get_vocab() == tokenizer.get_vocab()
    assert load_model(resolve_model(str(model), {})).num_parameters() > 0
    reader = ShardReader(write_corpus(odd / "shards"))
    assert len(reader.row(3).input_ids) == 64
    entry = TokenizerEntry(reference=str(model), sha256="", vocabulary_size=1, eos_token_id=None)
    kept = reader.manifest.model_copy(update={"tokenizer": entry})
    storage.write_json_atomic(str(odd / "m.json"), kept.model_dump(mode="json"))
    assert Manifest.model_validate(storage.read_json(str(odd / "m.json"))) == kept


def test_what_is_written_moved_and_removed_lies_where_it_should(odd: Path) -> None:
    (odd / "up" / "in").mkdir(parents=True)
    (odd / "up" / "in" / "[a].txt").write_text("content")
    storage.upload_folder(odd / "up", str(odd / "there"))
    storage.move_folder(str(odd / "there"), str(odd / "moved"))
    storage.download_folder(str(odd / "moved"), odd / "down")
    assert (odd / "down" / "in" / "[a].txt").read_text() == "content"
    storage.remove_folder(str(odd / "moved"))
    assert sorted(each.name for each in odd.iterdir()) == ["down", "up"]


def test_a_second_name_leads_to_the_same_folder_and_is_plain(odd: Path) -> None:
    link = plain_path(odd, globbed=True)
    assert os.path.samefile(link, odd)
    assert not any(sign in str(link) for sign in "*?[")
    assert str(link).encode()
    assert plain_path(odd, globbed=True) == link


def test_the_terminal_is_shown_any_name(tmp_path: Path) -> None:
    """`espan` names a file that is not UTF-8 and fails for that file's reason, not for the name."""
    folder = tmp_path / "latin-\udce9"
    folder.mkdir()
    recipe = folder / "r.yaml"
    recipe.write_text("name: r\nstages:\n  page: {report: {}}\n")
    environment = os.environ | {"PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run(
        [sys.executable, "-m", "cluster.cli", "plan", str(recipe)],
        env=environment | {"ESPAN_HOME": str(folder)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"latin-\\udce9" in done.stdout
