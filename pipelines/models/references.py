"""Models by reference: an earlier train stage, a folder, a hub name, `builtin:tiny`, or a new one from its
configuration.

A train stage leaves `model.json` behind, which says what its model is made of:

    {"format": "espan-model/1", "base": "builtin:tiny", "adapter": "./model", "tokenizer": "./model"}

Paths that start with a dot are relative to the file's folder, so that a workspace can be moved as a whole.
`adapter` is null for a model that was trained in full.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipelines.errors import EspanError, InvalidKeyError, nearest
from pipelines.models import builtin, hub
from pipelines.models.files import (
    check_files,
    holds_adapter_only,
    hub_tokenizer_files,
    is_place,
    read_json,
)
from pipelines.models.weight_files import ADAPTER_CONFIG_FILE, CONFIG_FILE
from pipelines.recipe.path_keys import MODEL, TOKENIZER
from pipelines.recipe.references import is_builtin, is_hub_name
from pipelines.system import storage

if TYPE_CHECKING:
    from pipelines.context import CheckContext, StageOutput

FORMAT = "espan-model/1"
MODEL_FILE = "model.json"


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from, before anything is loaded.

    Attributes:
        base: folder (path or fsspec URL), `builtin:` name or hub name of the full model; empty for a new one.
        adapter: folder of a PEFT adapter on top of the base.
        tokenizer: reference for `tokenizers.load_tokenizer`; None when the model brings none.
        new: configuration of a `Mamba2HybridForCausalLM` that starts from random weights.
    """

    base: str
    adapter: str | None = None
    tokenizer: str | None = None
    new: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """What to call the model in a message."""
        if self.new is not None:
            return "the new model"
        return f"{self.base} with adapter {self.adapter}" if self.adapter else self.base


def resolve_model(reference: str, inputs: Mapping[str, StageOutput]) -> ModelSource:
    """Returns the model that a recipe calls `reference`.

    Args:
        reference: the name of a stage in `inputs`, `builtin:tiny`, a folder (a train stage's, a Hugging Face
            checkpoint, a PEFT adapter or a published mamba_ssm checkpoint), or a name on the model hub,
            `owner/name` or `owner/name@revision`, which comes back with the commit that it stands for.
        inputs: the earlier stages that may be referred to.

    Raises:
        EspanError: `reference` names a folder without a model, an adapter without a base, or a name that
            neither the local cache nor the hub knows.
    """
    place = inputs[reference].path if reference in inputs else MODEL.absolute(reference, ())
    if is_builtin(place):
        return ModelSource(place, tokenizer=_tokenizer_in(str(builtin.builtin(place)), place))
    if not is_place(place):
        return _hub_model(hub.pinned(place))
    if storage.exists(storage.join(place, MODEL_FILE)):
        return _read_model_file(place)
    if storage.exists(storage.join(place, ADAPTER_CONFIG_FILE)):
        base = _base_of_adapter(place)
        return replace(base, adapter=place, tokenizer=_tokenizer_in(place, place) or base.tokenizer)
    if storage.exists(storage.join(place, CONFIG_FILE)):
        return ModelSource(place, tokenizer=_tokenizer_in(place, place))
    raise EspanError(
        f"model '{reference}': {place} holds no model ({MODEL_FILE}, config.json or adapter_config.json); "
        "give a folder that does, an earlier train stage or a hub name"
    )


def write_model_file(folder: str, source: ModelSource) -> None:
    """Writes `model.json` below `folder`, last, once everything it names is in place."""
    content = {
        "format": FORMAT,
        "base": source.base,
        "adapter": source.adapter,
        "tokenizer": source.tokenizer,
    }
    storage.write_json_atomic(storage.join(folder, MODEL_FILE), content)


def check_model(key: str, reference: str, context: CheckContext) -> None:
    """Checks that a model can be obtained, without loading it.

    Raises:
        InvalidKeyError: it is no earlier train stage, nothing that ships, no folder with a model, and no name
            that the model hub knows; or one of its files is missing or broken, and which.
    """
    if reference in context.earlier or is_place(reference):
        if context.require_stage_or_path(key, reference, kinds=("train",)) is None:
            _check_source(key, reference)
        return
    if is_builtin(reference):
        try:
            builtin.builtin(reference)
        except InvalidKeyError as error:
            raise InvalidKeyError(key, error.what, error.suggestion) from error
        return
    try:
        hub.pinned(reference)
    except EspanError as error:
        trained = [name for name, stage in context.earlier.items() if stage.kind == "train"]
        raise InvalidKeyError(
            key,
            f"'{reference}' is neither an earlier train stage nor a folder, and {error}",
            nearest(reference, trained),
        ) from error
    _check_source(key, reference)


def external_files(reference: str) -> tuple[str, ...]:
    """Returns the places whose content decides what `reference` is, for a stage's `external_inputs`.

    A name that may be on the model hub comes back marked (`hub.MARK`): its commit stands for its content.
    """
    if not is_place(reference) or not storage.exists(reference):
        return (_content_of(reference),)
    source = resolve_model(reference, {})
    parts = [part for part in (source.base, source.adapter) if part is not None]
    model_file = storage.join(reference, MODEL_FILE)
    if reference not in parts and storage.exists(model_file):
        parts.append(model_file)  # all of a train stage's folder would be its checkpoints, too
    return tuple(map(_content_of, parts))


def _content_of(place: str) -> str:
    if is_builtin(place):
        return str(builtin.builtin(place))
    return place if is_place(place) or storage.exists(place) else hub.MARK + place


def plan_of_model(reference: str, context: CheckContext) -> dict[str, str]:
    """Returns what `espan plan` says of a model: a stage, or its place, with a hub name's commit."""
    if reference in context.earlier:
        return {"model": f"what stage '{reference}' trains"}
    source = resolve_model(reference, {})
    parts = [part for part in (source.base, source.adapter) if part and is_hub_name(part)]
    cached = any(not is_place(part) and hub.cached_folder(part) is not None for part in parts)
    return {"model": source.name + (" (from the local cache)" if cached else "")}


def _check_source(key: str, reference: str) -> None:
    try:
        source = resolve_model(reference, {})
        for part in (source.adapter, source.base):
            if part is not None:
                check_files(part)
    except EspanError as error:
        raise InvalidKeyError(key, str(error)) from error


def _hub_model(reference: str) -> ModelSource:
    tokenizer = reference if hub_tokenizer_files(reference) else None
    if not holds_adapter_only(reference):
        return ModelSource(reference, tokenizer=tokenizer)
    base = _base_of_adapter(reference)
    return replace(base, adapter=reference, tokenizer=tokenizer or base.tokenizer)


def _base_of_adapter(reference: str) -> ModelSource:
    """Returns the model that the LoRA adapter in a folder or on the hub adapts."""
    configuration = read_json(reference, ADAPTER_CONFIG_FILE)
    file = storage.join(reference, ADAPTER_CONFIG_FILE)
    kind, base = configuration.get("peft_type"), configuration.get("base_model_name_or_path")
    if kind != "LORA":
        raise EspanError(f"{file}: an adapter of kind {kind}; only LORA is supported")
    if not isinstance(base, str) or not base.strip():
        raise EspanError(
            f"{file}: the adapter names no base model; give its folder or hub name in base_model_name_or_path"
        )
    if is_place(base) and not storage.is_folder(base):
        raise EspanError(
            f"{file}: the base model {base} of the adapter is not there; correct base_model_name_or_path"
        )
    if is_place(base) and storage.exists(storage.join(base, ADAPTER_CONFIG_FILE)):
        raise EspanError(_adapts_an_adapter(file, base))
    revision = configuration.get("revision")
    if is_hub_name(base) and not is_place(base) and revision and "@" not in base:
        base = f"{base}@{revision}"
    try:
        source = resolve_model(base, {})
    except EspanError as error:
        raise EspanError(f"{file}: the base model {base} cannot be obtained: {error}") from error
    if source.adapter is not None:
        raise EspanError(_adapts_an_adapter(file, base))
    return source


def _adapts_an_adapter(file: str, base: str) -> str:
    return f"{file}: the base model {base} is an adapter itself; export it merged, and adapt that"


def _read_model_file(folder: str) -> ModelSource:
    path = storage.join(folder, MODEL_FILE)
    content = storage.read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise EspanError(f"{path}: not of format {FORMAT}")
    for key in ("base", "adapter", "tokenizer"):
        if not isinstance(content.get(key), str | None):
            raise EspanError(f"{path}: {key} must be a path, not {content[key]!r}")
    base, adapter, tokenizer = (_beside(folder, content.get(key)) for key in ("base", "adapter", "tokenizer"))
    base, tokenizer = base and MODEL.absolute(base, ()), tokenizer and TOKENIZER.absolute(tokenizer, ())
    if base is None:
        raise EspanError(f"{path}: names no base model")
    return ModelSource(base, adapter, tokenizer)


def _beside(folder: str, place: str | None) -> str | None:
    if place is None or not place.startswith("."):
        return place
    scheme, separator, path = folder.rpartition("://")
    return scheme + separator + posixpath.normpath(posixpath.join(path, place))


def _tokenizer_in(folder: str, reference: str) -> str | None:
    return reference if storage.exists(storage.join(folder, "tokenizer.json")) else None
