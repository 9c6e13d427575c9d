"""The score of an answer, as lm-eval 0.4.13 gives it (`tasks/ruler/common_utils.py`)."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NOT_PRINTABLE = re.compile(r"[\x00-\x1f]")


def score(prediction: str, outputs: Sequence[str]) -> float:
    """Returns which fraction of `outputs` a model has written, in upper or lower case.

    The same for every task: RULER counts a question as answered by any one of its right answers, but lm-eval
    takes the fraction there too.

    Raises:
        ValueError: there are no outputs.
    """
    if not outputs:
        raise ValueError("there is nothing to look for")
    written = _NOT_PRINTABLE.sub("\n", prediction.strip()).strip().lower()
    return sum(output.lower() in written for output in outputs) / len(outputs)
