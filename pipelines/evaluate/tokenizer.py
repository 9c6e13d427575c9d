"""Which tokenizer prompts are made with."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.context import CheckContext
from pipelines.models.references import resolve_model
from pipelines.recipe.keys.evaluate import EvaluateKeys


def recall_tokenizer(keys: EvaluateKeys, context: CheckContext) -> str | None:
    """Returns the tokenizer of recall's prompts, as `prompt_tokenizer`."""
    return prompt_tokenizer(keys.recall.tokenizer if keys.recall else None, keys, context)


def prompt_tokenizer(given: str | None, keys: EvaluateKeys, context: CheckContext) -> str | None:
    """Returns `given`, else the model's own; None for that of a train stage, or where there is none."""
    if given or keys.model in context.earlier:
        return given
    return resolve_model(keys.model, {}).tokenizer


def given_tokenizers(keys: EvaluateKeys) -> Iterator[tuple[str, str | None]]:
    """Yields each measure that writes prompts, and the tokenizer that the recipe gives it."""
    if keys.recall:
        yield "recall", keys.recall.tokenizer
    if keys.ruler:
        yield "ruler", keys.ruler.tokenizer
    if keys.harness:
        yield "harness", None
