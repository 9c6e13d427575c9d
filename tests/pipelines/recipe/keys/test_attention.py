"""The `attention` key of a recipe."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

import se_model.span.rules
from pipelines.models.fitting import attention_config
from pipelines.recipe.keys.attention import RULES, Attention, AttentionSection
from se_model.attentions import ATTENTION_KINDS
from se_model.span import SpanConfig

PARSE = TypeAdapter(Attention)
EXAMPLES: dict[str, dict[str, Any]] = {
    "full": {},
    "span": {"chunk_sizes": [64, 128], "block_size": 16, "top_k": 4, "summary": "mean_key"},
    "window": {"window": 64},
    "s2": {"group_size": 32},
    "none": {"chunk_sizes": 64},
    "random": {"chunk_sizes": [64], "block_size": 16, "top_k": 2},
}


def parse(value: Any) -> AttentionSection:
    section = PARSE.validate_python(value)
    assert isinstance(section, AttentionSection)
    return section


def test_there_is_an_example_for_every_kind_of_the_model() -> None:
    assert set(EXAMPLES) == set(ATTENTION_KINDS)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_every_kind_builds_its_counterpart_with_the_keys_written(kind: str) -> None:
    config = attention_config(parse({"kind": kind, **EXAMPLES[kind]}), 11)
    assert type(config) is ATTENTION_KINDS[kind]
    for key, value in EXAMPLES[kind].items():
        built = getattr(config, key)
        assert (list(built) if isinstance(built, tuple) else built) == (
            [value] if key == "chunk_sizes" and isinstance(value, int) else value
        )


@pytest.mark.parametrize("kind", ["span", "none", "random"])
def test_what_draws_at_random_takes_the_seed(kind: str) -> None:
    section = parse({"kind": kind, **EXAMPLES[kind]})
    assert attention_config(section, 11) == attention_config(section, 11)
    assert attention_config(section, 11) != attention_config(section, 12)


def test_a_kind_without_keys_may_stand_alone() -> None:
    assert parse("full") == parse({"kind": "full"})


@pytest.mark.parametrize("kind", ["span", "random"])
def test_chunks_that_are_not_whole_blocks_are_refused_with_the_nearest_size(kind: str) -> None:
    with pytest.raises(ValidationError, match=r"chunk_sizes\.1: 100 is not a multiple of block_size 32.*96"):
        parse({"kind": kind, "chunk_sizes": [64, 100]})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "spam"}, "span"),
        ({"kind": "span", "topk": 3}, "topk"),
        ({"kind": "span", "chunk_sizes": []}, "chunk_sizes"),
        ({"kind": "span", "chunk_sizes": [True]}, "chunk_sizes"),
        ({"kind": "span", "top_k": -1}, "top_k"),
        ({"kind": "span", "refresh": 16}, "selection: causal"),
        ({"kind": "span", "selection": "causal", "refresh": 48}, "does not divide the chunk size 2048"),
        ({"kind": "span", "queries": 16}, r"write all, \{representative: 16\} or \{stride: 4\}"),
        ({"kind": "span", "queries": {"stride": 0}}, "greater than 0"),
        ({"kind": "span", "rule": "papers"}, "'paper' or 'default'"),
        ({"kind": "span", "rule": "paper", "summary": "mean_key"}, "rule: paper says what summary is"),
        ({"kind": "window"}, "window"),
        ({"kind": "full", "window": 3}, "window"),
    ],
)
def test_keys_that_mean_nothing_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        parse(keys)


def test_rules_and_the_words_they_stand_for_are_the_model_s() -> None:
    for name, words in RULES.items():
        config = attention_config(parse({"kind": "span", "rule": name}), 0)
        assert config == attention_config(parse({"kind": "span", **words}), 0)
        assert config == SpanConfig(rule=name)
    assert parse("span") == parse({"kind": "span", **RULES["default"]})
    assert set(RULES) == set(se_model.span.rules.RULES)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"kind": "full"}, "full"),
        ({"kind": "none", "chunk_sizes": 64}, "none, chunks of 64"),
        (
            {"kind": "random", "chunk_sizes": [64, 2048], "block_size": 16, "top_k": 2},
            "random, chunks of 64 or 2,048, 2 blocks of 16 for each",
        ),
        (
            {"kind": "span", "chunk_sizes": 64, "queries": {"stride": 4}},
            "span, chunks of 64, 8 blocks of 32 for each, "
            "chosen by representative_keys, peak and one query in 4 (chunk)",
        ),
        (
            {"kind": "span", "chunk_sizes": 64, "rule": "paper", "selection": "causal"},
            "span, chunks of 64, 8 blocks of 32 for each, chosen by attention, sum and all queries (causal)",
        ),
    ],
)
def test_attention_is_told_in_one_line(keys: dict[str, Any], text: str) -> None:
    assert parse(keys).text == text


def test_a_rule_is_dumped_as_its_words() -> None:
    dumped = parse({"kind": "span", "rule": "paper"}).model_dump()
    assert dumped == parse({"kind": "span", **RULES["paper"]}).model_dump()
    assert dumped["queries"] == "all"


def test_what_parses_is_accepted_by_the_model() -> None:
    section = parse({"kind": "span", "chunk_sizes": [64], "selection": "causal", "refresh": 32})
    assert attention_config(section, 0).refresh == 32  # type: ignore[attr-defined]  # of SpanConfig
