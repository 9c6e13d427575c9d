"""Tiny random models of the architectures that HyLoRA is tried on."""

from collections.abc import Callable

import pytest
from torch import nn

from tests.se_model.tiny_models import tiny_model


@pytest.fixture
def build() -> Callable[[str], nn.Module]:
    """Builds a model by its name in CONFIGS; the same weights at every call."""
    return tiny_model
