"""Tiny models of several architectures, and a tiny tokenizer."""

from collections.abc import Callable

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.pipelines.evaluate.language_model.tiny import SPECIAL, THREE, lively, train_tokenizer
from tests.se_model.tiny_models import tiny_model


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(**SPECIAL)


@pytest.fixture(scope="session")
def beginning_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(begins=True, **SPECIAL)


@pytest.fixture(scope="session")
def model_of() -> Callable[[str], PreTrainedModel]:
    return lambda name: lively(tiny_model(name, vocab_size=320))


@pytest.fixture(scope="module", params=THREE)
def model(request: pytest.FixtureRequest, model_of: Callable[[str], PreTrainedModel]) -> PreTrainedModel:
    return model_of(request.param)
