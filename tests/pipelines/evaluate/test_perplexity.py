"""Perplexity by length: the same tokens, more and more context."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipelines.errors import EspanError
from pipelines.evaluate.perplexity import find_windows, score_perplexity
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
    assert score_perplexity(model, windows, scored=7) == pytest.approx(expected, rel=RTOL)
    assert score_perplexity(model, windows, scored=7, head_tokens=3) == pytest.approx(expected, rel=RTOL)


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
