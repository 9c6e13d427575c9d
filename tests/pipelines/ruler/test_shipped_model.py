"""The model that ships for RULER recalls a needle at the length that it was trained on."""

from __future__ import annotations

import pytest
import torch

from pipelines.models.builtin import builtin
from pipelines.models.tokenizers import load_tokenizer
from pipelines.recipe.keys.ruler import RulerTask
from pipelines.ruler.compositions import Sources
from pipelines.ruler.essays import read_essays
from pipelines.ruler.generate import generate
from pipelines.ruler.score import score
from pipelines.ruler.tokens import prompt_text
from se_model import Mamba2HybridForCausalLM

LENGTH = 704
NUMBER_TOKENS = 5  # a blank and seven digits, two at a time


@pytest.mark.parametrize("task", ["niah_single_1", "niah_single_2"])
def test_the_shipped_model_recalls_a_number_that_it_never_saw(task: RulerTask) -> None:
    tokenizer = load_tokenizer("builtin:ruler-tiny")
    model = Mamba2HybridForCausalLM.from_pretrained(builtin("ruler-tiny")).eval()
    sources = Sources(read_essays(None))
    prompts = generate(task, LENGTH, indices=range(10), seed=23, tokenizer=tokenizer, sources=sources)
    scores = []
    for prompt in prompts:
        given = tokenizer(prompt_text(task, prompt["input"], prompt["gen_prefix"]), return_tensors="pt")
        with torch.no_grad():
            written = model.generate(
                given["input_ids"], max_new_tokens=NUMBER_TOKENS, do_sample=False, pad_token_id=0
            )
        text = tokenizer.decode(written[0, given["input_ids"].shape[1] :])
        scores.append(score(text, prompt["outputs"]))
    assert sum(scores) >= 9
