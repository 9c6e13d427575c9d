"""How the work of an evaluation is cut up and dealt out."""

from hypothesis import given
from hypothesis import strategies as st

from pipelines.evaluate.units import PerplexityUnit, RecallUnit, deal, perplexity_units, recall_units

LENGTHS = st.lists(st.integers(2, 4096), min_size=1, max_size=4, unique=True)


@given(lengths=LENGTHS, samples=st.integers(1, 70), tokens_per_batch=st.integers(1, 9000))
def test_every_prompt_is_in_exactly_one_unit(lengths: list[int], samples: int, tokens_per_batch: int) -> None:
    units = recall_units(["single", "multi_key"], lengths, samples, tokens_per_batch=tokens_per_batch)
    prompts = [(u.task, u.length, i) for u in units for i in range(u.first, u.first + u.count)]
    assert prompts == [
        (task, n, i) for task in ("single", "multi_key") for n in lengths for i in range(samples)
    ]


@given(lengths=LENGTHS, windows=st.integers(1, 70), tokens_per_batch=st.integers(1, 9000))
def test_a_unit_holds_no_more_tokens_than_allowed_unless_it_is_one_row(
    lengths: list[int], windows: int, tokens_per_batch: int
) -> None:
    units = perplexity_units(lengths, windows, tokens_per_batch=tokens_per_batch)
    assert all(unit.tokens <= tokens_per_batch or unit.count == 1 for unit in units)
    assert sum(unit.tokens for unit in units) == windows * sum(lengths)


@given(lengths=LENGTHS, samples=st.integers(1, 40), workers=st.integers(1, 9))
def test_every_unit_is_dealt_to_one_worker_and_none_is_idle(
    lengths: list[int], samples: int, workers: int
) -> None:
    units = recall_units(["single"], lengths, samples, tokens_per_batch=4096)
    shares = deal(units, workers)
    assert sorted((unit.length, unit.first) for share in shares for unit in share) == sorted(
        (unit.length, unit.first) for unit in units
    )
    assert len(shares) == min(workers, len(units))
    assert all(shares)


def test_workers_get_about_the_same_number_of_tokens() -> None:
    units = [RecallUnit("single", 256, i, 1) for i in range(8)] + [
        PerplexityUnit(2048, i, 1) for i in range(3)
    ]
    loads = [sum(unit.tokens for unit in share) for share in deal(units, 2)]
    assert max(loads) - min(loads) <= 256
