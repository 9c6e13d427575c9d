"""A tiny hybrid that reads and writes bytes: words of books are none that `builtin:tiny` knows."""

from pathlib import Path

import pytest

from tests.pipelines.evaluate.language_model.tiny import SPECIAL, lively, train_tokenizer
from tests.se_model.tiny_models import tiny_model


@pytest.fixture(scope="session")
def byte_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an architecture that transformers has, so that lm-eval's own command can load it."""
    folder = tmp_path_factory.mktemp("byte-model")
    tokenizer = train_tokenizer(**SPECIAL)
    lively(tiny_model("bamba", vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
