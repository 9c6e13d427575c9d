"""Attach, train, save, load, generate, detach: in every architecture that people fine-tune."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from se_model.attach import attach, detach
from se_model.hylora import apply_hylora, coverage
from se_model.loss import causal_lm_loss
from tests.se_model.architectures.probes import LENGTH, SPAN, hylora_config, logits, random_tokens
from tests.se_model.tiny_models import ARCHITECTURES, tiny_model
from tests.tolerances import EXACT


def train(model: PeftModel, steps: int) -> dict[str, bool]:
    """Steps of training. Says of each trainable parameter whether it ever had a gradient."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    reached = dict.fromkeys(trainable, False)
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-2, weight_decay=0.0)
    model.train()
    for _ in range(steps):
        loss, count = causal_lm_loss(model, random_tokens(4, LENGTH))
        (loss / count).backward()
        for name, parameter in trainable.items():
            reached[name] |= parameter.grad is not None and bool(parameter.grad.any())
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return reached


def generated(model: PeftModel) -> list[list[int]]:
    prompts = random_tokens(2, 13)
    mask = torch.ones_like(prompts)
    prompts[0, :4], mask[0, :4] = 0, 0
    arguments = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(input_ids=prompts, attention_mask=mask, **arguments)[:, 13:].tolist()


def kept(model: PeftModel, *, trainable: bool) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad is trainable}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_attach_train_save_load_generate_detach(name: str, tmp_path: Path) -> None:
    model, tokens = tiny_model(name), random_tokens(2, LENGTH)
    config = hylora_config(model)
    adapter = apply_hylora(attach(model, SPAN), config)
    coverage(adapter, config)

    started, frozen = kept(adapter, trainable=True), kept(adapter, trainable=False)
    # Two steps: a low-rank matrix A has no gradient while its B is zero.
    assert [parameter for parameter, reached in train(adapter, steps=2).items() if not reached] == []
    moved, still = kept(adapter, trainable=True), kept(adapter, trainable=False)
    assert [parameter for parameter in started if torch.equal(moved[parameter], started[parameter])] == []
    assert [parameter for parameter in frozen if not torch.equal(still[parameter], frozen[parameter])] == []

    adapter.save_pretrained(tmp_path, save_embedding_layers=False)
    again = attach(PeftModel.from_pretrained(tiny_model(name), tmp_path).eval(), SPAN)
    span = logits(adapter, tokens)
    torch.testing.assert_close(logits(again, tokens), span, **EXACT)
    assert generated(again) == generated(adapter)

    full = logits(PeftModel.from_pretrained(tiny_model(name), tmp_path).eval(), tokens)
    assert (span - full).abs().max() > 1e-3
    assert torch.equal(logits(detach(adapter), tokens), full)
