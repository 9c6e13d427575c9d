"""The configuration in a local model folder, as a transformers object."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipelines import storage
from pipelines.errors import EspanError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

CONFIG_FILE = "config.json"
_OURS = ("mamba2_hybrid", None)  # the published state-spaces checkpoints have no model_type


def read_configuration(folder: Path) -> PreTrainedConfig:
    """Returns what `folder/config.json` says of a model, for `from_pretrained(folder, config=...)`.

    Wishes for an implementation of attention or of mixtures of experts are left out: the package that they
    name may not be installed here, and the attention is replaced anyway. transformers then chooses itself,
    `sdpa` where the architecture has it.

    Raises:
        EspanError: the file is missing, no JSON object, or no configuration that transformers knows.
    """
    from transformers import AutoConfig

    from se_model.hybrid import Mamba2HybridConfig

    path = folder / CONFIG_FILE
    try:
        written = storage.read_json(str(path))
        if not isinstance(written, dict):
            raise ValueError(f"holds {type(written).__name__} instead of an object of keys")
        family = Mamba2HybridConfig if written.get("model_type") in _OURS else AutoConfig
        configuration: PreTrainedConfig = family.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EspanError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    # Both setters go down into nested configurations.
    configuration._attn_implementation = None
    configuration._experts_implementation = None
    return configuration
