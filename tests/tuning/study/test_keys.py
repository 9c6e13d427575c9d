from typing import Any

import pytest
from pydantic import ValidationError

from pipelines.errors import InvalidKeyError
from pipelines.recipe.keys.train import TrainKeys
from tuning.study.keys import Scoring, with_changes
from tuning.tune.keys import TuneKeys

BASE = TrainKeys.model_validate(
    {
        "data": "corpus",
        "model": "builtin:tiny",
        "attention": {"kind": "span", "chunk_sizes": [128], "block_size": 32, "top_k": 4},
        "hylora": {"rank": 8, "alpha": 16},
        "steps": 2,
        "tokens_per_step": 256,
        "learning_rate": 1e-3,
    }
)


def test_a_dotted_key_changes_one_value_and_leaves_the_base_as_it_was() -> None:
    changed = with_changes(BASE, {"attention.top_k": 2, "hylora.rank": 4}, "space")
    assert (changed.attention.top_k, changed.hylora.rank) == (2, 4)
    assert changed.attention.chunk_sizes == BASE.attention.chunk_sizes
    assert (BASE.attention.top_k, BASE.hylora.rank) == (4, 8)


def test_a_mapping_replaces_a_whole_key() -> None:
    changed = with_changes(BASE, {"attention": {"kind": "full"}, "hylora": None}, "variants.full")
    assert changed.attention.kind == "full"
    assert changed.hylora is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention.topk": 2}, r"^space: gives no valid training: .*topk"),
        ({"attentions.top_k": 2}, r"^space: train has no key 'attentions.top_k'"),
        (
            {"attention.block_size": 48},
            r"^space: gives no valid training: .*128 is not a multiple of block_size 48",
        ),
        ({"hylora.rank": "many"}, r"^space: gives no valid training: hylora.rank"),
    ],
)
def test_a_change_that_makes_no_training_is_refused_where_it_was_written(changes: dict, message: str) -> None:
    with pytest.raises(InvalidKeyError, match=message):
        with_changes(BASE, changes, "space")


def study(space: dict[str, Any], **train: Any) -> dict[str, Any]:
    """What a search's fingerprint covers of its keys."""
    keys = {"train": BASE.model_dump() | train, "evaluate": {"recall": {"lengths": [64]}}, "space": space}
    return TuneKeys.decisive(TuneKeys.model_validate(keys).model_dump(mode="json"))


def test_how_trainings_work_does_not_make_their_study_run_again() -> None:
    space = {"attention.top_k": [2, 4]}
    before = study(space)
    assert study(space, log_every=7, workers=2, checkpoint_every=3) == before
    assert study(space, steps=3) != before
    assert before["train"]["steps"] == 2


def test_trials_that_depend_on_how_trainings_work_are_other_trials_when_it_changes() -> None:
    """With six workers all three are valid, with four only two: the second trial is another one."""
    space = {"context_parallel": [1, 2, 3]}
    assert study(space, workers=6, tokens_per_step=768) != study(space, workers=4, tokens_per_step=768)


def test_scores_that_see_answers_are_refused_with_their_key() -> None:
    attention = {"kind": "span", "chunk_sizes": [64]}
    with pytest.raises(ValidationError, match="scores need 'causal'"):
        Scoring.model_validate({"recall": {"lengths": [64]}, "attention": attention})
