"""The smaller mappings among the keys of a `train` stage."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from pipelines.recipe.keys.section import Section

if TYPE_CHECKING:
    from se_model.hylora import HyLoraConfig


_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*")


def bytes_of(text: str) -> int:
    """Returns an amount of memory, written with its unit: `80GiB`, `80 GB`.

    Raises:
        ValueError: it is none.
    """
    found = _AMOUNT.fullmatch(text)
    unit = None if found is None else _UNITS.get(found[2].upper())
    if found is None or unit is None or not float(found[1]):
        raise ValueError(f"{text!r} is no amount of memory; write a number and its unit, as in 80GiB")
    return int(float(found[1]) * unit)


class NewModel(Section):
    """`model: {new: {...}}`: a Mamba-2-Hybrid that starts from random weights.

    Attributes:
        new: keys of `se_model.Mamba2HybridConfig`. `vocab_size` defaults to that of the data's tokenizer.
    """

    new: dict[str, Any]


class HyLora(Section):
    """What trains; see `se_model.HyLoraConfig`."""

    rank: PositiveInt = 32
    alpha: PositiveFloat = 64.0
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    variant: Literal["hylora", "lora+", "lora"] = "hylora"

    def build(self) -> HyLoraConfig:
        """Returns the configuration for `se_model.apply_hylora`."""
        from se_model.hylora import HyLoraConfig

        return HyLoraConfig(**self.model_dump())


class DeepSpeed(Section):
    """How optimizer state (zero 1), gradients too (2) and weights too (3) are split over the workers."""

    zero: Literal[1, 2, 3] = 2


class Resources(Section):
    """What one worker reserves.

    Attributes:
        cpus: logical CPUs, and with it threads; by default one, or its share where a local machine has fewer
            cores than workers.
        gpus: by default one where the cluster has, or its autoscaler can start, nodes with GPUs, else none
            (see `pipelines.system.worker_resources`). 0 computes on CPUs.
    """

    cpus: PositiveFloat | None = None
    gpus: float | None = Field(default=None, ge=0.0)


class Gpu(Section):
    """The GPUs that workers will get.

    Attributes:
        memory: of one of them, such as `80GiB`. By default that of the cluster's type of GPU, where Ray tells
            it. What does not fit is refused before anything starts.
    """

    memory: str | None = None

    @field_validator("memory")
    @classmethod
    def _memory_is_an_amount(cls, value: str | None) -> str | None:
        if value is not None:
            bytes_of(value)
        return value

    @property
    def bytes(self) -> int | None:
        """The memory of one of them; None where the recipe does not say."""
        return None if self.memory is None else bytes_of(self.memory)
