"""What is compared from outside the project: torch's own kernels, flash-attn, flash-linear-attention."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.arithmetic import causal_pairs, moba_pairs, nsa_pairs, pair_flops, window_pairs
from benchmarks.peers import Call, LeftOut, Peer
from benchmarks.settings import Setting
from pipelines.system.machine import GIB, bytes_text
from se_model.span.flash_package import has_flash_attn

REFERENCE = "SDPA full"
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
# Of an attention that stores them; beyond it nobody would train with it, nor wait for it here.
MOST_SCORES = 8 * GIB
# As their authors set them: MoBA's blocks for training (arXiv 2502.13189, section 3.1), NSA's numbers
# (arXiv 2502.11089, section 4.1). MoBA takes as many blocks as fill the sliding window.
MOBA_BLOCK = 512
NSA_BLOCK, NSA_BLOCKS, NSA_WINDOW = 64, 16, 512


def kernel_name(kernel: str) -> str:
    """What the row of one of torch's kernels is called."""
    return f"SDPA {kernel}"


def reference_kernel(setting: Setting, device: str, dtype: torch.dtype) -> str:
    """Which of ``KERNELS`` torch takes by itself for full causal attention."""
    q, k, v = _probe(setting, device, dtype)
    chosen = torch._fused_sdp_choice(
        q, k, v, None, 0.0, True, scale=None, enable_gqa=setting.heads != setting.kv_heads
    )
    return next(name for name, kernel in KERNELS.items() if kernel.value == chosen)


def reference(setting: Setting, length: int) -> Peer:
    """Full causal attention by torch's own call, on the kernel that torch takes by itself."""
    return Peer(REFERENCE, (partial(_sdpa, kernel=None),), _full_flops(setting, length))


def library_peers(setting: Setting, length: int, device: str, dtype: torch.dtype) -> list[Peer | LeftOut]:
    """torch's other kernels, its compiled sliding window, flash-attn, and MoBA and NSA."""
    taken = reference_kernel(setting, device, dtype)
    found: list[Peer | LeftOut] = [
        _kernel_peer(name, setting, length, device, dtype) for name in KERNELS if name != taken
    ]
    builders: tuple[tuple[str, Callable[[Setting, int], Peer], str | None], ...] = (
        ("sliding window, flex_attention", _flex_window, None),
        ("flash-attn", _flash_attn, _flash_attn_refusal(dtype)),
        ("sliding window, flash-attn", _flash_attn_window, _flash_attn_refusal(dtype)),
        ("MoBA", _moba, _fla_refusal(dtype) or _flash_attn_refusal(dtype) or _moba_refusal(setting)),
        ("NSA", _nsa, _fla_refusal(dtype) or _flash_attn_refusal(dtype) or _nsa_refusal(setting)),
    )
    for name, build, refusal in builders:
        # flex_attention has no backward pass on a CPU, and the packages have no kernels for one.
        reason = "runs on CUDA" if device != "cuda" else refusal
        found.append(LeftOut(name, reason) if reason else _build(name, build, setting, length))
    return found


def _build(name: str, build: Callable[[Setting, int], Peer], setting: Setting, length: int) -> Peer | LeftOut:
    """A package may lack the attention in its version, or not load: the others are measured all the same."""
    try:
        return build(setting, length)
    except Exception as error:
        return LeftOut.by(error, name, "preparing")


def _sdpa(q: Tensor, k: Tensor, v: Tensor, *, kernel: SDPBackend | None) -> Tensor:
    """torch's own call and nothing around it, on one of its kernels or on the one it takes by itself."""
    grouped = q.shape[1] != k.shape[1]
    attend = partial(F.scaled_dot_product_attention, is_causal=True, enable_gqa=grouped)
    if kernel is None:
        return attend(q, k, v)
    with sdpa_kernel(kernel):
        return attend(q, k, v)


def _kernel_peer(name: str, setting: Setting, length: int, device: str, dtype: torch.dtype) -> Peer | LeftOut:
    attend = partial(_sdpa, kernel=KERNELS[name])
    try:
        attend(*_probe(setting, device, dtype))
    except RuntimeError as error:
        return LeftOut(kernel_name(name), f"torch: {str(error).splitlines()[0]}")
    # The math kernel stores scores and weights, and their gradients; half precision is computed in float32.
    scores = setting.heads * length**2 * max(4, dtype.itemsize) * 4 if name == "math" else 0
    if scores > MOST_SCORES:
        return LeftOut(kernel_name(name), f"stores every score: about {bytes_text(scores)}")
    return Peer(kernel_name(name), (attend,), _full_flops(setting, length), score_bytes=scores)


def _flex_window(setting: Setting, length: int) -> Peer:
    """The mask is made once, as for all layers of a model; the kernel is compiled for each length."""
    flex = importlib.import_module("torch.nn.attention.flex_attention")
    window = setting.window

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (query - key < window)

    torch.compiler.reset()
    mask = flex.create_block_mask(visible, None, None, length, length, device="cuda", _compile=True)
    compiled = torch.compile(flex.flex_attention, dynamic=False, fullgraph=True)
    attend = partial(compiled, block_mask=mask, enable_gqa=setting.heads != setting.kv_heads)
    flops = pair_flops(setting, window_pairs(window, length))
    return Peer("sliding window, flex_attention", (attend,), flops)


def _flash_attn(setting: Setting, length: int) -> Peer:
    attend = _token_first(partial(importlib.import_module("flash_attn").flash_attn_func, causal=True))
    return Peer("flash-attn", (attend,), _full_flops(setting, length))


def _flash_attn_window(setting: Setting, length: int) -> Peer:
    call = importlib.import_module("flash_attn").flash_attn_func
    attend = _token_first(partial(call, causal=True, window_size=(setting.window - 1, 0)))
    flops = pair_flops(setting, window_pairs(setting.window, length))
    return Peer("sliding window, flash-attn", (attend,), flops)


def _moba(setting: Setting, length: int) -> Peer:
    bounds = torch.tensor([0, length], dtype=torch.int32, device="cuda")
    most = max(2, setting.window // MOBA_BLOCK)
    call = importlib.import_module("fla.ops.moba").parallel_moba
    attend = _token_first(
        partial(call, cu_seqlens=bounds, max_seqlen=length, chunk_size=MOBA_BLOCK, topk=most)
    )
    gates = 2 * setting.heads * setting.head_dim * length * (length // MOBA_BLOCK)
    return Peer("MoBA", (attend,), pair_flops(setting, moba_pairs(MOBA_BLOCK, most, length)), gates)


def _nsa(setting: Setting, length: int) -> Peer:
    # The gates come from a layer around the attention; a third each is where such a layer starts.
    gate = torch.full((1, length, setting.heads), 1 / 3, device="cuda", dtype=torch.bfloat16)
    call = partial(
        importlib.import_module("fla.ops.nsa").parallel_nsa,
        g_cmp=gate,
        g_slc=gate,
        g_swa=gate,
        block_counts=NSA_BLOCKS,
        block_size=NSA_BLOCK,
        window_size=NSA_WINDOW,
    )
    pairs = nsa_pairs(NSA_BLOCK, NSA_BLOCKS, NSA_WINDOW, length)
    return Peer("NSA", (_token_first(call),), pair_flops(setting, pairs))


def _flash_attn_refusal(dtype: torch.dtype) -> str | None:
    if not has_flash_attn():
        return "the package flash-attn is not installed"
    return None if dtype.itemsize == 2 else f"flash-attn does not take {dtype}"


def _fla_refusal(dtype: torch.dtype) -> str | None:
    if find_spec("fla") is None:
        return "the package flash-linear-attention is not installed"
    return None if dtype == torch.bfloat16 else f"measured in bfloat16, not in {dtype}"


def _moba_refusal(setting: Setting) -> str | None:
    return None if setting.heads == setting.kv_heads else "takes as many key/value heads as query heads"


def _nsa_refusal(setting: Setting) -> str | None:
    """flash-linear-attention's kernel puts a group's query heads into one tile."""
    sharing = setting.heads // setting.kv_heads
    if sharing >= 16 and sharing & (sharing - 1) == 0:
        return None
    return f"needs a power of two, 16 or more, of query heads for each key/value head; here {sharing}"


def _token_first(call: Callable[..., Tensor]) -> Call:
    """An attention from a function over [B, L, H, D]."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return call(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)

    return attend


def _probe(setting: Setting, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (
        torch.zeros(
            (1, 256, heads, setting.head_dim), device=device, dtype=dtype, requires_grad=True
        ).transpose(1, 2)
        for heads in (setting.heads, setting.kv_heads, setting.kv_heads)
    )
    return q, k, v


def _full_flops(setting: Setting, length: int) -> int:
    return pair_flops(setting, causal_pairs((0, length)))
