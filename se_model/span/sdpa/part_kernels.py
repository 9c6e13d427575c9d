"""torch's kernels over a part of the keys that queries see: output, log-sum-exp, and the part's gradients.

The log-sum-exp of the logits is called the normaliser. For normalisers a, b and outputs x, y of two parts,
attention over both is x + (y - x) sigmoid(b - a), its normaliser log(exp a + exp b). A part's gradients
depend on the other parts only through the output and the normaliser of the whole, so parts may be computed
separately, in any order. No part needs a mask: it is a causal square or fully visible.
"""

from __future__ import annotations

import torch
from torch import Tensor

from se_model.span.widths import equally_wide

_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_cpu_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_cuda = torch.ops.aten._scaled_dot_product_flash_attention
_cuda_backward = torch.ops.aten._scaled_dot_product_flash_attention_backward


def attend_part(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Output [N, H, m, Dv] and normaliser [N, H, m], the latter in float32 or wider.

    q: [N, H, m, D]; k: [N, G, keys, D]; v: [N, G, keys, Dv]; with ``causal`` as many keys as queries.
    """
    if q.shape[-1] != v.shape[-1]:
        out, normaliser = attend_part(*equally_wide(q, k, v), causal=causal, scale=scale)
        return out[..., : v.shape[-1]], normaliser
    if q.device.type == "cpu":
        out, normaliser = _cpu(q, k, v, 0.0, causal, scale=scale)
        return out, normaliser
    if _has_flash(q):
        out, normaliser, *_ = _cuda(q, *_repeated(q, k, v), 0.0, causal, False, scale=scale)
        return out, normaliser
    return attend_part_by_definition(q, k, v, causal=causal, scale=scale)


def part_gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, normaliser: Tensor,
    *, causal: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """A part's gradients of q, k and v; ``out`` and ``normaliser`` are those of all parts together.

    q: [N, H, m, D]; grad, out: [N, H, m, Dv]; k: [N, G, keys, D]; v: [N, G, keys, Dv]; normaliser: [N, H, m].
    """
    if q.shape[-1] != v.shape[-1]:
        upstream, queries, keys, values, whole = equally_wide(grad, q, k, v, out)
        gradients = part_gradients(
            upstream, queries, keys, values, whole, normaliser, causal=causal, scale=scale
        )
        for_q, for_k, for_v = (x[..., : of.shape[-1]] for x, of in zip(gradients, (q, k, v), strict=True))
        return for_q, for_k, for_v
    if q.device.type == "cpu":
        for_q, for_k, for_v = _cpu_backward(grad, q, k, v, out, normaliser, 0.0, causal, scale=scale)
        return for_q, for_k, for_v
    if _has_flash(q):
        keys, values = _repeated(q, k, v)
        # The kernel assumes a contiguous normaliser, whatever its strides. Without dropout it does not read
        # the random state; nor does it read bounds, which only packed rows have.
        state = torch.zeros(2, dtype=torch.uint64, device=q.device)
        for_q, for_k, for_v = _cuda_backward(
            grad, q, keys, values, out, normaliser.contiguous(), None, None, q.shape[2], k.shape[2], 0.0,
            causal, state, state, scale=scale,
        )  # fmt: skip
        return for_q, _summed(for_k, k), _summed(for_v, v)
    return part_gradients_by_definition(grad, q, k, v, out, normaliser, causal=causal, scale=scale)


def attend_part_by_definition(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """``attend_part`` by plain products, in float32 or wider, for any device."""
    logits = _logits(q, k, causal, scale)
    normaliser = logits.logsumexp(-1)
    values = _repeated(q, v)[0].to(logits.dtype)
    return ((logits - normaliser[..., None]).exp() @ values).to(q.dtype), normaliser


def part_gradients_by_definition(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, normaliser: Tensor,
    *, causal: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """``part_gradients`` by plain products, in float32 or wider, for any device."""
    logits = _logits(q, k, causal, scale)
    dtype = logits.dtype
    weights = (logits - normaliser[..., None]).exp()
    keys, values = (x.to(dtype) for x in _repeated(q, k, v))
    wide = grad.to(dtype)
    delta = (wide * out.to(dtype)).sum(-1, keepdim=True)
    slopes = weights * (wide @ values.transpose(-1, -2) - delta) * scale
    for_k = _summed(slopes.transpose(-1, -2) @ q.to(dtype), k)
    for_v = _summed(weights.transpose(-1, -2) @ wide, v)
    return (slopes @ keys).to(q.dtype), for_k.to(k.dtype), for_v.to(v.dtype)


def _logits(q: Tensor, k: Tensor, causal: bool, scale: float) -> Tensor:
    dtype = torch.promote_types(q.dtype, torch.float32)
    logits = q.to(dtype) @ _repeated(q, k)[0].to(dtype).transpose(-1, -2) * scale
    if causal:
        future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        logits = logits.masked_fill(future, -torch.inf)
    return logits


def _has_flash(q: Tensor) -> bool:
    """torch's flash kernel on CUDA: half precision, heads of up to 256 that 8 divides."""
    halves = (torch.float16, torch.bfloat16)
    return q.device.type == "cuda" and q.dtype in halves and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256


def _repeated(q: Tensor, *tensors: Tensor) -> list[Tensor]:
    """Key/value heads [N, G, keys, D], once for each query head: [N, H, keys, D]."""
    return [x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in tensors]


def _summed(x: Tensor, like: Tensor) -> Tensor:
    """x [N, H, keys, D], summed over the query heads of each key/value head of ``like`` [N, G, keys, D]."""
    return x.unflatten(1, (like.shape[1], -1)).sum(2)
