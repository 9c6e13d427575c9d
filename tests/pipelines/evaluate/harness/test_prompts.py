"""What tasks of lm-eval have generated is known, and how much memory it takes, before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from pipelines.context import Context
from pipelines.errors import EspanError
from pipelines.evaluate.harness.measure import Harness
from pipelines.evaluate.harness.prompts import prompt_lengths
from pipelines.evaluate.harness.tasks import load_tasks, task_manager
from pipelines.evaluate.language_model.batches import batches
from pipelines.evaluate.language_model.cache import cache_size
from pipelines.evaluate.language_model.encode import Encoder
from pipelines.evaluate.language_model.together import decoded_together
from pipelines.evaluate.preparation import prepare
from pipelines.models.references import ModelSource
from pipelines.models.tokenizers import load_tokenizer
from pipelines.recipe.keys.evaluate import EvaluateKeys
from tests.pipelines.evaluate.harness.small_tasks import QUESTIONS, make_tasks

TOKENS_PER_BATCH = 1000


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    return make_tasks(tmp_path / "tasks")


@pytest.fixture
def no_weights(byte_model_folder: Path, tmp_path: Path) -> Path:
    """A model that cannot be loaded, only asked for its configuration and tokenizer."""
    folder = tmp_path / "no-weights"
    folder.mkdir()
    for file in byte_model_folder.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).symlink_to(file)
    return folder


def prepared(model: Path, tasks: Path, output: Path, **changes: Any) -> Harness:
    keys = {"model": str(model), "harness": {"tasks": ["pick", "write", "read"], "include": str(tasks)}}
    stage = EvaluateKeys.model_validate({**keys, "tokens_per_batch": TOKENS_PER_BATCH, **changes})
    context = Context("scores", str(output), 3, {}, str(output), {})
    (measure,) = prepare(stage, context, ModelSource(str(model), tokenizer=str(model)))
    assert isinstance(measure, Harness)
    return measure


def test_generated_answers_are_refused_of_workers_that_share_rows(
    no_weights: Path, tasks: Path, tmp_path: Path
) -> None:
    with pytest.raises(EspanError, match=r"^harness: the answers of write are generated, .*context_parallel"):
        prepared(no_weights, tasks, tmp_path, context_parallel=2)
    shared = {"tasks": ["pick", "read"], "include": str(tasks)}
    assert prepared(no_weights, tasks, tmp_path, context_parallel=2, harness=shared).room(torch.float32) == 0


def test_a_prompt_longer_than_the_model_reads_is_refused_by_its_task(
    no_weights: Path, tasks: Path, tmp_path: Path
) -> None:
    loaded = load_tasks(["write"], task_manager(str(tasks), builtin=False), fewshot=None)
    with pytest.raises(EspanError, match=r"^task 'write': a prompt with 5 tokens .* a row may have 6"):
        prompt_lengths(loaded, Encoder(load_tokenizer(str(no_weights)), 6), None)


@pytest.mark.parametrize(("fewshot", "limit"), [(0, None), (2, 2)])
def test_prompts_are_counted_as_lm_eval_will_make_them(
    no_weights: Path, tasks: Path, fewshot: int, limit: int | None
) -> None:
    def loaded() -> Any:
        return load_tasks(["pick", "write"], task_manager(str(tasks), builtin=False), fewshot=fewshot)

    def texts(found: Any) -> list[str]:
        found["tasks"]["write"].build_all_requests(limit=limit)
        return [request.args[0] for request in found["tasks"]["write"].instances]

    tokenizer, counted, expected = load_tokenizer(str(no_weights)), loaded(), texts(loaded())
    lengths = prompt_lengths(counted, Encoder(tokenizer), limit)
    assert lengths == {"write": [len(tokenizer.encode(text)) + 5 for text in expected]}
    assert texts(counted) == expected
    assert len(expected) == (limit or len(QUESTIONS))


@pytest.mark.parametrize("lengths", [[5000], [3000, *[100] * 40], [9] * 200, [700, 700, 400, 3]])
def test_workers_have_room_for_whatever_rows_are_generated_together(
    no_weights: Path, tasks: Path, tmp_path: Path, lengths: list[int]
) -> None:
    measure = prepared(no_weights, tasks, tmp_path)
    assert len(measure.lengths) == len(QUESTIONS)
    config = AutoConfig.from_pretrained(no_weights)
    size = cache_size(config, torch.float32)
    shares = batches(lengths, decoded_together(size))
    kept = [size.bytes(max(lengths[row] for row in share), len(share)) for share in shares]
    room = Harness(
        "harness", measure.loaded, measure.encoder, "", TOKENS_PER_BATCH, config, lengths=lengths
    ).room(torch.float32)
    assert room == max(kept)
