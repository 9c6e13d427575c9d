"""What a recipe may say of a corpus; everything else is refused before work starts, by file, line and key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.context import CheckContext
from pipelines.errors import InvalidKeyError, RecipeError
from pipelines.prepare.check import check, external_inputs, files_read
from pipelines.recipe.keys.prepare import PrepareKeys
from pipelines.recipe.parse import read_recipe
from pipelines.run.plan import plan_recipe
from pipelines.system import machine, storage

RECIPE = """
name: corpus
stages:
  corpus:
    prepare:
      sources: [{path: CORPUS}]
      tokenizer: builtin:tiny
      sequence_length: 64
"""
WriteRecipe = Callable[[str], Path]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.txt").write_text("some words " * 100)
    return folder


@pytest.fixture
def refusal(corpus: Path, write_recipe: WriteRecipe) -> Callable[[str, str], str]:
    """Returns what a recipe is refused with after `old` was replaced by `new` in it."""

    def refuse(old: str, new: str) -> str:
        recipe = write_recipe(RECIPE.replace(old, new).replace("CORPUS", str(corpus)))
        with pytest.raises(RecipeError) as error:
            plan_recipe(recipe)
        return str(error.value)

    return refuse


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "{path: CORPUS}",
            "{pat: CORPUS}",
            ":6: stages.corpus.prepare.sources.0.pat: unknown key; did you mean",
        ),
        (
            "{path: CORPUS}",
            "{path: CORPUS, wieght: 1}",
            ":6: stages.corpus.prepare.sources.0.wieght: unknown key",
        ),
        ("{path: CORPUS}", "{path: CORPUS, weight: 0}", "sources.0.weight: "),
        (
            "{path: CORPUS}",
            "{path: CORPUS, encoding: utf-9}",
            "encoding: unknown encoding 'utf-9'; try utf-8",
        ),
        ("{path: CORPUS}", "{path: CORPUS/b.txt}", "sources.0.path: no file matches"),
        ("[{path: CORPUS}]", "[]", ":6: stages.corpus.prepare.sources: needs at least one source"),
        ("{path: CORPUS}", "{needles: {tokens: 64}, documents: 0}", "sources.0.documents: "),
        ("{path: CORPUS}", "{needles: {tokns: 64}, documents: 1}", "did you mean 'tokens'?"),
        ("{path: CORPUS}", "{ruler: {tokens: 700, tasks: [vtt]}, documents: 1}", "sources.0.ruler.tasks.0: "),
        (
            "{path: CORPUS}",
            "{ruler: {tokens: 700, tasks: [qa_squad]}, documents: 1}",
            "sources.0.ruler.tasks",
        ),
        ("{path: CORPUS}", "{ruler: {tokens: 700, tasks: [vt, vt]}, documents: 1}", "vt is given twice"),
        (
            "{path: CORPUS}",
            "{ruler: {tokens: 700, tasks: [fwe]}, documents: 1}",
            "% of the prompts' words are unknown to the tokenizer",
        ),
        (
            "{path: CORPUS}",
            "{ruler: {tokens: 700, essays: CORPUS/none}, documents: 1}",
            "/corpus/none: no such folder",
        ),
        (
            "[{path: CORPUS}]\n      tokenizer: builtin:tiny",
            "[{ruler: {tokens: 300, tasks: [fwe, cwe]}, documents: 9}]\n      tokenizer: builtin:ruler-tiny",
            "sources.0.ruler: RULER's cwe has no documents of 300 tokens with this",
        ),
        (
            "[{path: CORPUS}]",
            "[{path: CORPUS, weight: 0.7}, {path: CORPUS}]",
            "sources.1: has no weight, but other sources have",
        ),
        ("builtin:tiny", "builtin:tny", ":7: stages.corpus.prepare.tokenizer: nothing called 'builtin:tny'"),
        ("builtin:tiny", "./no/tokenizer.json", "/no/tokenizer.json': no such file"),
        ("sequence_length: 64", "sequence_length: 64.5", ":8: stages.corpus.prepare.sequence_length: "),
        ("sequence_length: 64", "sequence_length: '64'", "sequence_length: must be a whole number, not '64'"),
        (
            "sequence_length: 64",
            "sequence_length: 64\n      rows_per_shard: 99999999",
            ":9: stages.corpus.prepare.rows_per_shard: a shard would hold more than 1 GiB; 4,194,304",
        ),
        ("sequence_length: 64", "sequence_length: 64\n      packing: document", "did you mean 'documents'?"),
        (
            "sequence_length: 64",
            "sequence_length: 64\n      holdout: 1.0",
            ":9: stages.corpus.prepare.holdout: ",
        ),
    ],
)
def test_a_slip_is_named_by_line_and_key(
    refusal: Callable[[str, str], str], old: str, new: str, expected: str
) -> None:
    assert expected in refusal(old, new)


def test_an_empty_corpus_is_refused_before_work_starts(
    corpus: Path, refusal: Callable[[str, str], str]
) -> None:
    (corpus / "a.txt").write_bytes(b"")
    assert "sources.0.path: every file of" in refusal("", "")


def test_a_disk_or_memory_too_small_is_refused(
    corpus: Path, refusal: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(machine, "free_disk", lambda folder: 1000)
        assert "1000 B are free; choose another workspace" in refusal("", "")
    monkeypatch.setattr(machine, "available_memory", lambda: 100 << 20)
    assert "of memory; 100.0 MiB are free; fewer rows take less" in refusal("", "")


def test_a_plan_shows_tokens_rows_disk_and_memory(corpus: Path, write_recipe: WriteRecipe) -> None:
    (stage,) = plan_recipe(write_recipe(RECIPE.replace("CORPUS", str(corpus)))).stages
    assert stage.action == "would run"
    assert stage.details["corpus"] == "about 275 tokens, from files of 1.1 KiB"
    assert stage.details["shapes"] == "about 4 rows of 64 tokens, 131,072 a shard"
    assert set(stage.details) == {"corpus", "shapes", "disk", "memory"}


def test_the_fingerprint_covers_sources_and_local_tokenizers(corpus: Path, write_recipe: WriteRecipe) -> None:
    stage = read_recipe(write_recipe(RECIPE.replace("CORPUS", str(corpus)))).stages["corpus"].keys
    assert files_read(stage) == tuple(storage.glob(str(corpus)))
    (tokenizer,) = external_inputs(stage)
    assert {Path(file).name for file in storage.glob(tokenizer)} == {
        "tokenizer.json",
        "tokenizer_config.json",
    }
    named = PrepareKeys.model_validate(
        {"sources": [{"path": "x"}], "tokenizer": "owner/name", "sequence_length": 8}
    )
    assert external_inputs(named) == ("hub:owner/name",)


def test_a_missing_source_is_refused_by_its_own_key(corpus: Path, tmp_path: Path) -> None:
    sources = [{"path": str(corpus)}, {"path": str(tmp_path / "none")}]
    stage = PrepareKeys.model_validate(
        {"sources": sources, "tokenizer": "builtin:tiny", "sequence_length": 8}
    )
    with pytest.raises(InvalidKeyError) as error:
        check(stage, CheckContext("corpus", str(tmp_path / "out"), 0, str(tmp_path), {}))
    assert error.value.key == "sources.1.path"
