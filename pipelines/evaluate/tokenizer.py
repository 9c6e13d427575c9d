"""Which tokenizer recall prompts are made with."""

from __future__ import annotations

from pipelines.context import CheckContext
from pipelines.models.references import resolve_model
from pipelines.recipe.keys.evaluate import EvaluateKeys


def recall_tokenizer(keys: EvaluateKeys, context: CheckContext) -> str | None:
    """Returns the tokenizer of the prompts; None for that of a train stage, or where there is none."""
    if keys.recall and keys.recall.tokenizer:
        return keys.recall.tokenizer
    if keys.model in context.earlier:
        return None
    return resolve_model(keys.model, {}).tokenizer
