"""On tensors without memory span attention has shapes, and keeps what its kernels keep."""

import pytest
import torch

from benchmarks.measure import saved_tensors
from se_model import se_attention


@pytest.mark.parametrize("values", [16, 24])
@pytest.mark.parametrize("backend", ["auto", "fused", "sdpa", "naive"])
def test_a_call_without_memory_has_shapes_and_gradients(backend: str, values: int) -> None:
    with torch.device("meta"):
        q, k, v = (
            torch.empty(2, heads, 100, width, dtype=torch.bfloat16, requires_grad=True)
            for heads, width in ((4, 16), (2, 16), (2, values))
        )
    out = se_attention(q, k, v, chunk_size=32, block_size=8, top_k=2, backend=backend, summary="mean_key")
    assert (out.shape, out.dtype, out.device.type) == ((2, 4, 100, values), q.dtype, "meta")
    out.sum().backward()
    for given in (q, k, v):
        assert given.grad is not None
        assert given.grad.shape == given.shape


@pytest.mark.parametrize("values", [16, 24])
def test_it_keeps_inputs_output_choice_and_one_number_a_query(values: int) -> None:
    options = {"chunk_size": 32, "block_size": 8, "top_k": 2, "backend": "sdpa", "summary": "mean_key"}

    def saved_by(device: str) -> dict[tuple[int, ...], int]:
        with torch.device(device):
            q, k, v = (torch.zeros(1, 4, 96, width, requires_grad=True) for width in (16, 16, values))
            saved = saved_tensors(lambda: se_attention(q, k, v, **options))
        shapes = [tuple(tensor.shape) for tensor in saved.values()]
        return {shape: shapes.count(shape) for shape in shapes}

    # On a CPU the backend's own kernels run.
    assert saved_by("meta") == saved_by("cpu")
