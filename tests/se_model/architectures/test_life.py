"""Attach, train, save, load, generate, detach: in every architecture that people fine-tune."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from se_model.attach import attach, detach
from se_model.hylora import apply_hylora, coverage
from tests.se_model.architectures.life import generated, kept, train
from tests.se_model.architectures.probes import LENGTH, SPAN, hylora_config, logits, random_tokens
from tests.se_model.tiny_models import ARCHITECTURES, tiny_model
from tests.tolerances import EXACT


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
