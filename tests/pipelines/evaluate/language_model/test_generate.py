"""Prompts that are continued together are continued as each alone, and as lm-eval continues them."""

from dataclasses import replace

import pytest
import torch
from transformers import GenerationConfig

from pipelines.errors import EspanError
from pipelines.evaluate.language_model.batches import at_most, batches
from pipelines.evaluate.language_model.encode import Prompt
from pipelines.evaluate.language_model.generate import continue_prompts
from pipelines.evaluate.language_model.model import EspanLM
from pipelines.evaluate.language_model.stopping import Generation, Stops, check_greedy
from pipelines.evaluate.language_model.together import shares
from se_model import SpanConfig, attach
from tests.pipelines.evaluate.language_model.tiny import (
    THREE,
    instances,
    lively,
    lm_eval_model,
    prompts_of,
    random_rows,
)
from tests.se_model.architectures.beyond import SOME_WINDOWS, beyond_causal
from tests.se_model.tiny_models import ARCHITECTURES, UNKNOWN

CONTEXTS = ["A tiny", "models of several architectures  ", "", "rows " * 20, "x"]
LENGTHS = (37, 24, 3, 24, 1, 2, 60)
SPAN = SpanConfig(chunk_sizes=16, block_size=4, top_k=2, selection="causal", refresh=8)


def never(tokens):
    return False


def now_and_then(tokens):
    return tokens[-1] % 13 == 7


@torch.inference_mode()
def step_by_step(model, prompt, ends=never):
    """Greedy decoding without a cache."""
    row = list(prompt.inputs)
    for _ in range(prompt.max_new_tokens):
        row.append(int(model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1].argmax()))
        if ends(row):
            break
    return row[len(prompt.inputs) :]


@pytest.mark.parametrize("stop", [[], ["e "], ["\n", "th", "q", "no such text"]], ids=str)
def test_texts_are_those_of_lm_eval(model, tokenizer, stop):
    asked = {"until": stop, "max_gen_toks": 20}
    lm = lm_eval_model(model, tokenizer)
    # lm-eval's own cannot continue nothing: it is given the token that stands for it.
    requests = [(context or tokenizer.bos_token, asked) for context in CONTEXTS]
    expected = lm.generate_until(instances("generate_until", *requests), True)
    own = [(context, asked) for context in CONTEXTS]
    found = EspanLM(model, tokenizer).generate_until(instances("generate_until", *own))
    assert found == expected
    assert len(set(found)) > 1


@pytest.mark.parametrize("ends", [never, now_and_then])
def test_prompts_of_unequal_length_together_are_continued_as_each_without_a_cache(model, ends):
    prompts = [replace(prompt, max_new_tokens=9 + 3 * n) for n, prompt in enumerate(prompts_of(*LENGTHS))]
    found = continue_prompts(model, prompts, ends=ends, tokens_per_batch=50)
    assert found == [step_by_step(model, prompt, ends) for prompt in prompts]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_continues_prompts_together_as_each_without_a_cache(model_of, name):
    model, prompts = model_of(name), prompts_of(11, 3, 1, 3, new=5)
    assert continue_prompts(model, prompts, ends=never) == [step_by_step(model, prompt) for prompt in prompts]


@pytest.mark.parametrize("name", SOME_WINDOWS)
def test_layers_with_a_sliding_window_are_continued_as_without_a_cache(name):
    model = lively(beyond_causal(name))
    prompts = prompts_of(*LENGTHS)
    assert continue_prompts(model, prompts, ends=never) == [step_by_step(model, prompt) for prompt in prompts]


@pytest.mark.parametrize("decoding", ["full", "span"])
@pytest.mark.parametrize("name", [*THREE, "bamba"])
def test_with_span_attention_prompts_together_are_continued_as_each_alone(model_of, name, decoding):
    model = attach(model_of(name), replace(SPAN, decoding=decoding))
    prompts = prompts_of(*LENGTHS)
    found = continue_prompts(model, prompts, ends=now_and_then)
    assert found == [continue_prompts(model, [prompt], ends=now_and_then)[0] for prompt in prompts]
    if decoding == "span":
        assert found == [step_by_step(model, prompt, now_and_then) for prompt in prompts]


def test_the_models_own_end_ends_a_row_and_nothing_else_but_the_number_of_tokens(model_of):
    model, prompts = model_of("mamba2_hybrid"), prompts_of(*LENGTHS)
    endless = continue_prompts(model, prompts, ends=never)
    assert all(len(tokens) == 16 for tokens in endless)
    end = endless[0][5]
    for form in (end, [end, 319]):
        model.generation_config.eos_token_id = form
        for whole, tokens in zip(endless, continue_prompts(model, prompts, ends=never), strict=True):
            assert tokens == (whole[: whole.index(end) + 1] if end in whole else whole)


def test_a_row_that_has_ended_is_computed_no_further(model_of):
    model, rows = model_of("llama"), []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    prompts = [Prompt(row, new) for row, new in zip(random_rows(9, 5, 7), (4, 1, 2), strict=True)]
    continue_prompts(model, prompts, ends=never)
    assert rows == [1, 1, 1, 2, 1, 1]


def test_a_model_whose_past_cannot_be_joined_is_refused_by_name(model_of):
    with pytest.raises(EspanError, match="MiniMaxForCausalLM keeps its past in a MiniMaxCache"):
        continue_prompts(model_of(UNKNOWN), prompts_of(3), ends=never)
    with pytest.raises(EspanError, match="RecurrentGemmaForCausalLM returns no cache"):
        continue_prompts(beyond_causal("recurrent_gemma"), prompts_of(3), ends=never)


def test_stops_are_found_across_tokens_and_cut_off(tokenizer):
    stops = Stops.of(tokenizer, ["abc", "xyz"])
    assert stops.strings == ("abc", "xyz", "</s>")
    tokens = [token for letter in "no ab" for token in tokenizer.encode(letter)]
    assert not stops.end(tokens)
    tokens += tokenizer.encode("c")
    assert stops.end(tokens)
    assert stops.text([*tokens, *tokenizer.encode("more")]) == "no "
    assert Stops.of(tokenizer, []).end([tokenizer.eos_token_id])
    assert Stops.of(tokenizer, []).text([*tokenizer.encode("kept"), tokenizer.eos_token_id]) == "kept"


def test_what_a_task_asks_is_read_as_lm_eval_reads_it():
    assert Generation.of({}) == Generation((), 256)
    assert Generation.of({"until": "\n", "max_new_tokens": 5}) == Generation(("\n",), 5)
    asked = {"until": [], "max_gen_toks": 128, "do_sample": False, "temperature": 0.0, "num_beams": 1}
    assert Generation.of(asked) == Generation((), 128)
    for refused, what in (
        ({"do_sample": True}, "only greedy decoding"),
        ({"temperature": 0.7}, "only greedy decoding"),
        ({"num_beams": 4}, "num_beams: 4"),
        ({"untill": ["x"]}, "untill"),
        ({"max_gen_toks": 0}, "at least 1"),
    ):
        with pytest.raises(EspanError, match=what):
            Generation.of(refused)


def test_a_checkpoint_that_changes_greedy_choices_is_refused():
    check_greedy(GenerationConfig(do_sample=True, temperature=0.6, top_k=20, repetition_penalty=1.0))
    with pytest.raises(EspanError, match=r"generation_config.json has repetition_penalty: 1.05"):
        check_greedy(GenerationConfig(repetition_penalty=1.05))


def test_batches_hold_every_row_once_and_no_more_tokens_than_they_may():
    lengths = [7, 3, 7, 9, 1, 3, 20]
    for most in (1, 10, 21, 100):
        for alike in (False, True):
            found = batches(lengths, at_most(most), alike=alike)
            assert sorted(row for batch in found for row in batch) == list(range(len(lengths)))
            for batch in found:
                longest = max(lengths[row] for row in batch)
                assert lengths[batch[0]] == longest
                assert len(batch) == 1 or len(batch) * longest <= most
                assert not alike or {lengths[row] for row in batch} == {longest}
    assert len(batches(lengths, at_most(1000))) == 1


def test_prompts_with_as_many_new_tokens_are_decoded_together():
    """So that no row of a share is longer than its longest: a cache takes no more than was counted."""
    prompts = [
        Prompt(row, new) for row, new in zip(random_rows(9, 2, 5, 3, 4), (4, 11, 4, 11, 4), strict=True)
    ]
    cut = shares(prompts, lambda rows, tokens: rows * tokens <= 28)
    assert cut == [[0, 2], [4], [3, 1]]
