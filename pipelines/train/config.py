"""The smaller mappings among the keys of a `train` stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from pipelines.stage import Section

if TYPE_CHECKING:
    from se_model.hylora import HyLoraConfig


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
            (see `pipelines.worker_resources`). 0 computes on CPUs.
    """

    cpus: PositiveFloat | None = None
    gpus: float | None = Field(default=None, ge=0.0)
