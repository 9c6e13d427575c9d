"""The precision a model computes in: what the recipe says, or else what suits the workers' devices.

`auto` is bf16 where every GPU that a worker may get has it, and float32 everywhere else, CPUs included.
float32 means float32: TF32, in which GPUs round the inputs of products to 10 bits, is off, also for what
stays in float32 under bf16 (the choice of blocks, state-space recurrences), where backends would else differ.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipelines.errors import EspanError
from pipelines.system.worker_resources import Reservation

if TYPE_CHECKING:
    import torch

Settled = Literal["fp32", "bf16"]

# By NVIDIA's table of compute capabilities (developer.nvidia.com/cuda-gpus): bf16 came with 8.0.
_WITHOUT_BF16 = re.compile(
    r"K\d+\w*|M\d+|P\d+|V100\w*|T4G?|T400|T600|T1000|T1200|T2000"
    r"|RTX-[3-8]000|GTX.*|GeForce-(GTX|MX).*|GeForce-RTX-20.*|TITAN.*|Quadro.*"
)
_WITH_BF16 = re.compile(
    r"A\d+[A-Z]?(-\d+G)?|L\d+S?|G?[HB]\d+\w*|GH200|RTX-PRO-.*|RTX-A.*|GeForce-RTX-[345]0.*"
    r"|AMD-Instinct-MI[123]\d\d.*"
)


class NoBfloat16Error(EspanError):
    """A worker's GPU has no bf16, although it was assumed to, because its type was unknown."""


def has_bf16(accelerator: str | None) -> bool | None:
    """Says whether GPUs of a type, as Ray names it, compute in bf16; None if that is unknown."""
    if accelerator is None:
        return None
    if _WITHOUT_BF16.fullmatch(accelerator):
        return False
    return True if _WITH_BF16.fullmatch(accelerator) else None


@dataclass(frozen=True)
class Choice:
    """The precision that all workers compute in.

    Attributes:
        precision: `fp32` or `bf16`.
        reason: how it was decided, for people to read.
        assumed: a GPU of unknown type is assumed to have bf16; workers check it.
    """

    precision: Settled
    reason: str
    assumed: bool = False

    def text(self, gpus: float) -> str:
        """Returns it as `espan plan` and the start of a stage show it; `gpus` are those of a worker."""
        tf32 = "; TF32 off" if gpus and self.precision == "fp32" else ""
        return f"{self.precision}, {self.reason}{tf32}"


def choose_precision(asked: Settled | Literal["auto"], workers: Reservation) -> Choice:
    """Returns the precision that `workers` compute in where a recipe asks for `asked`."""
    if asked != "auto":
        return Choice(asked, "as the recipe says")
    if not workers.gpus:
        return Choice("fp32", "for CPUs")
    lacking = sorted(str(each) for each in workers.accelerators if has_bf16(each) is False)
    if lacking:
        return Choice("fp32", f"{', '.join(lacking)} has no bf16")
    if all(map(has_bf16, workers.accelerators)):
        return Choice("bf16", f"{', '.join(sorted(map(str, workers.accelerators)))} has it")
    return Choice("bf16", "or fp32 if a worker's GPU, whose type is not known yet, has no bf16", assumed=True)


def torch_dtype(precision: Settled) -> torch.dtype:
    """Returns torch's type for a precision."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def without_bf16(error: NoBfloat16Error) -> Choice:
    """Returns the choice that remains after a worker found that its GPU has no bf16."""
    return Choice("fp32", str(error))


def multiply_in_float32(device: torch.device) -> None:
    """Turns TF32 off in this process, whose numbers are on `device`; see the rule above."""
    import torch

    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False  # convolutions have a switch of their own, which is on
