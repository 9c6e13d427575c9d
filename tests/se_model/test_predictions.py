"""What is predicted at chosen positions is what the whole logits say, on one rank and on several."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from se_model import SpanConfig, attach
from se_model.parallel import ContextParallelGroup, SequenceShard
from se_model.predictions import Predictions, predictions
from se_model.span.documents import DocumentBounds
from tests.distributed import run_distributed
from tests.se_model.tiny_models import tiny_model
from tests.tolerances import F32, within

LENGTH = 64
CHUNK = 8


def model_and_tokens(name: str) -> tuple[nn.Module, Tensor]:
    model = attach(
        tiny_model(name).eval(), SpanConfig(chunk_sizes=CHUNK, block_size=4, top_k=2, selection="causal")
    )
    generator = torch.Generator().manual_seed(5)
    return model, torch.randint(0, 50, (2, LENGTH), generator=generator)


def chosen() -> tuple[Tensor, Tensor, Tensor]:
    """Rows, positions and targets in no order, at the borders of shards among others, one of them twice."""
    positions = torch.tensor([63, 1, 33, 32, 31, 16, 17, 33, 50])
    return torch.tensor([0, 1, 1, 0, 0, 1, 1, 0, 0]), positions, torch.arange(9)


@pytest.mark.parametrize("name", ["llama", "mamba2_hybrid", "qwen3_next"])
def test_predictions_are_those_of_the_whole_logits(name: str) -> None:
    model, tokens = model_and_tokens(name)
    rows, positions, targets = chosen()
    with torch.no_grad():
        logits = model(input_ids=tokens, use_cache=False).logits.float()
    expected = logits.log_softmax(-1)[rows, positions].gather(1, targets[:, None])
    found = predictions(model, tokens, rows, positions, targets, head_tokens=4)
    torch.testing.assert_close(found.log_likelihoods, expected.squeeze(1), **within(F32))
    best = logits[rows, positions].argmax(-1)
    assert predictions(model, tokens, rows, positions, best).first_choice.all()
    assert not predictions(model, tokens, rows, positions, (best + 1) % 50).first_choice.any()


def test_documents_of_a_packed_row_are_predicted_like_rows_of_their_own() -> None:
    model, tokens = model_and_tokens("mamba2_hybrid")
    bounds, targets = DocumentBounds((0, 23, LENGTH)), torch.tensor([1, 2, 3])
    row = torch.zeros(3, dtype=torch.long)
    packed = predictions(model, tokens[:1], row, torch.tensor([22, 30, 63]), targets, documents=bounds)
    first = predictions(model, tokens[:1, :23], row[:1], torch.tensor([22]), targets[:1])
    second = predictions(model, tokens[:1, 23:], row[:2], torch.tensor([7, 40]), targets[1:])
    expected = torch.cat([first.log_likelihoods, second.log_likelihoods])
    torch.testing.assert_close(packed.log_likelihoods, expected, **within(F32))


def _on_a_rank(rank: int, ranks: int, name: str) -> tuple[Tensor, Tensor]:
    model, tokens = model_and_tokens(name)
    shard = SequenceShard.of(ContextParallelGroup(), LENGTH, chunk_multiple=CHUNK)
    found = predictions(model, tokens, *chosen(), shard=shard, head_tokens=2)
    return found.log_likelihoods, found.first_choice


@pytest.mark.parametrize("ranks", [2, 4])
def test_every_rank_has_the_predictions_of_one_process(ranks: int) -> None:
    model, tokens = model_and_tokens("mamba2_hybrid")
    expected = predictions(model, tokens, *chosen())
    for found in run_distributed(_on_a_rank, ranks, "mamba2_hybrid"):
        torch.testing.assert_close(
            Predictions(*found).log_likelihoods, expected.log_likelihoods, **within(F32)
        )
        assert found[1].tolist() == expected.first_choice.tolist()
