"""The loss equals the plain cross-entropy of the whole logits, and never holds them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM
from transformers.models.bamba.configuration_bamba import BambaConfig
from transformers.models.cohere.configuration_cohere import CohereConfig
from transformers.models.falcon_h1.configuration_falcon_h1 import FalconH1Config
from transformers.models.gemma2.configuration_gemma2 import Gemma2Config
from transformers.models.granite.configuration_granite import GraniteConfig
from transformers.models.llama.configuration_llama import LlamaConfig

from se_model.loss import causal_lm_loss, chunked_cross_entropy, packed_position_ids, shift_labels
from tests.se_model.sizes import MAMBA
from tests.se_model.sizes import SIZES as TINY
from tests.tolerances import F32, F32_MODEL_GRADIENTS, F64, within

VOCABULARY = 61
SIZES = TINY | {"vocab_size": VOCABULARY, "max_position_embeddings": 128}

CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "llama-tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "granite": GraniteConfig(**SIZES, logits_scaling=7.0),
    "cohere": CohereConfig(**SIZES, logit_scale=0.3),
    "gemma2": Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=0.5),
    "bamba": BambaConfig(**SIZES, attn_layer_indices=[1], **MAMBA),
    "falcon_h1": FalconH1Config(**SIZES, head_dim=8, lm_head_multiplier=3.0, mamba_d_ssm=64, **MAMBA),
}


def tiny_model(name: str) -> nn.Module:
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(CONFIGS[name]).train()


def random_tokens(*shape: int) -> Tensor:
    return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(5))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def test_shifting_gives_each_position_the_label_after_it() -> None:
    shifted = shift_labels(torch.tensor([[4, 5, 6, 7, 8, 9]]), torch.tensor([0, 1, 4, 6]))
    assert shifted.tolist() == [[-100, 6, 7, -100, 9, -100]]
    assert shift_labels(torch.tensor([[4, 5, 6], [7, 8, 9]])).tolist() == [[5, 6, -100], [8, 9, -100]]


def test_positions_restart_at_each_document() -> None:
    assert packed_position_ids(torch.tensor([0, 1, 4, 6])).tolist() == [[0, 0, 1, 2, 0, 1]]


@pytest.mark.parametrize("chunk_tokens", [1, 7, 38, 1000])
def test_chunks_sum_to_the_whole_cross_entropy_with_every_gradient(chunk_tokens: int) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(2, 19, 8, dtype=torch.float64, requires_grad=True)
    head = nn.Linear(8, VOCABULARY, dtype=torch.float64)
    labels = random_tokens(2, 19).masked_fill(torch.arange(19) % 5 == 0, -100)
    expected = F.cross_entropy(head(hidden).flatten(0, 1), labels.flatten(), reduction="sum")
    expected_gradients = torch.autograd.grad(expected, [hidden, *head.parameters()])

    total, count = chunked_cross_entropy(hidden, labels, head, chunk_tokens=chunk_tokens)

    torch.testing.assert_close(total, expected, **within(F64))
    assert count.item() == (labels != -100).sum().item()
    for actual, wanted in zip(
        torch.autograd.grad(total, [hidden, *head.parameters()]), expected_gradients, strict=True
    ):
        torch.testing.assert_close(actual, wanted, **within(F64))


class LargestTensor(TorchDispatchMode):
    """Remembers the largest number of elements that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_no_tensor_of_length_times_vocabulary_ever_exists() -> None:
    length, vocabulary, width, chunk = 512, 1000, 4, 16
    hidden, head = torch.randn(1, length, width, requires_grad=True), nn.Linear(width, vocabulary)
    with LargestTensor() as largest:
        total, _ = chunked_cross_entropy(
            hidden, torch.ones(1, length, dtype=torch.long), head, chunk_tokens=chunk
        )
        total.backward()
    assert largest.elements == chunk * vocabulary


def test_the_head_runs_equally_often_whatever_the_labels() -> None:
    calls = []
    head = nn.Linear(4, VOCABULARY)
    head.register_forward_hook(lambda *_: calls.append(1))
    total, count = chunked_cross_entropy(
        torch.randn(1, 10, 4), torch.full((1, 10), -100), head, chunk_tokens=4
    )
    total.backward()
    assert (total.item(), count.item(), len(calls)) == (0.0, 0, 6)


@pytest.mark.parametrize("name", CONFIGS)
def test_causal_lm_loss_equals_the_models_own_loss_with_every_gradient(name: str) -> None:
    model, tokens = tiny_model(name), random_tokens(2, 21)
    expected = model(input_ids=tokens, labels=tokens, use_cache=False).loss * (2 * 20)
    expected.backward()
    expected_gradients = gradients(model)

    total, count = causal_lm_loss(model, tokens, chunk_tokens=8)
    total.backward()

    assert count.item() == 2 * 20
    torch.testing.assert_close(total, expected, **within(F32))
    actual = gradients(model)
    assert actual.keys() == expected_gradients.keys()
    for parameter, wanted in expected_gradients.items():
        torch.testing.assert_close(
            actual[parameter], wanted, **F32_MODEL_GRADIENTS, msg=lambda m, p=parameter: f"{p}: {m}"
        )


def test_given_labels_are_used_and_ignored_ones_counted_out() -> None:
    model, tokens = tiny_model("llama"), random_tokens(1, 12)
    labels = tokens.clone()
    labels[:, :9] = -100
    total, count = causal_lm_loss(model, tokens, labels=labels)
    logits = model(input_ids=tokens).logits[0, 8:11]
    torch.testing.assert_close(
        total, F.cross_entropy(logits, tokens[0, 9:12], reduction="sum"), **within(F32)
    )
    assert count.item() == 3


def test_adapters_on_the_head_are_in_force() -> None:
    model = get_peft_model(
        tiny_model("llama"), LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    )
    with torch.no_grad():
        model.get_base_model().lm_head.modules_to_save["default"].weight.mul_(2.0)
    tokens = random_tokens(1, 12)
    total, _ = causal_lm_loss(model, tokens)
    total.backward()
    torch.testing.assert_close(total, model(input_ids=tokens, labels=tokens).loss * 11, **within(F32))
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any("lm_head.modules_to_save" in name for name in trained)


def test_packed_documents_give_the_sum_of_their_own_losses() -> None:
    model, tokens = tiny_model("llama"), random_tokens(1, 20)
    total, count = causal_lm_loss(model, tokens, cu_seqlens=torch.tensor([0, 7, 8, 20]))
    alone = [causal_lm_loss(model, tokens[:, start:end]) for start, end in ((0, 7), (7, 8), (8, 20))]
    torch.testing.assert_close(total, sum(loss for loss, _ in alone), **within(F32))
    assert count.item() == sum(n.item() for _, n in alone) == 17


def test_packed_documents_are_refused_where_nothing_is_attached_that_keeps_them_apart() -> None:
    with pytest.raises(
        ValueError, match=r"would carry state across packed documents in .* modules \(first: layers.0"
    ):
        causal_lm_loss(tiny_model("bamba"), random_tokens(1, 20), cu_seqlens=torch.tensor([0, 8, 20]))


def test_what_is_done_to_the_logits_is_known_or_refused_by_name() -> None:
    model = tiny_model("llama")
    model.config.logits_mup_width_multiplier = 3.0
    with pytest.raises(ValueError, match=r"'logits_mup_width_multiplier' = 3\.0"):
        causal_lm_loss(model, random_tokens(1, 8))


def test_a_router_loss_is_never_dropped_silently() -> None:
    model = tiny_model("llama")
    model.config.output_router_logits = True
    with pytest.raises(ValueError, match="output_router_logits"):
        causal_lm_loss(model, random_tokens(1, 8))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: shift_labels(torch.ones(3, dtype=torch.long)), r"must be \[B, L\]"),
        (lambda: shift_labels(torch.ones(2, 4, dtype=torch.long), torch.tensor([0, 4])), "have 2 rows"),
        (
            lambda: chunked_cross_entropy(torch.ones(2, 3, 4), torch.ones(2, 4), nn.Identity()),
            "one label per hidden vector",
        ),
        (
            lambda: chunked_cross_entropy(torch.ones(3, 4), torch.ones(3), nn.Identity(), chunk_tokens=0),
            "at least 1",
        ),
        (
            lambda: causal_lm_loss(nn.Linear(2, 2), torch.ones(1, 2)),
            "not a transformers causal language model",
        ),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
