import pytest
from pydantic import ValidationError

from tuning.compare.keys import CompareKeys
from tuning.compare.trials import trials_of as compare_trials
from tuning.study.table import markdown
from tuning.tune.keys import TuneKeys
from tuning.tune.trials import trials_of as tune_trials

TRAIN = {
    "data": "corpus",
    "model": "builtin:tiny",
    "attention": {"kind": "span", "chunk_sizes": [128], "block_size": 32, "top_k": 4},
    "hylora": {"rank": 8, "alpha": 16},
    "steps": 2,
    "tokens_per_step": 256,
    "learning_rate": 1e-3,
}
EVALUATE = {"recall": {"lengths": [128], "samples": 2}}


def tune(**keys: object) -> TuneKeys:
    return TuneKeys.model_validate({"train": TRAIN, "evaluate": EVALUATE, **keys})


def compare(**keys: object) -> CompareKeys:
    return CompareKeys.model_validate({"train": TRAIN, "evaluate": EVALUATE, **keys})


def test_a_search_covers_every_valid_combination_and_leaves_out_the_others() -> None:
    stage = tune(space={"attention.block_size": [32, 48], "attention.chunk_sizes": [[96], [128]]})
    settings = [(t.train.attention.block_size, t.train.attention.chunk_sizes) for t in tune_trials(stage, 0)]
    assert settings == [(32, (96,)), (32, (128,)), (48, (96,))]


def test_drawn_trials_are_different_combinations_that_the_seed_alone_decides() -> None:
    stage = tune(space={"attention.top_k": [1, 2, 4, 8], "hylora.rank": [2, 4, 8]}, trials=5)
    drawn = [trial.label for trial in tune_trials(stage, 3)]
    assert len({tuple(label.items()) for label in drawn}) == 5
    assert drawn == [trial.label for trial in tune_trials(stage, 3)]
    assert drawn != [trial.label for trial in tune_trials(stage, 4)]


def test_a_space_with_an_unknown_key_is_refused() -> None:
    with pytest.raises(ValidationError, match="top_n"):
        tune(space={"attention.top_n": [1, 2]})


def test_untrained_variants_run_once_and_trained_ones_with_every_seed() -> None:
    stage = compare(
        variants={"as it comes": None, "SE-Attn": {}, "LoRA+": {"hylora.variant": "lora+"}}, seeds=[4, 5]
    )
    names = [trial.name for trial in compare_trials(stage, 0)]
    assert names == ["as-it-comes-4", "se-attn-4", "lora-plus-4", "se-attn-5", "lora-plus-5"]
    untrained = compare_trials(stage, 0)[0]
    assert untrained.train is None
    assert untrained.model == "builtin:tiny"


def test_a_variant_may_have_seeds_of_its_own() -> None:
    stage = compare(
        variants={"as it comes": None, "a": {}, "b": {"steps": 3}}, seeds=[4, 5, 6], seeds_of={"b": [9, 5]}
    )
    names = [trial.name for trial in compare_trials(stage, 0)]
    assert names == ["as-it-comes-4", "a-4", "b-9", "a-5", "b-5", "a-6"]


def test_a_variant_may_have_another_rule_to_choose_blocks_by() -> None:
    stage = compare(variants={"a": {}, "b": {"attention.rule": "paper"}}, seeds=[0])
    a, b = (trial.train for trial in compare_trials(stage, 0))
    assert (a.attention.summary, a.attention.relevancy) == ("representative_keys", "peak")
    assert (b.attention.summary, b.attention.relevancy, b.attention.queries) == ("attention", "sum", "all")
    assert b.attention.chunk_sizes == a.attention.chunk_sizes


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"variants": {"a": {}, "b": {"attention.kind": "spam"}}}, "variants.b"),
        ({"variants": {"a": {}, "b": {}}, "floor": "c", "ceiling": "a"}, "there is no variant 'c'"),
        ({"variants": {"a": {}, "b": {}}, "floor": "a"}, "set both"),
        ({"variants": {"a": {}, "b": {}}, "seeds_of": {"c": [1]}}, "there is no variant 'c'"),
        ({"variants": {"a": {}, "b": None}, "baseline": "b"}, "'b' is not trained and has no seeds"),
        ({"variants": {"a b": {}, "A-b": {}}}, "share a folder"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_refused(keys: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        compare(**keys)


def test_tables_read_well_as_plain_text() -> None:
    table = markdown(["a", "long column"], [{"a": "x", "long column": "1"}, {"a": "yy"}])
    assert table.splitlines() == [
        "| a  | long column |",
        "| -- | ----------- |",
        "| x  | 1           |",
        "| yy |             |",
    ]
