"""Documents that are generated: each from its source's seed and its own index alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from pipelines.errors import EspanError
from pipelines.models.tokenizer_answers import asked
from pipelines.needles.compose import needle_document
from pipelines.prepare.text import UnusableError
from pipelines.recipe.keys.prepare import NeedlesSource, RulerSource
from pipelines.recipe.keys.ruler import RulerDocuments
from pipelines.ruler.documents import Documents, TooShortError
from pipelines.ruler.essays import read_essays
from pipelines.ruler.tasks import needs_essays

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


def check_documents(spec: RulerDocuments, tokenizer: str) -> None:
    """Refuses documents that are too short for one of their tasks, and a tokenizer that cannot write them.

    Some of each task are made, unless these very documents have passed before.

    Args:
        spec: what documents look like.
        tokenizer: a reference.

    Raises:
        EspanError: says so of the task.
    """
    essays = read_essays(spec.essays).sha256 if any(map(needs_essays, spec.tasks)) else None

    def check(loaded: PreTrainedTokenizerFast) -> bool:
        _make_some(spec, loaded)
        return True

    asked(tokenizer, ["ruler documents", spec.model_dump(mode="json", exclude={"essays"}), essays], check)


def _make_some(spec: RulerDocuments, tokenizer: PreTrainedTokenizerFast) -> None:
    documents = Documents(spec, 0, tokenizer)
    for number, task in enumerate(spec.tasks):
        least = 0
        for index in range(number, number + _TRIED * len(spec.tasks), len(spec.tasks)):
            try:
                documents.check_known(index)
            except TooShortError as error:
                least = max(least, error.tokens)
        if least:
            what = f"RULER's {task} has no documents of {spec.tokens} tokens with this tokenizer"
            raise EspanError(f"{what}: the shortest have about {least}; ask for more, or leave it out")


def _ruler_document(documents: Documents, index: int) -> str:
    try:
        return documents.document(index)
    except TooShortError as error:
        raise UnusableError(f"{error}; ask for as many or more") from error
