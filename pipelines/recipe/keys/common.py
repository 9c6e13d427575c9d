"""Types of keys that several kinds of stage have."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

Precision = Literal["auto", "fp32", "bf16"]
Packing = Literal["documents", "concatenate"]
BosChoice = Literal["auto"] | bool
# Left out of records at its default, so that stages finished before this key existed stay finished.
BosKey = Annotated[BosChoice, Field(exclude_if=lambda choice: choice == "auto")]
# Left out of records likewise.
RecurrenceKey = Annotated[
    Literal["auto", "library", "chunked", "naive"], Field(exclude_if=lambda choice: choice == "auto")
]
Lengths = Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1)]


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns `values`.

    Raises:
        ValueError: one of them is given twice.
    """
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(f"{repeated[0]} is given twice")
    return values
