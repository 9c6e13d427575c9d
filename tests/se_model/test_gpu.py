"""What the CPU tests state, on a CUDA device; `make gpu` runs these alone."""

import pytest
import torch

from se_model import Mamba2HybridConfig, Mamba2HybridForCausalLM, SpanConfig, attach, se_attention
from tests.tolerances import F32

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def inputs(length: int, device: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = [(1, 4, length, 32), (1, 2, length, 32), (1, 2, length, 32)]
    return [torch.randn(shape).to(device).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("length", [31, 257, 1000])
@pytest.mark.parametrize("packed", [False, True])
def test_span_attention_and_its_gradients_are_those_of_the_reference(length: int, packed: bool) -> None:
    bounds = torch.tensor([0, length // 3, length]) if packed else None
    keys = {"chunk_size": 64, "block_size": 16, "top_k": 3}
    expected_inputs, found_inputs = inputs(length, "cpu"), inputs(length, "cuda")
    expected = se_attention(*expected_inputs, **keys, cu_seqlens=bounds, backend="naive")
    found = se_attention(*found_inputs, **keys, cu_seqlens=None if bounds is None else bounds.cuda())
    torch.testing.assert_close(found.cpu(), expected, rtol=F32, atol=F32)
    for output in (expected, found):
        output.square().sum().backward()
    for expected_input, found_input in zip(expected_inputs, found_inputs, strict=True):
        torch.testing.assert_close(found_input.grad.cpu(), expected_input.grad, rtol=10 * F32, atol=10 * F32)


def test_the_hybrid_computes_what_it_does_on_a_cpu() -> None:
    torch.manual_seed(0)
    config = Mamba2HybridConfig(
        vocab_size=128,
        hidden_size=64,
        num_hidden_layers=4,
        attn_layer_indices=[1, 3],
        state_size=16,
        mamba_head_dim=32,
        num_attention_heads=2,
        head_dim=32,
        rotary_dim=16,
    )
    model = attach(Mamba2HybridForCausalLM(config).eval(), SpanConfig(chunk_sizes=64, block_size=16, top_k=3))
    tokens = torch.randint(0, 128, (1, 300))
    with torch.inference_mode():
        expected = model(tokens).logits
        found = model.cuda()(tokens.cuda()).logits.cpu()
    torch.testing.assert_close(found, expected, rtol=100 * F32, atol=100 * F32)
