"""Perplexity by length: the same tokens, more and more context."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import EspanError
from pipelines.evaluate.perplexity import PerplexityUnit, bin_bounds, token_nats
from pipelines.evaluate.windows import find_windows
from pipelines.evaluate.worker import Worker
from se_model import Mamba2HybridForCausalLM

LENGTH = 96
RTOL = 1e-5

WriteShards = Callable[..., np.ndarray]


def test_the_loss_is_that_of_the_last_tokens_given_all_before_them(model: Mamba2HybridForCausalLM) -> None:
    windows = torch.randint(0, 200, (3, 40), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        logits = model(input_ids=windows).logits
    expected = [
        float(F.cross_entropy(row[-8:-1], tokens[-7:], reduction="sum"))
        for row, tokens in zip(logits, windows, strict=True)
    ]
    nats = token_nats(Worker(model), windows, first=33)
    assert nats.sum(1).tolist() == pytest.approx(expected, rel=RTOL)


@given(length=st.integers(2, 500), bins=st.integers(1, 40))
def test_every_predicted_position_is_in_one_bin_and_bins_are_equal(length: int, bins: int) -> None:
    bounds = bin_bounds(length, bins)
    assert [position for first, end in bounds for position in range(first, end)] == list(range(1, length))
    sizes = {end - first for first, end in bounds}
    assert max(sizes) - min(sizes) <= 1
    assert len(bounds) == min(bins, length - 1)


def test_bins_hold_the_loss_of_the_whole_window_and_the_scored_tokens_are_among_it(
    model: Mamba2HybridForCausalLM, tmp_path: Path, write_shards: WriteShards
) -> None:
    write_shards(tmp_path, [[LENGTH]] * 2)
    source = find_windows(str(tmp_path), longest=LENGTH, windows=2)
    found = PerplexityUnit(source, LENGTH, 0, 2, scored=19, bins=5).score(Worker(model))
    nats = token_nats(Worker(model), source.read(0, 2, LENGTH), first=1)
    assert [sum(window) for window in found["bins"]] == pytest.approx(nats.sum(1).tolist(), rel=RTOL)
    assert [window[-1] for window in found["bins"]] == pytest.approx(found["nats"], rel=RTOL)
    assert "bins" not in PerplexityUnit(source, LENGTH, 0, 2, scored=19).score(Worker(model))


def test_a_loss_that_is_no_number_names_the_length(
    tmp_path: Path, write_shards: WriteShards, model: Mamba2HybridForCausalLM
) -> None:
    write_shards(tmp_path, [[LENGTH]])
    source = find_windows(str(tmp_path), longest=LENGTH, windows=1)
    broken = copy.deepcopy(model)
    broken.get_input_embeddings().weight.data.fill_(float("nan"))
    with pytest.raises(EspanError, match="perplexity at 96 tokens: the loss is not a number"):
        PerplexityUnit(source, LENGTH, 0, 1, scored=4).score(Worker(broken))


def test_every_length_ends_at_the_same_tokens(tmp_path: Path, write_shards: WriteShards) -> None:
    tokens = write_shards(tmp_path, [[LENGTH]] * 4)
    source = find_windows(str(tmp_path), longest=64, windows=3)
    for length in (16, 64):
        np.testing.assert_array_equal(source.read(1, 2, length).numpy(), tokens[1:3, LENGTH - length :])


def test_windows_lie_within_one_document(tmp_path: Path, write_shards: WriteShards) -> None:
    tokens = write_shards(tmp_path, [[20, 76], [60, 36], [96], [30, 30, 36]])
    source = find_windows(str(tmp_path), longest=50, windows=9)
    assert source.ends == ((0, 96), (1, 60), (2, 96))
    np.testing.assert_array_equal(source.read(1, 1, 50).numpy()[0], tokens[1, 10:60])


def test_rows_of_running_text_are_windows_as_a_whole(tmp_path: Path, write_shards: WriteShards) -> None:
    write_shards(tmp_path, [[LENGTH]] * 2, packing="concatenate")
    assert find_windows(str(tmp_path), longest=LENGTH, windows=9).ends == ((0, LENGTH), (1, LENGTH))


def test_without_a_document_long_enough_the_longest_is_named(
    tmp_path: Path, write_shards: WriteShards
) -> None:
    write_shards(tmp_path, [[40, 56], [48, 48]])
    with pytest.raises(EspanError, match=r"needs documents that long, the longest has 56"):
        find_windows(str(tmp_path), longest=64, windows=1)
