"""Small kinds of stage, and recipes written on the spot."""

from __future__ import annotations

import importlib.util
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

SMALL_STAGES = Path(__file__).with_name("small_stages.py")

_spec = importlib.util.spec_from_file_location("small_stages", SMALL_STAGES)
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
sys.modules["small_stages"] = _module  # where pydantic looks for the names in annotations
_spec.loader.exec_module(_module)


@pytest.fixture
def small_stages() -> Path:
    """The program that is `espan` with the small kinds known."""
    return SMALL_STAGES


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a recipe whose workspace is `tmp_path/run` unless the text gives one."""

    def write(text: str, name: str = "recipe.yaml") -> Path:
        text = textwrap.dedent(text)
        if "workspace:" not in text:
            text = f"{text.rstrip()}\nworkspace: {tmp_path / 'run'}\n"
        path = tmp_path / name
        path.write_text(text)
        return path

    return write
