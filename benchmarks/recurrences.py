"""The recurrences whose cost is measured, the peer of each, and what they should reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BambaConfig
from transformers.models.bamba.modeling_bamba import mamba2_chunk_scan
from transformers.models.kimi_linear.modeling_kimi_linear import chunk_kimi_delta_attention
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

from se_model.recurrence import GATED_DELTA, MAMBA2, delta_rule_chunked, ssd_chunked
from se_model.recurrence.fla_package import gated_delta_kernels, kda_kernels
from se_model.recurrence.gated_delta.operator import delta_rule
from se_model.recurrence.mamba2.operator import ssd
from se_model.recurrence.mamba_ssm_package import mamba_chunk_scan

HEADS = 8
HEAD_SIZE, STATE_SIZE, GROUPS = 64, 128, 1  # Mamba-2's, as in its models of 1.3B and more
KERNEL_CHUNK = 256  # what mamba-ssm's own layer takes
KEY_SIZE = VALUE_SIZE = 128  # Qwen3-Next's and Kimi-Linear's

Scan = Callable[..., Tensor]


@dataclass(frozen=True)
class Recurrence:
    """A kind of recurrence, ours and the peer's.

    Attributes:
        own, peer: what the tables call them.
        sizes: what the result says of its heads.
        draw: makes float32 inputs for so many tokens.
        scan, peer_scan: take those and return the output.
        peer_length: tokens that the peer is measured at, and ours beside it.
        package: whose kernels the operator takes on a GPU.
        operator, kernels: what is measured there: what layers call, and the package's function alone.
        most_held: bytes per token and head that forward and backward should hold at once, with the output and
            every gradient.
    """

    own: str
    peer: str
    sizes: dict[str, int]
    draw: Callable[[int], list[Tensor]]
    scan: Scan
    peer_scan: Scan
    peer_length: int
    most_held: int
    package: str
    operator: Scan
    kernels: Scan


def draw_mamba2(length: int) -> list[Tensor]:
    """x [1, L, H, P], dt [1, L, H], A [H], B and C [1, L, G, N]."""
    shapes = ((HEADS, HEAD_SIZE), (HEADS,), (GROUPS, STATE_SIZE), (GROUPS, STATE_SIZE))
    x, dt, B, C = _normal(length, *shapes)
    A = -torch.linspace(1, 16, HEADS)
    return [tensor.requires_grad_() for tensor in (x, F.softplus(dt), A, B, C)]


def draw_gated_delta(length: int) -> list[Tensor]:
    """q, k [1, L, H / 2, K], v [1, L, H, V], log_decay and beta [1, L, H]: two heads share a key."""
    keys = (HEADS // 2, KEY_SIZE)
    q, k, v, log, beta = _normal(length, keys, keys, (HEADS, VALUE_SIZE), (HEADS,), (HEADS,))
    return [tensor.requires_grad_() for tensor in (q, k, v, -F.softplus(log), beta.sigmoid())]


def draw_gated_delta_by_channel(length: int) -> list[Tensor]:
    """q, k, log_decay [1, L, H, K], v [1, L, H, V] and beta [1, L, H]."""
    keys = (HEADS, KEY_SIZE)
    q, k, v, log, beta = _normal(length, keys, keys, (HEADS, VALUE_SIZE), keys, (HEADS,))
    return [tensor.requires_grad_() for tensor in (q, k, v, -F.softplus(log), beta.sigmoid())]


def _normal(length: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, length, *shape, generator=generator) for shape in shapes]


def _ssd(*inputs: Tensor) -> Tensor:
    return ssd_chunked(*inputs)[0]


def _bamba(*inputs: Tensor) -> Tensor:
    # The scan that Bamba's layers fall back on without kernels, in the chunks of its configuration.
    y: Tensor = mamba2_chunk_scan(*inputs, chunk_size=BambaConfig().mamba_chunk_size)
    return y


def _ssd_operator(*inputs: Tensor) -> Tensor:
    return ssd(*inputs, chunk_size=KERNEL_CHUNK)[0]


def _mamba_ssm(*inputs: Tensor) -> Tensor:
    y: Tensor = mamba_chunk_scan()(*inputs, KERNEL_CHUNK)
    return y


def _delta_rule(*inputs: Tensor) -> Tensor:
    return delta_rule_chunked(*inputs)[0]


def _qwen3_next(*inputs: Tensor) -> Tensor:
    o: Tensor = torch_chunk_gated_delta_rule(*inputs, use_qk_l2norm_in_kernel=True)[0]
    return o


def _kimi_linear(*inputs: Tensor) -> Tensor:
    o: Tensor = chunk_kimi_delta_attention(*inputs, use_qk_l2norm_in_kernel=True)[0]
    return o


def _delta_rule_operator(*inputs: Tensor) -> Tensor:
    return delta_rule(*inputs)[0]


def _fla(*inputs: Tensor) -> Tensor:
    rule = gated_delta_kernels() if inputs[3].dim() == 3 else kda_kernels()
    o: Tensor = rule(*inputs, use_qk_l2norm_in_kernel=True)[0]
    return o


# transformers' torch paths keep several GiB at lengths that take them minutes.
RECURRENCES = (
    Recurrence(
        own="ssd_chunked",
        peer="transformers' torch path (Bamba)",
        sizes={"heads": HEADS, "head_dim": HEAD_SIZE, "state_size": STATE_SIZE, "groups": GROUPS},
        draw=draw_mamba2,
        scan=_ssd,
        peer_scan=_bamba,
        peer_length=4096,
        most_held=1500,
        package=MAMBA2.library.package,
        operator=_ssd_operator,
        kernels=_mamba_ssm,
    ),
    Recurrence(
        own="delta_rule_chunked",
        peer="transformers' torch path (Qwen3-Next)",
        sizes={"heads": HEADS, "key_heads": HEADS // 2, "key_size": KEY_SIZE, "value_size": VALUE_SIZE},
        draw=draw_gated_delta,
        scan=_delta_rule,
        peer_scan=_qwen3_next,
        peer_length=4096,
        most_held=2500,
        package=GATED_DELTA.library.package,
        operator=_delta_rule_operator,
        kernels=_fla,
    ),
    Recurrence(
        own="delta_rule_chunked, a decay per channel",
        peer="transformers' torch path (Kimi-Linear)",
        sizes={"heads": HEADS, "key_heads": HEADS, "key_size": KEY_SIZE, "value_size": VALUE_SIZE},
        draw=draw_gated_delta_by_channel,
        scan=_delta_rule,
        peer_scan=_kimi_linear,
        peer_length=1024,
        most_held=3500,
        package=GATED_DELTA.library.package,
        operator=_delta_rule_operator,
        kernels=_fla,
    ),
)
