from __future__ import annotations

from pathlib import Path

import pytest

from cluster.tokens import TOKEN_PATH_VARIABLE, TOKEN_VARIABLE, find_token
from pipelines.errors import EspanError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_the_more_explicit_place_goes_first(home: Path, tmp_path: Path) -> None:
    given = write(tmp_path / "given", "from-option\n")
    named = write(tmp_path / "named", "from-file\n")
    assert find_token(environment={}) is None
    write(home / ".ray" / "auth_token", "from-home\n")
    environment: dict[str, str] = {}
    found = [find_token(environment=environment)]
    environment[TOKEN_PATH_VARIABLE] = str(named)
    found.append(find_token(environment=environment))
    environment[TOKEN_VARIABLE] = "from-variable"
    found.append(find_token(environment=environment))
    found.append(find_token(given, environment))
    secrets = [token.secret for token in found if token]
    assert secrets == ["from-home", "from-file", "from-variable", "from-option"]


@pytest.mark.parametrize("content", ["", " \n", "two words", "Größe"])
def test_a_file_without_a_usable_token_is_named(content: str, tmp_path: Path) -> None:
    with pytest.raises(EspanError, match=r"token-file"):
        find_token(write(tmp_path / "token-file", content), {})


def test_a_missing_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(EspanError, match=rf"absent.*{TOKEN_PATH_VARIABLE}"):
        find_token(environment={TOKEN_PATH_VARIABLE: str(tmp_path / "absent")})


def test_the_secret_shows_in_no_message(tmp_path: Path) -> None:
    token = find_token(write(tmp_path / "token", "s3cret"), {})
    assert token is not None
    assert "s3cret" not in f"{token} {token!r}"
    assert token.headers() == {"Authorization": "Bearer s3cret"}
