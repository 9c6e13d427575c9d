"""Compiles every kernel of the backend ``fused`` for a GPU that need not be there: ``python FILE``.

triton brings its own assembler, so what a kernel would need of a GPU is known without one. Prints a JSON list
with one object per kernel and setting.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from se_model.span.kernels import backward, forward, judging, launch_choice, selection, tables
from se_model.span.rules import OWN_NUMBERS, SUMMARIES

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
ROWS = ("q", "k", "v", "x", "out", "grad", "for_q", "for_k", "for_v")
FLOATS = ("normalisers", "deltas", "sums", "summaries")
INTEGERS = (
    "tiles", "starts", "blocks", "retrievers", "bounds", "choice_tiles", "candidates", "tokens", "judged",
    "ranges",
)  # fmt: skip
TOP_K = 8


def settings(width: int, dtype: torch.dtype, block_size: int) -> list[tuple[Any, dict[str, Any], int, int]]:
    """(kernel, its compile-time arguments, warps, stages) as ``launch.py`` starts them."""
    block_d = tables.tile_of(width)
    tiling = tables.choose_tiling(block_d, dtype, interpreted=False)
    common = {"D": width, "S": block_size, "BLOCK_D": block_d, "BLOCK_WIDTH": TOP_K, "UPCAST": False}
    both = tiling.for_keys
    span = {"BLOCK_M": both.queries, "BLOCK_N": tables.tile_of(block_size, both.keys)}
    ways: list[tuple[Any, dict[str, Any], int, int]] = [
        (kernel, {"BLOCK_M": tile.queries, "BLOCK_N": tile.keys, "RETRIEVED": True}, tile.warps, tile.stages)
        for kernel, tile in (
            (forward.attend_kernel, tiling.forward),
            (backward.query_gradients_kernel, tiling.for_queries),
            (backward.chunk_gradients_kernel, both),
        )
    ]
    ways.append((backward.span_gradients_kernel, span, both.warps, both.stages))
    ways.append((backward.delta_kernel, {"BLOCK_M": 64}, 4, 3))
    return [(kernel, common | own, warps, stages) for kernel, own, warps, stages in ways]


def choosing(width: int, dtype: torch.dtype, block_size: int) -> list[tuple[Any, dict[str, Any], int, int]]:
    """As ``settings``, of the kernels that choose blocks: what `launch_choice.py` may ask of them at most."""
    block_d = tables.tile_of(width)
    tiling = tables.choose_tiling(block_d, dtype, interpreted=False)
    common = {"D": width, "S": block_size, "BLOCK_D": block_d, "BLOCK_WIDTH": TOP_K, "UPCAST": False}
    sizes = {
        "BLOCK_M": 64, "BLOCK_S": tables.tile_of(block_size), "BLOCK_T": tiling.choices,
        "BLOCK_U": tiling.blocks, "SHARING": 4, "SUMMARY_SHARING": 1, "SHIFT": 0, "VECTORS": 4,
    }  # fmt: skip
    tile = tables.judging_tile(block_d, interpreted=False)
    judging_sizes = {"BLOCK_R": tile.queries, "BLOCK_U": tile.keys, "SUMMARY": "attention"}
    bounds = judging_sizes | {"SUMMARY": "key_bounds", "VECTORS": 2}
    keys = judging_sizes | {"SUMMARY": "representative_keys"}
    most = {"BLOCK_WIDTH": launch_choice.MOST_KEPT}
    farthest = {"BLOCK_M": max(16, launch_choice.DOUBLES_AT_ONCE // block_d)}
    # Representative keys are found by the kernel that finds representative queries.
    summaries = [summary for summary in SUMMARIES if summary != "representative_keys"]
    ways = [
        *((selection.summarise_kernel, {"SUMMARY": summary}, 4, 3) for summary in summaries),
        (selection.sum_queries_kernel, {"PARTS": True}, 4, 3),
        *((selection.choose_kernel, kept, 4, 3) for kept in ({}, most)),
        (judging.representatives_kernel, farthest | most, 4, 3),
        (judging.normalise_kernel, bounds, tile.warps, tile.stages),
        (judging.normalise_kernel, keys, tile.warps, tile.stages),
        (judging.choose_judged_kernel, bounds | most | {"RELEVANCY": "mass"}, tile.warps, tile.stages),
        (judging.choose_judged_kernel, keys | most | {"RELEVANCY": "peak"}, tile.warps, tile.stages),
        (judging.choose_judged_kernel, judging_sizes | {"RELEVANCY": "max"}, tile.warps, tile.stages),
    ]
    return [(kernel, common | sizes | way, warps, stages) for kernel, way, warps, stages in ways]


def compile_kernel(
    kernel: Any, constants: dict[str, Any], dtype: torch.dtype, warps: int, stages: int, capability: int
) -> dict[str, Any]:
    """What the compiled kernel needs: shared memory in bytes, registers, bytes of registers spilled."""
    names: list[str] = kernel.arg_names
    types = dict.fromkeys(ROWS, "*" + NAMES[dtype]) | dict.fromkeys(FLOATS, "*fp32")
    types |= dict.fromkeys(INTEGERS, "*i32") | {"chosen": "*i64"}
    if constants.get("SUMMARY") in OWN_NUMBERS:
        types["summaries"] = "*" + NAMES[dtype]
    types |= {"scale": "fp32", "scale_base_2": "fp32"} | dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "i32") for name in names}
    used = {(names.index(name),): value for name, value in constants.items() if name in names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(names)
        if signature[name].startswith("*") or name.endswith(("_batch", "_head", "_token"))
    }
    source = ASTSource(kernel, signature, used, aligned)
    options = {"num_warps": warps, "num_stages": stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx: str = compiled.asm["ptx"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ptx")
        path.write_text(ptx)
        architecture = re.search(r"\.target (\w+)", ptx)[1]
        assembler = get_ptxas(capability).path
        command = [assembler, "-v", f"--gpu-name={architecture}", str(path), "-o", str(path) + ".cubin"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {
        "kernel": kernel.__name__,
        "way": {name: value for name, value in constants.items() if name in names},
        "shared": compiled.metadata.shared,
        "registers": int(re.search(r"Used (\d+) registers", said)[1]),
        "spilled": int(re.search(r"(\d+) bytes spill stores", said)[1]),
        "tensor_cores": "wgmma" in ptx or "mma.sync" in ptx,
    }


def main() -> None:
    results = []
    # Compiling takes seconds for each: the kernels that choose, whose products are in float32 for all dtypes,
    # are left out where they would be nearly the same again.
    for capability, width, dtype, block_size, chooses in [
        (90, 128, torch.bfloat16, 32, True),
        (90, 64, torch.float16, 32, False),
        (80, 128, torch.bfloat16, 32, False),
        (80, 64, torch.float32, 32, True),
        (80, 256, torch.bfloat16, 128, True),
    ]:
        ways = settings(width, dtype, block_size) + (choosing(width, dtype, block_size) if chooses else [])
        for kernel, constants, warps, stages in ways:
            result = compile_kernel(kernel, constants, dtype, warps, stages, capability)
            about = {"capability": capability, "width": width, "dtype": str(dtype), "block": block_size}
            results.append({**about, **result})
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
