"""The three words that say how memory blocks are chosen, and the rules that have a name.

*summary*: what represents a block when blocks are compared; *relevancy*: how the comparisons of several
queries with a block become one number; *queries*: which queries of a choice are compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

SUMMARIES = ("attention", "mean_key", "key_bounds", "representative_keys")
RELEVANCIES = ("sum", "mass", "max", "peak")
OWN_NUMBERS = ("key_bounds", "representative_keys")
"""Summaries that are made of keys' own numbers, and so in the keys' dtype; others are means, in float32."""
SHARES = ("mass", "peak")
"""Relevancies that compare shares of each query, out of 1 for all candidates, in place of scores."""
LARGEST = ("max", "peak")
"""Relevancies that take the largest of the queries' comparisons in place of their sum."""
SAMPLES = ("all", "representative", "stride")

REPRESENTATIVE_KEYS = 4
"""How many keys the summary "representative_keys" keeps of a block."""


def summary_heads(summary: str, heads: int, groups: int, block_size: int) -> int:
    """How many vectors, of one head's size each, a block's summary has.

    heads: H, of queries; groups: G, of keys -> H for "attention", G for "mean_key", 2 G for "key_bounds",
    4 G for "representative_keys", less where a block has fewer keys.
    """
    if summary == "attention":
        return heads
    kept = {"mean_key": 1, "key_bounds": 2, "representative_keys": min(REPRESENTATIVE_KEYS, block_size)}
    return groups * kept[summary]


class QuerySample(NamedTuple):
    """Which queries of a choice judge the blocks, in each query head.

    Attributes:
        kind: "all"; "representative", the ``number`` whose distance from the mean of the choice's queries is
            largest, of equals the earlier; or "stride", every ``number``-th, the first included.
        number: 1 for "all".
    """

    kind: str = "all"
    number: int = 1

    def judges(self, length: int) -> int:
        """How many of a choice's ``length`` queries judge."""
        if self.kind == "stride":
            return -(-length // self.number)
        return length if self.kind == "all" else min(self.number, length)


ALL_QUERIES = QuerySample()

Queries = str | Mapping[str, int] | QuerySample
"""How callers write a sample: "all", {"representative": r} or {"stride": n}."""


def as_sample(queries: Queries) -> QuerySample:
    """A sample from the way a caller writes it.

    Raises:
        ValueError: if it is not written in one of the three ways, or its number is below 1.
    """
    if queries == "all":
        return ALL_QUERIES
    if isinstance(queries, Mapping) and len(queries) == 1:
        queries = QuerySample(*next(iter(queries.items())))
    if (
        not isinstance(queries, QuerySample)
        or queries.kind not in SAMPLES
        or (queries.kind == "all" and queries != ALL_QUERIES)
    ):
        raise ValueError(
            f'queries must be "all", {{"representative": r}} or {{"stride": n}}; not {queries!r}'
        )
    if type(queries.number) is not int or queries.number < 1:
        raise ValueError(
            f"queries: {queries.kind} must be a whole number of 1 or more, not {queries.number!r}"
        )
    return queries


@dataclass(frozen=True)
class Rule:
    """A way to choose: the three words together."""

    summary: str
    relevancy: str
    queries: QuerySample


PAPER = Rule("attention", "sum", ALL_QUERIES)
"""Section 3.3 of the paper."""

DEFAULT = Rule("representative_keys", "peak", QuerySample("representative", 16))
"""What a configuration takes that says nothing; docs/selection.md tells why."""

RULES = {"paper": PAPER, "default": DEFAULT}


def rule_of(name: str | None, summary: str | None, relevancy: str | None, queries: Queries | None) -> Rule:
    """The rule called ``name`` if it is given, else the default one with the words that are given.

    Raises:
        ValueError: if there is no such rule, or a word contradicts it.
    """
    if name is not None and name not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}; not {name!r}")
    rule = RULES[name or "default"]
    sample = None if queries is None else as_sample(queries)
    chosen = Rule(summary or rule.summary, relevancy or rule.relevancy, sample or rule.queries)
    if name is not None and chosen != rule:
        raise ValueError(f"rule {name!r} says what summary, relevancy and queries are; leave them out")
    return chosen
