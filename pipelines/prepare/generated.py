"""Documents that are generated: each from its source's seed and its own index alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from pipelines.errors import EspanError
from pipelines.needles.compose import needle_document
from pipelines.prepare.text import UnusableError
from pipelines.recipe.keys.prepare import NeedlesSource, RulerSource
from pipelines.ruler.documents import Documents, TooShortError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

_TRIED = 4
"""So many documents of each task are made before anything starts."""


def generator(source: NeedlesSource | RulerSource, seed: int, tokenizer: Tokenizer) -> Callable[[int], str]:
    """Returns what makes the text of document `index`; it raises `UnusableError` where there is none.

    Args:
        source: what documents look like.
        seed: of everything that is drawn.
        tokenizer: measures RULER's documents.
    """
    if isinstance(source, NeedlesSource):
        return lambda index: needle_document(source.needles, seed=seed, index=index)
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    return partial(_ruler_document, Documents(source.ruler, seed, fast))


def refuse_impossible(source: RulerSource, tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuses documents that are too short for one of their tasks, and a tokenizer that cannot write them.

    Raises:
        EspanError: says so of the task.
    """
    tasks = source.ruler.tasks
    documents = Documents(source.ruler, 0, tokenizer)
    for number, task in enumerate(tasks):
        least = 0
        for index in range(number, number + _TRIED * len(tasks), len(tasks)):
            try:
                documents.check_known(index)
            except TooShortError as error:
                least = max(least, error.tokens)
        if least:
            what = f"RULER's {task} has no documents of {source.ruler.tokens} tokens with this tokenizer"
            raise EspanError(f"{what}: the shortest have about {least}; ask for more, or leave it out")


def _ruler_document(documents: Documents, index: int) -> str:
    try:
        return documents.document(index)
    except TooShortError as error:
        raise UnusableError(f"{error}; ask for as many or more") from error
