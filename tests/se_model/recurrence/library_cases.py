"""The field's kernels against the recurrences token by token, case by case.

As a script it runs on the CPU and prints the largest differences as JSON; tests on a GPU call `differences`.
"""

import json
import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from se_model.recurrence import causal_convolution, delta_rule_naive, selective_scan_naive, ssd_naive
from se_model.recurrence.causal_conv1d_package import convolution_library
from se_model.recurrence.gated_delta.library import delta_rule_library
from se_model.recurrence.mamba2.library import ssd_library
from se_model.recurrence.selective_scan.library import selective_scan_library
from se_model.span.documents import DocumentBounds


@dataclass(frozen=True)
class Case:
    """bounds: of documents; with (0, L) the operator is told of none. state: whether one is given."""

    kind: str
    bounds: tuple[int, ...]
    batch: int = 1
    heads: int = 2
    groups: int = 1
    width: int = 16
    state_size: int = 16
    chunk: int = 16
    state: bool = True

    def __str__(self) -> str:
        sizes = f"{self.batch}x{self.heads}x{self.groups}x{self.width}x{self.state_size}"
        return f"{self.kind}-{'_'.join(map(str, self.bounds))}-{sizes}{'-state' if self.state else ''}"


CASES = [
    Case("mamba2", (0, 37)),
    Case("mamba2", (0, 16, 20, 21, 36, 37), groups=2),
    Case("mamba2", (0, 21), batch=2, width=32, state=False),
    Case("mamba2", (0, 3, 7), state=False),
    Case("delta", (0, 70)),
    Case("delta", (0, 1, 64, 65, 100)),
    Case("delta", (0, 30), batch=2, groups=2, width=32, state=False),
    Case("delta", (0, 20, 33), state=False),
    Case("kda", (0, 5, 70), heads=1),
    Case("kda", (0, 20), batch=2, heads=2, state=False),
    Case("mamba1", (0, 37), batch=2, groups=2, state=False),
    Case("mamba1", (0, 1, 17, 37), groups=1, state=False),
    *(Case("convolution", bounds, width=8, state_size=size, state=state)
      for size in (2, 4) for bounds in ((0, 37), (0, 1, 3, 37), (0, 36, 37)) for state in (False, True)),
    Case("convolution", (0, 2), batch=2, width=8, state_size=3),
]  # fmt: skip


def drawn(case: Case) -> dict[str, Tensor]:
    """Arguments by name, float64; a state's last, where the case has one."""
    generator = torch.Generator().manual_seed(case.bounds[-1])

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows, heads, width, size = (case.batch, case.bounds[-1]), case.heads, case.width, case.state_size
    if case.kind == "convolution":
        tensors = {"x": normal(*rows, width), "weight": normal(width, size), "bias": normal(width)}
        states = {"state": normal(case.batch, size - 1, width)}
    elif case.kind == "mamba1":
        tensors = {"u": normal(*rows, width), "dt": F.softplus(normal(*rows, width)) / 4}
        tensors |= {"A": -F.softplus(normal(width, size))}
        tensors |= {name: normal(*rows, case.groups, size) for name in "BC"}
        states = {}
    elif case.kind == "mamba2":
        tensors = {"x": normal(*rows, heads, width), "dt": F.softplus(normal(*rows, heads)) / 4}
        tensors |= {"A": -F.softplus(normal(heads))}
        tensors |= {name: normal(*rows, case.groups, size) for name in "BC"}
        states = {"initial_state": normal(case.batch, heads, width, size)}
    else:
        tensors = {name: normal(*rows, case.groups, size) for name in "qk"} | {
            "v": normal(*rows, heads, width)
        }
        channels = (size,) if case.kind == "kda" else ()
        tensors |= {"log_decay": -F.softplus(normal(*rows, heads, *channels))}
        tensors |= {"beta": normal(*rows, heads).sigmoid()}
        states = {"initial_state": normal(case.batch, heads, size, width)}
    return tensors | (states if case.state else {})


FORMS = {
    "mamba2": (ssd_library, ssd_naive),
    "delta": (delta_rule_library, delta_rule_naive),
    "kda": (delta_rule_library, delta_rule_naive),
    "mamba1": (selective_scan_library, selective_scan_naive),
    "convolution": (convolution_library, causal_convolution),
}


def differences(case: Case, device: str, dtype: torch.dtype) -> dict[str, float]:
    """What outputs and gradients differ by at most, in parts of the largest of them if that is above one.

    Parameters, dt, decays, beta and states are float32, the other inputs of ``dtype``.
    """
    library, oracle = FORMS[case.kind]
    wide = {"dt", "A", "log_decay", "beta", "initial_state", "weight", "bias"}
    rounded = {
        name: x.to(torch.float32 if name in wide else dtype).requires_grad_()
        for name, x in drawn(case).items()
    }
    exact = {name: x.detach().double().requires_grad_() for name, x in rounded.items()}
    given = {name: x.detach().to(device).requires_grad_() for name, x in rounded.items()}
    documents = {} if len(case.bounds) == 2 else {"cu_seqlens": DocumentBounds(case.bounds)}
    options = {"chunk_size": case.chunk} if case.kind == "mamba2" else {}
    if case.kind == "convolution":  # as projections are cut: no multiple of 8 before, nor from row to row
        options = {"x": F.pad(given["x"], (3, 5 if documents else 0))[..., 3 : 3 + case.width]}
    found = outputs_and_gradients(library(**(given | options), **documents), given)
    expected = outputs_and_gradients(oracle(**exact, **documents), exact)
    assert found.keys() == expected.keys()
    assert [x.shape for x in found.values()] == [x.shape for x in expected.values()]
    return {
        name: ((found[name].double().cpu() - one).abs().max() / one.abs().max().clamp(min=1)).item()
        for name, one in expected.items()
    }


def outputs_and_gradients(
    outputs: Tensor | tuple[Tensor, Tensor], inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The gradients are of a sum with a weight of its own for each number, so that no error cancels."""
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(out.shape, generator=generator, dtype=torch.float64) for out in outputs]
    weights = [weight.to(out) for weight, out in zip(weights, outputs, strict=True)]
    gradients = torch.autograd.grad(outputs, list(inputs.values()), weights)
    named = dict(zip(("y", "state"), outputs, strict=False))
    return named | {f"grad {name}": x for name, x in zip(inputs, gradients, strict=True)}


def main() -> None:
    from tests.se_model.recurrence.library_on_cpu import prepare

    prepare()
    json.dump({str(case): differences(case, "cpu", torch.float32) for case in CASES}, sys.stdout)


if __name__ == "__main__":
    main()
