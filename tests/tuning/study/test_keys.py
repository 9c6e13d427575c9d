import pytest

from pipelines.errors import InvalidKeyError
from pipelines.recipe.keys.train import TrainKeys
from tuning.study.keys import with_changes

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
