"""A model's file that cannot be what it should is named by plan and run: what is wrong, what to do."""

from __future__ import annotations

import io
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.context import CheckContext
from pipelines.errors import EspanError, InvalidKeyError
from pipelines.models.references import check_model
from pipelines.models.tokenizers import check_tokenizer, load_tokenizer
from pipelines.models.weight_files import check_model_files
from pipelines.run.runner import run_recipe
from pipelines.system.progress import Progress
from tests.real_size import counted_files  # registers counted://
from tests.real_size.hub_cache import add_snapshot, use_offline
from tests.se_model.tiny_models import tiny_model

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 137936\n"
PAGE = b"\n<!DOCTYPE html><html><head><title>Sign in</title></head></html>"
Spoil = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in several shards, with a tokenizer."""
    folder = tmp_path_factory.mktemp("whole")
    tiny_model("llama").save_pretrained(folder, max_shard_size="40KB")
    load_tokenizer("builtin:tiny").save_pretrained(folder)
    return folder


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def shard(folder: Path) -> Path:
    return max(folder.glob("*.safetensors"))


def header(content: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Returns a safetensors file with a changed header."""
    length = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + length])
    change(entries)
    written = json.dumps(entries).encode()
    return struct.pack("<Q", len(written)) + written + content[8 + length :]


def swap_shape(entries: dict[str, Any]) -> None:
    entries[max(name for name in entries if name != "__metadata__")]["shape"] = [1]


SPOILT: dict[str, tuple[Spoil, str]] = {
    "a pointer": (lambda content: POINTER, r"is a Git LFS pointer; fetch the file with `git lfs pull`"),
    "a web page": (lambda content: PAGE, "is a web page"),
    "empty": (lambda content: b"", "is empty"),
    "a few bytes": (lambda content: content[:5], "is not a safetensors file"),
    "cut in its header": (lambda content: content[:60], "is cut short: it has 60 bytes, its header alone"),
    "cut in its tensors": (lambda content: content[:-1], r"is cut short: it has [\d,]+ of the [\d,]+ bytes"),
    "too long": (lambda content: content + b"\0", "is damaged"),
    "an absurd header": (lambda content: b"\xff" * 8 + content[8:], "is not a safetensors file"),
    "a long header": (lambda content: struct.pack("<Q", 1 << 20) + content[8:], "is cut short"),
    "a header of noise": (lambda content: content[:8] + b"\x93" * (len(content) - 8), "is not a safetensors"),
    "a header nested deep": (
        lambda content: struct.pack("<Q", 200_000) + b"[" * 200_000,
        "is not a safetensors file",
    ),
    "a header of other shapes": (lambda content: header(content, swap_shape), "is not a safetensors file"),
    "a list for a header": (lambda content: struct.pack("<Q", 2) + b"[]", "is not a safetensors file"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_safetensors_file_is_named_here_and_in_an_object_store(model: Path, how: str) -> None:
    spoil, message = SPOILT[how]
    file = shard(model)
    file.write_bytes(spoil(file.read_bytes()))
    for place in (str(model), f"counted://{model}"):
        with pytest.raises(EspanError, match=rf"\A{place}/{file.name} {message}"):
            check_model_files(place)


def test_a_whole_checkpoint_passes_here_and_in_an_object_store(model: Path) -> None:
    for place in (str(model), f"counted://{model}"):
        check_model_files(place)


@pytest.mark.parametrize("content", [POINTER, PAGE, b""], ids=["pointer", "page", "empty"])
@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors.index.json"],
)
def test_any_file_of_a_model_that_only_stands_for_another_is_named(
    model: Path, name: str, content: bytes
) -> None:
    (model / name).write_bytes(content)
    with pytest.raises(EspanError, match=rf"\A{model / name} is (a Git LFS|a web page|empty)"):
        check_model_files(str(model))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b'{"model_type": "llama",', "is not valid JSON"),
        ("config.json", b'["llama"]', "holds list instead of a JSON object"),
        ("config.json", b"[" * 100_000, "is not valid JSON"),
        ("config.json", b"\xff\xfe{}", "is not valid JSON"),
        ("config.json", b'{"error": "Invalid username or password."}', "names no model_type"),
        ("model.safetensors.index.json", b"{}", "has no weight_map"),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"a": "model-00009.safetensors"}}',
            "names model-00009.safetensors, which is not there",
        ),
    ],
)
def test_a_json_file_of_a_model_that_says_nothing_useful_is_named(
    model: Path, name: str, content: bytes, message: str
) -> None:
    (model / name).write_bytes(content)
    with pytest.raises(EspanError, match=rf"{name}.* {message}"):
        check_model_files(str(model))


def test_a_link_to_nothing_is_named(model: Path) -> None:
    file = shard(model)
    file.unlink()
    file.symlink_to("../blobs/gone")
    with pytest.raises(EspanError, match=rf"\A{file} is a link to \.\./blobs/gone, which is not there"):
        check_model_files(str(model))


def test_a_folder_without_weights_is_refused(model: Path) -> None:
    for file in model.glob("model*"):
        file.unlink()
    with pytest.raises(EspanError, match=rf"\A{model} holds no weights"):
        check_model_files(str(model))


def torch_file() -> bytes:
    content = io.BytesIO()
    torch.save({"weight": torch.zeros(64, 64)}, content)
    return content.getvalue()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: POINTER, "is a Git LFS pointer"),
        (lambda content: content[: len(content) // 2], "is cut short"),
        (lambda content: content[:-1], "is cut short"),
        (lambda content: b"weights", r"is not a torch\.save file"),
        (lambda content: bytes(len(content)), r"is not a torch\.save file"),
        (lambda content: b"", "is empty"),
    ],
)
def test_a_spoilt_file_of_torch_is_named(tmp_path: Path, spoil: Spoil, message: str) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(torch_file())
    for place in (str(tmp_path), f"counted://{tmp_path}"):
        file.write_bytes(torch_file())
        check_model_files(place)
        file.write_bytes(spoil(torch_file()))
        with pytest.raises(EspanError, match=rf"\A{place}/pytorch_model\.bin {message}"):
            check_model_files(place)


ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "BASE", "task_type": "CAUSAL_LM"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"base_model_name_or_path": None}, "the adapter names no base model"),
        ({"base_model_name_or_path": ""}, "the adapter names no base model"),
        ({"base_model_name_or_path": " "}, "the adapter names no base model"),
        ({"base_model_name_or_path": 7}, "the adapter names no base model"),
        ({"base_model_name_or_path": "/no/such/base"}, "the base model /no/such/base of the adapter is not"),
        (
            {"base_model_name_or_path": "no-such/base"},
            "the base model no-such/base cannot be obtained: .* not in the local cache",
        ),
        ({"base_model_name_or_path": "ITSELF"}, "is an adapter itself"),
        ({"peft_type": "IA3"}, "an adapter of kind IA3; only LORA"),
        ({"peft_type": None}, "an adapter of kind None; only LORA"),
        ({}, r"adapter_model\.safetensors is a Git LFS pointer"),
    ],
)
def test_an_adapter_that_cannot_be_loaded_is_refused_with_the_reason(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], message: str
) -> None:
    use_offline(tmp_path / "no cache", monkeypatch)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    configuration = ADAPTER | {"base_model_name_or_path": str(model)} | changed
    if configuration["base_model_name_or_path"] == "ITSELF":
        configuration["base_model_name_or_path"] = str(adapter)
    (adapter / "adapter_config.json").write_text(json.dumps(configuration))
    (adapter / "adapter_model.safetensors").write_bytes(POINTER)
    context = CheckContext("x", str(tmp_path), 0, str(tmp_path), {})
    with pytest.raises(InvalidKeyError, match=rf"model: .*{message}"):
        check_model("model", str(adapter), context)


def test_the_base_of_an_adapter_is_looked_at_too(model: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps(ADAPTER | {"base_model_name_or_path": str(model)})
    )
    shutil.copy(shard(model), adapter / "adapter_model.safetensors")
    context = CheckContext("x", str(tmp_path), 0, str(tmp_path), {})
    check_model("model", str(adapter), context)
    shard(model).write_bytes(POINTER)
    with pytest.raises(InvalidKeyError, match=rf"{shard(model).name} is a Git LFS pointer"):
        check_model("model", str(adapter), context)


def test_a_pointer_in_a_cached_snapshot_is_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path for path in model.iterdir()}
    use_offline(tmp_path / "cache", monkeypatch)
    add_snapshot(tmp_path / "cache", "owner/name", files | {shard(model).name: POINTER})
    context = CheckContext("x", str(tmp_path), 0, str(tmp_path), {})
    with pytest.raises(InvalidKeyError, match=rf"{shard(model).name} is a Git LFS pointer"):
        check_model("model", "owner/name", context)


def test_a_model_whose_base_is_gone_is_refused_by_the_key(model: Path, tmp_path: Path) -> None:
    content = {"format": "espan-model/1", "base": str(tmp_path / "gone"), "adapter": None, "tokenizer": None}
    (model / "model.json").write_text(json.dumps(content))
    context = CheckContext("x", str(tmp_path), 0, str(tmp_path), {})
    with pytest.raises(InvalidKeyError, match=f"model: there is no folder {tmp_path / 'gone'}"):
        check_model("model", str(model), context)


def test_a_tokenizer_that_is_a_pointer_is_named(model: Path) -> None:
    (model / "tokenizer.json").write_bytes(POINTER)
    for reference in (str(model), str(model / "tokenizer.json")):
        with pytest.raises(EspanError, match=r"tokenizer\.json is a Git LFS pointer"):
            check_tokenizer(reference)


def test_a_run_refuses_a_broken_file_before_any_work(model: Path, tmp_path: Path) -> None:
    shard(model).write_bytes(POINTER)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: broken\nworkspace: {tmp_path / 'run'}\nstages:\n  release: {{export: {{model: {model}}}}}\n"
    )
    with pytest.raises(EspanError, match=rf"{shard(model).name} is a Git LFS pointer"):
        run_recipe(recipe, progress=Progress(io.StringIO()))
    assert not (tmp_path / "run" / "release").exists()


def test_nothing_but_the_ends_of_a_file_is_read(model: Path, tmp_path: Path) -> None:
    """A file of 1 TiB that takes no space; reading it would take hours."""
    file = shard(model)
    length = 1 << 40
    entry = {"weight": {"dtype": "U8", "shape": [length], "data_offsets": [0, length]}}
    written = json.dumps(entry).encode()
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(written)) + written)
        opened.truncate(8 + len(written) + length)
    assert counted_files.CountedFiles().size(str(file)) > length
    check_model_files(str(model))
