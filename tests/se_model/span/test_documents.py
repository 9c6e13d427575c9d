"""Bounds of documents are integers; the tensors made of them are those that layers need, made once."""

from __future__ import annotations

import copy

import pytest
import torch

from se_model.span.documents import DocumentBounds, document_bounds

BOUNDS = (0, 1, 4, 9)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_tensor_and_what_was_made_of_it_are_the_same(dtype: torch.dtype) -> None:
    documents = DocumentBounds.of(torch.tensor(BOUNDS, dtype=dtype), 9)
    assert documents == DocumentBounds(BOUNDS) == DocumentBounds.read(torch.tensor(BOUNDS))
    assert hash(documents) == hash(DocumentBounds(BOUNDS))
    assert DocumentBounds.of(documents, 9) is documents
    assert document_bounds(documents, 9) == BOUNDS
    assert document_bounds(None, 9) == (0, 9)
    assert documents.length == 9


def test_each_token_has_its_document_and_its_position_there() -> None:
    documents = DocumentBounds(BOUNDS)
    assert documents.cu_seqlens("cpu").tolist() == [0, 1, 4, 9]
    assert documents.index("cpu").tolist() == [0, 1, 1, 1, 2, 2, 2, 2, 2]
    assert documents.position_ids("cpu").tolist() == [[0, 0, 1, 2, 0, 1, 2, 3, 4]]
    dtypes = [made("cpu").dtype for made in (documents.cu_seqlens, documents.index, documents.position_ids)]
    assert dtypes == [torch.int32, torch.int64, torch.int64]


def test_tensors_are_made_once_per_device() -> None:
    documents = DocumentBounds(BOUNDS)
    for made in (documents.cu_seqlens, documents.position_ids):
        assert made("cpu") is made(torch.device("cpu"))
        assert made("meta").device.type == "meta"


def test_tensors_made_in_inference_mode_serve_training() -> None:
    documents = DocumentBounds(BOUNDS)
    with torch.inference_mode():
        documents.position_ids("cpu")
    weight = torch.ones(9, 2, requires_grad=True)
    torch.nn.functional.embedding(documents.position_ids("cpu"), weight).sum().backward()
    assert weight.grad is not None


def test_copies_are_equal() -> None:
    documents = DocumentBounds(BOUNDS)
    documents.index("cpu")
    assert copy.deepcopy(documents) == documents


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ((), "must run from 0"),
        ((0,), "must run from 0"),
        ((1, 4), "must run from 0 to L = 4; got 1 to 4"),
        ((0, 4, 4, 8), "increase strictly; entries 1 and 2 are 4 and 4"),
    ],
)
def test_what_is_no_bounds_is_refused(bounds: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DocumentBounds(bounds)


@pytest.mark.parametrize("given", [DocumentBounds(BOUNDS), torch.tensor(BOUNDS)])
def test_bounds_of_another_row_are_refused(given: DocumentBounds | torch.Tensor) -> None:
    with pytest.raises(ValueError, match="must run from 0 to L = 8; got 0 to 9"):
        document_bounds(given, 8)
    with pytest.raises(ValueError, match="flatten the rows"):
        document_bounds(given, 9, batch=2)
