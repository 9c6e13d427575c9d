"""YAML with lines: scalars mean what they look like, and every mistake is found with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import RecipeError
from pipelines.recipe.yaml_source import parse_scalar, parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),
        ("2.0e-4", 2e-4),
        (".5", 0.5),
        ("65_536", 65536),
        ("-3", -3),
        ("true", True),
        ("on", "on"),
        ("yes", "yes"),
        ("2026-11-01", "2026-11-01"),
        ("12:30", "12:30"),
        ("1e", "1e"),
        ("~", None),
        ("", None),
        ("s3://bucket/run", "s3://bucket/run"),
    ],
)
def test_scalars_mean_what_they_look_like(text: str, value: object) -> None:
    assert parse_yaml(f"key: {text}", "r.yaml").value == {"key": value}
    parsed = parse_scalar(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_quotes_make_text() -> None:
    assert parse_yaml("a: '8'\nb: !!str 8", "r.yaml").value == {"a": "8", "b": "8"}


def test_every_key_and_item_knows_its_line() -> None:
    source = parse_yaml("a:\n  b: 1\n  c:\n    - x\n    - {d: 2,\n       e: 3}\n", "r.yaml")
    assert [source.line(key) for key in [("a",), ("a", "b"), ("a", "c", 0), ("a", "c", 1, "e")]] == [
        1,
        2,
        4,
        6,
    ]


def test_merged_mappings_fill_in_what_is_not_written_wherever_the_merge_stands() -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b\n  <<: *a\n  y: 3\nc: {z: 5, <<: [*b, {z: 4, w: 6}]}\n'<<': 7\n"
    source = parse_yaml(text, "r.yaml")
    assert source.value == {
        "a": {"x": 1, "y": 2}, "b": {"y": 3, "x": 1}, "c": {"z": 5, "y": 3, "x": 1, "w": 6}, "<<": 7
    }  # fmt: skip
    assert source.lines[("b", "y")] == 4
    assert source.lines[("b", "x")] == 1


def test_a_key_that_is_not_written_has_the_line_of_the_mapping_around_it() -> None:
    assert parse_yaml("a: 1\nb:\n  c: 1\n", "r.yaml").problem(("b", "d"), "is missing", "c") == (
        "r.yaml:2: b.d: is missing; did you mean 'c'?"
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3", "r.yaml:3: a: duplicate key, first given in line 1"),
        ("x:\n  a: 1\n  a: 1", "r.yaml:3: x.a: duplicate key, first given in line 2"),
        ("a: &x [*x]", "r.yaml:1: not valid YAML: an alias contains itself"),
        ("a: &x {<<: *x}", "r.yaml:1: not valid YAML: an alias contains itself"),
        ("a: 1\nb:\n  <<: 2", "r.yaml:3: not valid YAML: << merges a mapping or a list of mappings"),
        (
            "a: !!python/name:os.system",
            "r.yaml:1: not valid YAML: unknown tag tag:yaml.org,2002:python/name:os.system",
        ),
        ("? [a]\n: 1", "r.yaml:1: not valid YAML: a key must be plain text"),
    ],
)
def test_a_mistake_is_one_line_with_file_and_line(text: str, problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_yaml(text, "r.yaml")
    assert caught.value.problems == (problem,)


@pytest.mark.parametrize(
    "text", ["a: [1\nb: 2", "a: 1\n---\nb: 2", "\tx: 1", "a: 'x", "a: *nothing", "a: \x07"]
)
def test_what_is_not_yaml_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(RecipeError, match=r"^r\.yaml:\d+: not valid YAML: [^\n]+$"):
        parse_yaml(text, "r.yaml")


def test_an_unquoted_variable_inside_braces_is_explained() -> None:
    with pytest.raises(RecipeError, match="put quotes around"):
        parse_yaml("sources: [{path: ${books}/x}]", "r.yaml")


def test_a_missing_file_and_one_that_is_no_text_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.yaml: there is no such file"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"binary\.yaml: cannot be read"):
        read_yaml(tmp_path / "binary.yaml")
