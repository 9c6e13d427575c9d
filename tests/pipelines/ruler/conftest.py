"""Essays and questions for all of RULER's tasks."""

from __future__ import annotations

import pytest

from pipelines.ruler.compositions import Sources
from tests.pipelines.ruler.material import sources_in


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return sources_in(tmp_path_factory.mktemp("questions"))
