"""The configuration in a local model folder, as a transformers object, and what is cached about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import EspanError, one_line
from pipelines.system import storage
from pipelines.system.answers import remembered

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

CONFIG_FILE = "config.json"
_OURS = ("mamba2_hybrid", None)  # the published state-spaces checkpoints have no model_type


@dataclass(frozen=True)
class Described:
    """A model that is known by its configuration; the transformers object is made when somebody needs it.

    Attributes:
        model_type: its architecture; `mamba2_hybrid` for our own, whatever the file calls it.
        contents: what the configuration is made from, as JSON; None if nothing may be remembered of it.
        load: makes the configuration.
        now: says what `contents` would be now.
    """

    model_type: str
    contents: Any
    load: Callable[[], PreTrainedConfig]
    now: Callable[[], Any]

    @classmethod
    def in_folder(cls, folder: Path) -> Described:
        """Returns the model in a local folder, of which only the configuration is read.

        Raises:
            EspanError: there is no config.json, or it is no JSON object.
        """
        written = _written(folder / CONFIG_FILE)
        kind = written.get("model_type")
        return cls(
            "mamba2_hybrid" if kind in _OURS else str(kind),
            _contents(folder),
            lambda: read_configuration(folder),
            lambda: _contents(folder),
        )

    @classmethod
    def new(cls, keys: dict[str, Any]) -> Described:
        """Returns the Mamba-2-Hybrid with these keys."""

        def make() -> PreTrainedConfig:
            from se_model.hybrid import Mamba2HybridConfig

            return Mamba2HybridConfig(**keys)

        return cls("mamba2_hybrid", ["new", keys], make, lambda: ["new", keys])

    @classmethod
    def of(cls, configuration: PreTrainedConfig) -> Described:
        """Returns the model of a configuration made in code; nothing about it is cached."""
        return cls(configuration.model_type, None, lambda: configuration, lambda: None)

    def remembered(self, what: str, keys: Any, ask: Callable[[PreTrainedConfig], Any]) -> Any:
        """Returns what `ask` finds with the configuration, or found before (see `pipelines.system.answers`).

        Args:
            what: the question.
            keys: all else that the answer depends on, as JSON.
            ask: finds it, as JSON.

        Raises:
            EspanError: the configuration cannot be read; and what `ask` raises.
        """
        question = None if self.contents is None else [what, keys, self.contents]
        return remembered(question, lambda: ask(self.load()), lambda: self.now() == self.contents)


def read_configuration(folder: Path) -> PreTrainedConfig:
    """Returns what `folder/config.json` says of a model, for `from_pretrained(folder, config=...)`.

    Requests for an implementation of attention or of mixtures of experts are dropped: the package that they
    name may not be installed here, and the attention is replaced anyway. transformers then chooses itself,
    `sdpa` where the architecture has it. So is a request for a type of weights, which the caller
    chooses; some files hold words that torch does not know (`auto`, `torch.bfloat16`).

    Raises:
        EspanError: the file is missing, no JSON object, or no configuration that transformers knows.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    from se_model.hybrid import Mamba2HybridConfig

    path = folder / CONFIG_FILE
    written = _written(path)
    family = Mamba2HybridConfig if written.get("model_type") in _OURS else AutoConfig
    try:
        configuration: PreTrainedConfig = family.from_pretrained(str(folder), dtype="float32")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        raise _unreadable(path, error) from error
    # Both setters go down into nested configurations.
    configuration._attn_implementation = None
    configuration._experts_implementation = None
    return configuration


def _written(path: Path) -> dict[str, Any]:
    try:
        written = storage.read_json(str(path))
        if not isinstance(written, dict):
            raise ValueError(f"holds {type(written).__name__} instead of an object of keys")
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return written


def _unreadable(path: Path, error: Exception) -> EspanError:
    return EspanError(f"{path} cannot be read: {one_line(error)}")


def _contents(folder: Path) -> list[list[str]]:
    # transformers may read another file than config.json: one for its own version.
    files = sorted(folder.glob("config*.json"))
    return [[file.name, storage.content_hash(str(file))] for file in files]
