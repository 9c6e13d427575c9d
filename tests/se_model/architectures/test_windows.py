"""Layers with a sliding window of the model's own: full attention in their place would be another model."""

import pytest
import torch

from se_model.attach import attach, detach
from tests.se_model.architectures.probes import LENGTH, RIGHT, SPAN, calling, logits, random_tokens
from tests.se_model.architectures.windows import WINDOWED, windowed
from tests.tolerances import EXACT


@pytest.mark.parametrize("window", [4, LENGTH, 10 * LENGTH])
@pytest.mark.parametrize("name", WINDOWED)
def test_a_sliding_window_is_refused_and_detaching_gives_it_back(name: str, window: int) -> None:
    model, tokens = windowed(name, window), random_tokens(1, LENGTH)
    before = logits(model, tokens)
    answer = calling(attach(model, SPAN))
    assert "sliding window" in answer or "sliding_window" in answer or "softcap" in answer
    torch.testing.assert_close(logits(detach(model), tokens), before, **EXACT)


@pytest.mark.parametrize("name", WINDOWED)
def test_new_tokens_after_a_sliding_cache_are_refused(name: str) -> None:
    model, tokens = windowed(name, 4), random_tokens(1, LENGTH)
    with torch.no_grad():
        cache = model(input_ids=tokens, use_cache=True).past_key_values
    answer = calling(attach(model, SPAN), past_key_values=cache)
    assert answer != RIGHT
