"""A packed row equals its documents run one by one: nothing leaks across a boundary (property 4)."""

from __future__ import annotations

import pytest
import torch

from se_model.hybrid.rotary import rotary_angles
from tests.tolerances import EXACT, F32_SHORT, F64, within

LENGTHS = [[1, 1, 1, 1], [20, 1, 16, 3], [16, 16, 8], [40], [2, 3, 4, 30, 1]]


def boundaries(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("overrides", [{}, {"attention_conv_kernel": 0}], ids=["convolution", "none"])
def test_packed_row_equals_documents_outputs_loss_and_every_gradient(small_model, tokens, lengths, overrides):
    model = small_model(**overrides)
    row = tokens(1, sum(lengths))
    upstream = torch.randn(1, sum(lengths), model.config.vocab_size, dtype=torch.float64)

    packed = model(row, cu_seqlens=boundaries(lengths), labels=row)
    (packed.logits * upstream).sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()

    outputs = [model(document, labels=document) for document in row.split(lengths, dim=1)]
    expected = torch.cat([output.logits for output in outputs], dim=1)
    torch.testing.assert_close(packed.logits, expected, rtol=0, atol=F64)
    (expected * upstream).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, **within(F64))

    targets = [length - 1 for length in lengths]
    total = sum(output.loss * count for output, count in zip(outputs, targets, strict=True) if count)
    if sum(targets):
        torch.testing.assert_close(packed.loss, total / sum(targets), rtol=F32_SHORT, atol=0)


def test_no_gradient_reaches_an_input_across_a_boundary(small_model, tokens):
    model = small_model()
    embedded = model.get_input_embeddings()(tokens(1, 30)).detach().requires_grad_()
    output = model(inputs_embeds=embedded, cu_seqlens=torch.tensor([0, 10, 13, 30]))
    output.logits[:, 10:13].sum().backward()
    size = embedded.grad.abs().amax(-1)[0]
    assert size[10:13].min() > 1e-3
    # Not exactly zero: the gradients of cumulative sums cancel by subtraction.
    assert max(size[:10].max(), size[13:].max()) < 1e-15 * size.max()


def test_packed_row_through_an_attached_attention_equals_its_documents(small_model, tokens):
    from se_model.attach import attach
    from se_model.span import SpanConfig

    model = attach(small_model(), SpanConfig(chunk_sizes=8, block_size=4, top_k=1))
    row, lengths = tokens(1, 40), [20, 1, 16, 3]
    packed = model(row, cu_seqlens=boundaries(lengths)).logits
    documents = [model(document).logits for document in row.split(lengths, dim=1)]
    torch.testing.assert_close(packed, torch.cat(documents, dim=1), rtol=0, atol=F64)


def test_positions_start_anew_at_each_document(small_model, tokens):
    """Attention alone would not show it, since RoPE is relative; what selects by rotated queries does."""
    model, seen = small_model(), []
    mixer = model.backbone.layers[1].mixer
    mixer.register_forward_pre_hook(lambda _, __, kwargs: seen.append(kwargs["rotary"]), with_kwargs=True)
    model(tokens(1, 7), cu_seqlens=torch.tensor([0, 3, 7]))
    model(
        tokens(1, 7), position_ids=torch.tensor([[0, 1, 2, 0, 1, 2, 3]]), cu_seqlens=torch.tensor([0, 3, 7])
    )
    expected = rotary_angles(torch.tensor([[0, 1, 2, 0, 1, 2, 3]]), 6, 10000.0, torch.float64)
    for angles in seen:
        torch.testing.assert_close(angles, expected, **EXACT)


def test_what_cannot_be_packed_is_refused(small_model, tokens):
    model, row = small_model(), tokens(1, 10)
    cu_seqlens = torch.tensor([0, 4, 10])
    with pytest.raises(ValueError, match="cannot fill or continue a cache"):
        model(row, cu_seqlens=cu_seqlens, use_cache=True)
    with pytest.raises(ValueError, match="leave attention_mask out"):
        model(row, cu_seqlens=cu_seqlens, attention_mask=torch.ones_like(row))
    with pytest.raises(ValueError, match="flatten the rows"):
        model(tokens(2, 10), cu_seqlens=cu_seqlens)
    with pytest.raises(ValueError, match="give cu_seqlens"):
        model(row, position_ids=torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5]]))
    with pytest.raises(ValueError, match="cu_seqlens must run from 0"):
        model(row, cu_seqlens=torch.tensor([0, 4]))
