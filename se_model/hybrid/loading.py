"""Reading checkpoints without ever filling in, dropping or reshaping a tensor silently."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from se_model.hybrid.published import is_published_config, read_published_weights

_HUB_KEYS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
_HEAD, _EMBEDDING = "lm_head.weight", "backbone.embedding.weight"


def is_published(source: str | os.PathLike[str], kwargs: Mapping[str, Any]) -> bool:
    """Whether a folder or hub name holds a checkpoint in mamba_ssm's format."""
    raw, _ = PreTrainedConfig.get_config_dict(source, **_hub_arguments(kwargs))
    return is_published_config(raw)


def load_published(
    model_class: type[PreTrainedModel], source: str | os.PathLike[str], kwargs: Mapping[str, Any]
) -> PreTrainedModel:
    """A model from config.json and pytorch_model.bin as state-spaces published them.

    kwargs: those of from_pretrained; served are dtype, attn_implementation, config, the hub's, and
    configuration keys to override.

    Raises:
        ValueError: naming every tensor or configuration key that does not fit, or arguments not served.
    """
    options = {key: value for key, value in kwargs.items() if key not in _HUB_KEYS}
    hub = _hub_arguments(kwargs)
    dtype = options.pop("dtype", options.pop("torch_dtype", None))
    attention = options.pop("attn_implementation", None)
    config = options.pop("config", None)
    if config is None:
        config, options = model_class.config_class.from_pretrained(
            source, return_unused_kwargs=True, **hub, **options
        )
    if options:
        raise ValueError(
            f"{', '.join(sorted(options))}: not served when reading a published state-spaces folder; load it "
            "without, save_pretrained it, and load that"
        )
    path = Path(cached_file(source, "pytorch_model.bin", **hub))
    found = read_published_weights(path)
    with torch.device("meta"):
        model = model_class._from_config(config, attn_implementation=attention)
    _fill(model, found, dtype, str(path))
    return model.eval()


def _fill(
    model: PreTrainedModel, found: dict[str, Tensor], dtype: str | torch.dtype | None, source: str
) -> None:
    if model.config.tie_word_embeddings and _EMBEDDING in found:
        head = found.setdefault(_HEAD, found[_EMBEDDING])
        if not torch.equal(head, found[_EMBEDDING]):
            raise ValueError(f"{source}: {_HEAD} differs from {_EMBEDDING}, though config.json ties them")
    expected = model.state_dict()
    check_tensors(expected, found, source)
    if isinstance(dtype, str) and dtype != "auto":
        dtype = getattr(torch, dtype)
    target = dtype if isinstance(dtype, torch.dtype) else found[_EMBEDDING].dtype
    # Copied out of the file's memory map, which may be replaced under a running process.
    model.load_state_dict({name: found[name].to(target, copy=True) for name in expected}, assign=True)
    model.tie_weights()
    model.config.dtype = target


def check_tensors(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], source: str) -> None:
    """Refuse tensors that are not exactly those of a model.

    Raises:
        ValueError: naming every missing, unexpected and misshapen tensor.
    """
    misshapen = [
        (name, found[name].shape, tensor.shape)
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    refuse(source, expected.keys() - found.keys(), found.keys() - expected.keys(), misshapen)


def refuse(
    source: str | os.PathLike[str],
    missing: Iterable[str],
    unexpected: Iterable[str],
    misshapen: Iterable[tuple[str, Iterable[int], Iterable[int]]],
) -> None:
    """Raise one error that names every tensor in question, or return if there is none.

    misshapen: (name, shape in the checkpoint, shape the configuration asks for).

    Raises:
        ValueError: as said.
    """
    problems = [f"missing: {name}" for name in sorted(missing)]
    problems += [f"unexpected: {name}" for name in sorted(unexpected)]
    problems += [
        f"shape: {name} is {list(there)}, the configuration asks for {list(here)}"
        for name, there, here in sorted(misshapen, key=lambda entry: entry[0])
    ]
    if problems:
        raise ValueError(f"{source}: the tensors do not fit config.json\n  " + "\n  ".join(problems))


def _hub_arguments(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: kwargs[key] for key in _HUB_KEYS if key in kwargs}
