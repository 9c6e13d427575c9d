"""Models in an object store: looked at by their ends, downloaded once and no more than is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipelines.errors import EspanError
from pipelines.models import builtin
from pipelines.models.files import check_files, configuration_folder, local_folder
from pipelines.models.loading import load_model
from pipelines.models.references import resolve_model
from pipelines.system import node_cache, storage


@pytest.fixture
def model(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(node_cache.VARIABLE, str(tmp_path / "cache"))
    place = storage.join(bucket, "model")
    storage.upload_folder(builtin.builtin("tiny"), place)
    storage.write_bytes_atomic(storage.join(place, "checkpoints", "optimizer.pt"), bytes(1 << 16))
    return place


def test_a_model_is_downloaded_without_what_lies_beside_it(model: str) -> None:
    folder = local_folder(model)
    assert not list(folder.rglob("optimizer.pt"))
    tokens = torch.arange(9)[None]
    with torch.no_grad():
        expected = load_model(resolve_model("builtin:tiny", {}))(tokens).logits
        assert torch.equal(load_model(resolve_model(model, {}))(tokens).logits, expected)


def test_its_configuration_comes_alone(model: str) -> None:
    folder = configuration_folder(model)
    assert folder is not None
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_weights_that_are_cut_short_are_named_without_a_download(model: str, tmp_path: Path) -> None:
    check_files(model)
    place = storage.join(model, "model.safetensors")
    storage.write_bytes_atomic(place, storage.read_bytes(place)[:-1])
    with pytest.raises(EspanError, match=f"{place} is cut short"):
        check_files(model)
    assert not (tmp_path / "cache").exists()
