"""Tokenizers by reference: every form loads, everything else is refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipelines.errors import EspanError, InvalidKeyError
from pipelines.models import builtin, hub
from pipelines.models.tokenizers import check_tokenizer, load_tokenizer, tokenizer_hash
from pipelines.recipe.references import BUILTIN_NAMES, BUILTIN_PREFIX


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(builtin.builtin("tiny") / name, tmp_path)
    return tmp_path


def test_builtin_folder_and_file_are_one_tokenizer(folder: Path) -> None:
    references = ["builtin:tiny", str(folder), str(folder / "tokenizer.json")]
    loaded = [load_tokenizer(reference) for reference in references]
    assert len({tokenizer_hash(tokenizer) for tokenizer in loaded}) == 1
    assert all(tokenizer.eos_token == "<eos>" for tokenizer in loaded)
    for reference in references:
        check_tokenizer(reference)


def test_a_folder_with_nothing_but_the_tokenizer_file_loads(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    assert load_tokenizer(str(folder)).eos_token == "<eos>"


def test_the_hash_changes_with_the_vocabulary_and_the_end_of_documents_but_not_with_truncation(
    folder: Path,
) -> None:
    original = tokenizer_hash(load_tokenizer(str(folder)))
    tokenizer = load_tokenizer(str(folder))
    tokenizer.backend_tokenizer.enable_truncation(8)
    assert tokenizer_hash(tokenizer) == original
    tokenizer.eos_token = "<unk>"
    assert tokenizer_hash(tokenizer) != original
    definition = json.loads((folder / "tokenizer.json").read_text())
    words = definition["model"]["vocab"]
    first, last = min(words, key=words.get), max(words, key=words.get)
    words[first], words[last] = words[last], words[first]
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    assert tokenizer_hash(load_tokenizer(str(folder))) != original


@pytest.mark.parametrize("reference", ["./nowhere", "/no/such/tokenizer.json", "a/b/c", "nothing.json"])
def test_a_path_to_nothing_is_refused_as_a_path(reference: str) -> None:
    for function in (load_tokenizer, check_tokenizer):
        with pytest.raises(EspanError, match="no such file or folder"):
            function(reference)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EspanError, match=r"holds no tokenizer\.json"):
        load_tokenizer(str(tmp_path))


def test_a_malformed_tokenizer_is_refused_in_one_line(folder: Path) -> None:
    for content in ("{", '{"model": 1}'):
        (folder / "tokenizer.json").write_text(content)
        for function in (load_tokenizer, check_tokenizer):
            with pytest.raises(EspanError, match="cannot be read") as refusal:
                function(str(folder))
            assert "\n" not in str(refusal.value)


def test_a_name_is_refused_at_once_when_the_hub_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    with pytest.raises(EspanError, match="the model hub cannot be reached from here"):
        load_tokenizer("nobody/no-such-tokenizer")


def test_an_unknown_builtin_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InvalidKeyError, match="did you mean 'builtin:tiny'"):
        load_tokenizer("builtin:tinny")


def test_every_name_that_ships_has_a_folder() -> None:
    for name in BUILTIN_NAMES:
        assert builtin.builtin(BUILTIN_PREFIX + name).is_dir()
