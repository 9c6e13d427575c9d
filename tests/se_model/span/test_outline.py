"""On tensors without memory span attention has shapes, and keeps what its kernels keep."""

import pytest
import torch

from benchmarks.measure import saved_tensors
from se_model import se_attention


@pytest.mark.parametrize("backend", ["auto", "fused", "sdpa", "naive"])
def test_a_call_without_memory_has_shapes_and_gradients(backend: str) -> None:
    with torch.device("meta"):
        q = torch.empty(2, 4, 100, 16, dtype=torch.bfloat16, requires_grad=True)
        k, v = (torch.empty(2, 2, 100, 16, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    out = se_attention(q, k, v, chunk_size=32, block_size=8, top_k=2, backend=backend)
    assert (out.shape, out.dtype, out.device.type) == (q.shape, q.dtype, "meta")
    out.sum().backward()
    for given in (q, k, v):
        assert given.grad is not None
        assert given.grad.shape == given.shape


def test_it_keeps_inputs_output_choice_and_one_number_a_query() -> None:
    def saved_by(device: str) -> dict[tuple[int, ...], int]:
        with torch.device(device):
            q, k, v = (torch.zeros(1, 4, 96, 16, requires_grad=True) for _ in range(3))
            saved = saved_tensors(
                lambda: se_attention(q, k, v, chunk_size=32, block_size=8, top_k=2, backend="sdpa")
            )
        shapes = [tuple(tensor.shape) for tensor in saved.values()]
        return {shape: shapes.count(shape) for shape in shapes}

    # On a CPU the backend's own kernels run.
    assert saved_by("meta") == saved_by("cpu")
