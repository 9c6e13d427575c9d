"""The README's tables say what the models do."""

from tests.se_model.architectures.table import COMMAND, README, with_tables


def test_the_readme_has_the_tables_that_the_models_give() -> None:
    readme = README.read_text(encoding="utf-8")
    assert readme == with_tables(readme), f"README.md is out of date; write its tables anew: {COMMAND}"
