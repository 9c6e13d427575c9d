"""Property 4: a packed row is its documents run one by one."""

from itertools import pairwise

import pytest
import torch

from se_model.span import se_attention, select_blocks
from tests.tolerances import F64

ROWS = [(0, 1, 2, 3), (0, 5, 40, 41, 90), (0, 16, 48, 53), (0, 100, 150), (0, 33)]
WAYS = [("naive", "chunk"), ("sdpa", "chunk"), ("naive", "causal"), ("sdpa", "causal")]
OPTIONS = {"chunk_size": 16, "block_size": 4, "top_k": 2}


def documents(inputs, bounds):
    for start, end in pairwise(bounds):
        yield [x[:, :, start:end] for x in inputs]


@pytest.mark.parametrize(("backend", "selection"), WAYS)
@pytest.mark.parametrize("bounds", ROWS, ids=str)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_packed_row_equals_its_documents_one_by_one(draw, assert_same, bounds, backend, selection, dtype):
    inputs = draw(bounds[-1])
    options = {**OPTIONS, "backend": backend, "selection": selection}
    packed = se_attention(*inputs, **options, cu_seqlens=torch.tensor(bounds, dtype=dtype))
    apart = torch.cat([se_attention(*document, **options) for document in documents(inputs, bounds)], dim=2)
    assert_same(packed, apart, inputs, F64)


@pytest.mark.parametrize(("backend", "selection"), WAYS)
@pytest.mark.parametrize("bounds", ROWS, ids=str)
def test_blocks_are_counted_document_after_document(draw, bounds, backend, selection):
    inputs = draw(bounds[-1])
    options = {**OPTIONS, "backend": backend, "selection": selection}
    expected, first = [], 0
    for document in documents(inputs, bounds):
        blocks = select_blocks(*document, **options)
        expected.append(torch.where(blocks >= 0, blocks + first, -1))
        first += -(-document[0].shape[2] // 4)
    packed = select_blocks(*inputs, **options, cu_seqlens=torch.tensor(bounds))
    assert torch.equal(packed, torch.cat(expected, dim=2))


@pytest.mark.parametrize(("backend", "selection"), WAYS)
def test_nothing_of_one_document_reaches_another(draw, backend, selection):
    inputs = draw(120)
    bounds = torch.tensor([0, 50, 120])
    options = {**OPTIONS, "cu_seqlens": bounds, "backend": backend, "selection": selection}
    first = se_attention(*inputs, **options)
    for gradient in torch.autograd.grad(first[:, :, 50:].sum(), inputs):
        assert torch.count_nonzero(gradient[:, :, :50]) == 0
    with torch.no_grad():
        for x in inputs:
            x[:, :, :50] *= -1e3
    assert torch.equal(se_attention(*inputs, **options)[:, :, 50:], first[:, :, 50:])


@pytest.mark.parametrize(
    ("cu_seqlens", "message"),
    [
        (torch.tensor([0, 5, 5, 20]), "increase strictly; entries 1 and 2 are 5 and 5"),
        (torch.tensor([0, 8, 6, 20]), "increase strictly; entries 1 and 2 are 8 and 6"),
        (torch.tensor([0, 19]), "from 0 to L = 20; got 0 to 19"),
        (torch.tensor([1, 20]), "from 0 to L = 20; got 1 to 20"),
        (torch.tensor([0.0, 20.0]), "int32 or int64"),
        (torch.tensor([[0, 20]]), "int32 or int64"),
        (torch.tensor([0]), "N >= 1 documents"),
    ],
)
def test_wrong_bounds_are_refused(draw, cu_seqlens, message):
    with pytest.raises(ValueError, match=message):
        se_attention(*draw(20), **OPTIONS, cu_seqlens=cu_seqlens)


def test_a_packed_batch_of_rows_is_refused(draw):
    with pytest.raises(ValueError, match="one packed row, but the batch has 2"):
        se_attention(*draw(20, batch=2), **OPTIONS, cu_seqlens=torch.tensor([0, 20]))
