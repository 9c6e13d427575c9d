"""How the work of an evaluation is cut up."""

from hypothesis import given
from hypothesis import strategies as st

from pipelines.evaluate.recall import recall_units
from pipelines.evaluate.units import batches

LENGTHS = st.lists(st.integers(2, 4096), min_size=1, max_size=4, unique=True)


@given(lengths=LENGTHS, samples=st.integers(1, 70), tokens_per_batch=st.integers(1, 9000))
def test_every_prompt_is_in_exactly_one_unit_and_no_two_share_a_key(
    lengths: list[int], samples: int, tokens_per_batch: int
) -> None:
    units = recall_units(
        ["single", "multi_key"],
        lengths,
        samples,
        tokenizer="builtin:tiny",
        seed=1,
        bos=None,
        tokens_per_batch=tokens_per_batch,
    )
    prompts = [(u.task, u.length, i) for u in units for i in range(u.first, u.first + u.count)]
    assert prompts == [
        (task, n, i) for task in ("single", "multi_key") for n in lengths for i in range(samples)
    ]
    assert len({unit.key for unit in units}) == len(units)


@given(rows=st.integers(1, 70), length=st.integers(2, 4096), tokens_per_batch=st.integers(1, 9000))
def test_a_batch_holds_no_more_tokens_than_allowed_unless_it_is_one_row(
    rows: int, length: int, tokens_per_batch: int
) -> None:
    found = batches(rows, length, tokens_per_batch)
    assert all(count * length <= tokens_per_batch or count == 1 for _, count in found)
    assert sum(count for _, count in found) == rows
