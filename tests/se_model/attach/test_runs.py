"""A mask is read once, and cut into runs of real tokens or into documents."""

from __future__ import annotations

import gc

import pytest
import torch

from se_model.attach import runs
from se_model.attach.runs import Run, remember_runs, runs_of
from se_model.span.documents import DocumentBounds


def whole(row: int) -> slice:
    return slice(row, row + 1)


def test_padding_may_stand_at_either_end() -> None:
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]).bool()
    expected = [
        Run(whole(0), 0, 4),
        Run(whole(1), 2, 4),
        Run(whole(2), 0, 1),
        Run(whole(3), 1, 3),
    ]
    assert runs_of(mask) == expected


@pytest.mark.parametrize("row", [[1, 0, 1, 1], [0, 1, 0, 1], [1, 0, 0, 1]])
def test_padding_between_tokens_is_refused_where_runs_are_asked_for(row: list[int]) -> None:
    mask = remember_runs(torch.tensor([[1, 1, 1, 1], row]).bool())
    with pytest.raises(ValueError, match="row 1 of the attention mask has padding between tokens"):
        runs_of(mask)


def test_each_row_has_its_own_documents() -> None:
    documents = torch.tensor([[1, 1, 2, 3, 3], [1, 1, 1, 1, 1]])
    assert runs_of(documents) == [
        Run(whole(0), 0, 5, DocumentBounds((0, 2, 3, 5))),
        Run(whole(1), 0, 5, DocumentBounds((0, 5))),
    ]


def test_a_single_token_is_a_run() -> None:
    assert runs_of(torch.tensor([[True], [False]])) == [Run(whole(0), 0, 1)]
    assert runs_of(torch.tensor([[1]])) == [Run(whole(0), 0, 1, DocumentBounds((0, 1)))]


def test_a_remembered_mask_is_not_read_again_and_is_forgotten_with_its_tensor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mask = remember_runs(torch.tensor([[False, True, True]]))
    gc.collect()
    count = len(runs._known)
    monkeypatch.delattr(runs, "_read")
    assert runs_of(mask) == [Run(whole(0), 1, 3)]
    del mask
    gc.collect()
    assert len(runs._known) == count - 1
