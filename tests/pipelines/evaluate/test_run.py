"""A whole evaluation on Ray workers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.context import Context
from pipelines.errors import EspanError
from pipelines.evaluate.run import run
from pipelines.evaluate.scores import DepthScore, Scores, read_samples
from pipelines.models.tokenizers import load_tokenizer
from pipelines.needles.compose import recall_prompt
from pipelines.recipe.keys.evaluate import EvaluateKeys
from pipelines.recipe.keys.needles import RecallTask

Evaluate = Callable[..., Scores]
SPAN = {"kind": "span", "selection": "causal", "chunk_sizes": 16, "block_size": 4, "top_k": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where evaluations are, each below its name."""
    return tmp_path_factory.mktemp("evaluations")


@pytest.fixture(scope="module")
def evaluate(folder: Path, model_folder: Path, shards: Path, local_ray: None) -> Evaluate:
    """Runs an evaluate stage below `folder/<name>` and returns its scores."""

    def evaluate(name: str, seed: int = 3, **changes: Any) -> Scores:
        keys: dict[str, Any] = {
            "model": str(model_folder),
            "recall": {"lengths": [64, 96], "samples": 5, "tasks": ["single", "variable_tracking"]},
            "perplexity": {"data": str(shards), "lengths": [24, 96], "rows": 4, "scored": 8},
            "tokens_per_batch": 200,
            "workers": 1,
        }
        output = folder / name
        output.mkdir(exist_ok=True)
        stage = EvaluateKeys.model_validate(keys | changes)
        run(stage, Context(name, str(output), seed, {}, str(folder), {}))
        return Scores.read(str(output))

    return evaluate


@pytest.fixture(scope="module")
def full(evaluate: Evaluate) -> Scores:
    return evaluate("full")


@pytest.fixture(scope="module")
def nothing(evaluate: Evaluate) -> Scores:
    """With attention that reaches no other token."""
    return evaluate("nothing", attention={"kind": "window", "window": 1})


@pytest.fixture(scope="module")
def span(evaluate: Evaluate) -> Scores:
    return evaluate("span", attention=SPAN)


def numbers(scores: Scores) -> dict[str, Any]:
    return scores.model_dump(include={"tasks", "perplexity", "retrieval"})


def test_the_scores_do_not_depend_on_the_number_of_workers(
    evaluate: Evaluate, span: Scores, folder: Path
) -> None:
    two = evaluate("two", workers=2, attention=SPAN)
    assert span.retrieval
    assert numbers(span) == numbers(two)
    assert (folder / "span/samples.jsonl").read_bytes() == (folder / "two/samples.jsonl").read_bytes()


def test_every_task_length_and_document_is_scored(full: Scores, folder: Path) -> None:
    assert [(s.task, s.length, s.samples) for s in full.of("recall")] == [
        (task, length, 5) for task in ("single", "variable_tracking") for length in (64, 96)
    ]
    assert [(s.length, s.windows, s.scored_tokens) for s in full.perplexity] == [(24, 4, 32), (96, 4, 32)]
    samples = read_samples(str(folder / "full"))
    assert len(samples) == 2 * 2 * 5 + 2 * 4
    documents = [s for s in samples if s.measure == "perplexity" and s.length == 96]
    assert full.perplexity[1].loss == pytest.approx(sum(s.extras["nats"] for s in documents) / 32, rel=1e-12)
    assert full.perplexity[1].loss == pytest.approx(sum(s.value for s in documents) / 4, rel=1e-12)
    single = [s for s in samples if (s.measure, s.task, s.length) == ("recall", "single", 64)]
    assert full.of("recall")[0].value == pytest.approx(sum(s.value for s in single) / 5, rel=1e-12)
    assert [s.index for s in single] == list(range(5))
    assert len({s.prompt for s in samples}) == len(samples)


def test_recall_is_told_by_where_the_needles_stand(evaluate: Evaluate, folder: Path) -> None:
    """Outcomes without depths, as earlier versions kept them, are not taken."""
    tasks: list[RecallTask] = ["single", "multi_query"]
    earlier = folder / "depths/unfinished/fp32"
    earlier.mkdir(parents=True)
    answers = {"single": [[True]] * 5, "multi_query": [[True] * 4] * 5}
    for task in tasks:
        outcome = {"answers": answers[task], "hits": {}, "never_chosen": None, "prompts": ["0"] * 5}
        (earlier / f"recall-{task}-64-0.json").write_text(json.dumps({**outcome, "seconds": 1.0}))
    recall = {"lengths": [64], "samples": 5, "tasks": tasks}
    scores = evaluate("depths", recall=recall, perplexity=None, tokens_per_batch=400)
    samples = read_samples(str(folder / "depths"))
    tokenizer = load_tokenizer("builtin:tiny")
    for task, score in zip(tasks, scores.of("recall"), strict=True):
        found = [each.extras for each in samples if each.task == task]
        prompts = [
            recall_prompt(task, length=64, seed=3, index=index, tokenizer=tokenizer) for index in range(5)
        ]
        assert score.depths == DepthScore.by_depth(
            [
                (depth, float(right))
                for each, prompt in zip(found, prompts, strict=True)
                for depth, right in zip(prompt.needle_depths, each["answers"], strict=True)
            ]
        )
        assert sum(depth.samples for depth in score.depths) == score.answers
        one = task == "single"
        assert [each["depth"] for each in found] == [p.needle_depths[0] if one else None for p in prompts]


def test_two_evaluations_of_the_same_prompts_say_so(
    evaluate: Evaluate, full: Scores, nothing: Scores, folder: Path
) -> None:
    """Whatever the model computes; another seed draws other prompts, and the documents stay."""
    evaluate("seed", seed=4)
    one, two, three = (
        {(s.measure, s.task, s.length, s.index): s.prompt for s in read_samples(str(folder / name))}
        for name in ("full", "nothing", "seed")
    )
    assert one == two
    assert one.keys() == three.keys()
    assert {key[0] for key in one if one[key] != three[key]} == {"recall"}
    assert {key[0] for key in one if one[key] == three[key]} == {"perplexity"}


def test_attention_that_reaches_everything_scores_like_full_attention(
    evaluate: Evaluate, full: Scores, nothing: Scores
) -> None:
    everything = evaluate("everything", attention={"kind": "window", "window": 96})
    loss = full.perplexity[1].loss
    assert everything.perplexity[1].loss == pytest.approx(loss, rel=1e-4)
    assert nothing.perplexity[1].loss != pytest.approx(loss, rel=1e-4)


def test_span_attention_tells_which_needles_it_retrieves(
    evaluate: Evaluate, span: Scores, full: Scores
) -> None:
    assert [each.length for each in span.retrieval] == [64, 96]
    for each in span.retrieval:
        assert 0 < each.chance < 1
        assert len(each.asked_by_head) == 1
        assert each.asked == pytest.approx(sum(each.asked_by_head[0]) / 2)
        assert {depth.low for depth in each.asked_by_depth} <= {part / 10 for part in range(10)}
        assert len(each.asked_by_depth) > 3
        assert 0 < (each.never_chosen or 0) < 1
        assert each.not_asked is not None  # variable tracking has needles that no question asks for
    everything = {"chunk_sizes": 16, "block_size": 4, "top_k": 24}
    scores = evaluate("all", attention={"kind": "random", **everything}, perplexity=None)
    assert [(each.asked, each.not_asked, each.chance) for each in scores.retrieval] == [(1.0, 1.0, 1.0)] * 2
    assert full.retrieval == ()


def test_what_goes_wrong_in_a_worker_is_one_line(evaluate: Evaluate) -> None:
    with pytest.raises(
        EspanError, match=r"a scoring worker failed: ValueError: .*longer than length"
    ) as failed:
        evaluate("short", recall={"lengths": [8], "tasks": ["multi_query"]})
    assert "\n" not in str(failed.value)


def test_a_model_that_does_not_load_is_told_in_its_own_words(
    evaluate: Evaluate, model_folder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model_folder, broken)
    configuration = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(configuration | {"hidden_size": 64}))
    with pytest.raises(EspanError, match=r"^model '.*do not fit config"):
        evaluate("broken", model=str(broken))


def test_a_worker_larger_than_the_cluster_is_refused(evaluate: Evaluate) -> None:
    with pytest.raises(EspanError, match=r"lower resources\.cpus"):
        evaluate("large", resources={"cpus": 64})


def test_a_model_without_a_tokenizer_cannot_be_asked(
    evaluate: Evaluate, model_folder: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).symlink_to(model_folder / name)
    with pytest.raises(EspanError, match="has no tokenizer"):
        evaluate("bare", model=str(bare))
