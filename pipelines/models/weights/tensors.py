"""A checkpoint's tensors under the names that its model gives them, still unread."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from pipelines.models.weights.files import WeightFiles
from pipelines.models.weights.skeleton import tie

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Weights(Protocol):
    """Where a model's tensors come from: files, or files with an adapter merged in."""

    def dtype(self, name: str) -> torch.dtype:
        """Returns the type of a tensor as it is stored."""
        ...

    def read(self, name: str, mapped: bool = False) -> Tensor:
        """Returns a tensor of the model on the CPU; see `WeightFiles.read` for `mapped`."""
        ...


@dataclass
class Misfits:
    """Where a checkpoint and its model do not match.

    Attributes:
        missing: names in the model alone.
        unexpected: names in the files alone.
        misshapen: (name, shape there, shape asked for).
        untied: (name, other name) that the configuration ties, and the files have with different values.
    """

    missing: set[str] = field(default_factory=set)
    unexpected: set[str] = field(default_factory=set)
    misshapen: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    untied: list[tuple[str, str]] = field(default_factory=list)


class CheckpointWeights:
    """The tensors of `files` for `model`, a skeleton, whose tied weights this ties.

    transformers (5.23) renames tensors of many checkpoints and puts some together from several (experts of
    a layer, say). Its tables and operations are used here (core_model_loading.py), tensor by tensor; what is
    ours is only that nothing is read before it is asked for.

    Attributes:
        misfits: names that the model or the files lack.
    """

    def __init__(self, model: PreTrainedModel, files: WeightFiles) -> None:
        self._model = model
        self._files = files
        self._sources: dict[str, _Source] = {}
        # Of a tied tensor the files have one name: every name of the model -> that one.
        self._stored: dict[str, str] = {}
        self.misfits = Misfits()
        self._find_sources(model.state_dict())
        self._tie()
        self._ignore_exceptions()

    def dtype(self, name: str) -> torch.dtype:
        """Returns the type of a tensor as it is stored."""
        return self._files.tensors[self._source(name).parts[0].file_name].dtype

    def read(self, name: str, mapped: bool = False) -> Tensor:
        """Returns the model's tensor `name`, or the one that it is tied to; see `WeightFiles.read`.

        Raises:
            EspanError: a file is damaged.
        """
        read = partial(self._files.read, mapped=mapped)
        return self._source(name).convert(self._model, read)[self._stored.get(name, name)]

    def _source(self, name: str) -> _Source:
        return self._sources[self._stored.get(name, name)]

    def _find_sources(self, expected: Mapping[str, Tensor]) -> None:
        for source in _sources(self._model, self._files.tensors, expected):
            found = source.convert(
                self._model, lambda part: torch.empty(self._files.tensors[part].shape, device="meta")
            )
            for name, tensor in found.items():
                if name not in expected:
                    self.misfits.unexpected.add(name)
                elif tensor.shape != expected[name].shape:
                    self.misfits.misshapen.append((name, tuple(tensor.shape), tuple(expected[name].shape)))
                else:
                    self._sources[name] = source
        known = {name for name, _, _ in self.misfits.misshapen} | self._sources.keys()
        self.misfits.missing = set(expected) - known

    def _tie(self) -> None:
        """Ties what the configuration ties, unless the files hold two different tensors for it."""
        there = {name for name, _, _ in self.misfits.misshapen} | self._sources.keys()
        for target, source in list(self._model.all_tied_weights_keys.items()):
            if not {target, source} <= self._sources.keys():
                continue
            if self._same(target, source):
                # A torch file lists both; the model has one.
                del self._sources[target]
                there.discard(target)
            else:
                self._model.all_tied_weights_keys.pop(target)
                self.misfits.untied.append((target, source))
        self.misfits.missing = set(self._model.state_dict()) - there
        tie(self._model, self.misfits.missing)
        names: dict[int, list[str]] = {}
        for name, parameter in self._model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        for alike in names.values():
            stored = next((name for name in alike if name in self._sources), None)
            if stored is not None:
                self._stored |= dict.fromkeys(alike, stored)
                self.misfits.missing -= set(alike)

    def _same(self, one: str, two: str) -> bool:
        first, second = self._sources[one].parts, self._sources[two].parts
        if len(first) == len(second) == 1:
            return self._files.same(first[0].file_name, second[0].file_name)
        return torch.equal(self.read(one), self.read(two))

    def _ignore_exceptions(self) -> None:
        """Takes out what the architecture's class says may be missing, or in a file for nothing."""
        model, misfits = self._model, self.misfits
        misfits.missing -= _matching(model._keys_to_ignore_on_load_missing, misfits.missing)
        # Computed, not stored, since transformers 4; older files have them.
        computed = {r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$"}
        ignored = set(model._keys_to_ignore_on_load_unexpected or ()) | computed
        misfits.unexpected -= _matching(ignored, misfits.unexpected)


@dataclass(frozen=True)
class _Part:
    """One tensor of the files: its name there, where it goes, and the pattern that said so."""

    file_name: str
    renamed: str
    pattern: str | None


@dataclass
class _Source:
    """The tensors of the files that make up one tensor of the model, or several."""

    parts: list[_Part]
    converter: Any = None

    def convert(self, model: PreTrainedModel, read: Any) -> dict[str, Tensor]:
        """Returns the model's tensors by name, made of what `read` gives for each part."""
        first = self.parts[0]
        if self.converter is None:
            return {first.renamed: read(first.file_name)}
        converter = deepcopy(self.converter)
        for part in self.parts:
            converter.add_tensor(first.renamed, part.file_name, part.pattern, read(part.file_name))
        made = converter.convert(first.renamed, model=model, config=model.config)
        return {name: each[0] if isinstance(each, list) else each for name, each in made.items()}


def _sources(
    model: PreTrainedModel, names: Iterable[str], expected: Mapping[str, Tensor]
) -> Iterable[_Source]:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    mapping = get_model_conversion_mapping(model)
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    found: dict[str, _Source] = {}
    for name in sorted(names, key=dot_natural_key):
        renamed, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, expected)
        if renamed not in expected and name in expected:
            renamed, pattern = rename_source_key(name, [], [], model.base_model_prefix, expected)
        converter = by_pattern[pattern] if pattern is not None and renamed in expected else None
        found.setdefault(renamed, _Source([], converter)).parts.append(_Part(name, renamed, pattern))
    # As after from_pretrained: save_pretrained takes back what was done to the names.
    model._weight_conversions = [each for each in mapping if each.was_used()]
    return found.values()


def _matching(patterns: Iterable[str] | None, names: Iterable[str]) -> set[str]:
    compiled = [re.compile(pattern) for pattern in patterns or ()]
    return {name for name in names if any(pattern.search(name) for pattern in compiled)}
