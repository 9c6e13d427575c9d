"""Whether model and data use the same tokens; checked before anything runs, and when training starts."""

from __future__ import annotations

from pipelines.context import CheckContext
from pipelines.errors import EspanError, InvalidKeyError
from pipelines.models.architecture import described_model
from pipelines.models.references import resolve_model
from pipelines.models.tokenizer_answers import identity_of
from pipelines.models.tokenizers import pinned
from pipelines.prepare.shards import TokenizerEntry, read_manifest
from pipelines.recipe.keys.prepare import PrepareKeys
from pipelines.recipe.keys.train import TrainKeys


def check_tokenizer_of_data(stage: TrainKeys, context: CheckContext) -> None:
    """Refuses data that was, or will be, tokenized with another tokenizer than the model's.

    A model without a tokenizer takes the data's, as far as it has embeddings for it.

    Raises:
        InvalidKeyError: says which tokenizers differ, or how many words are too many.
    """
    if not isinstance(stage.model, str):
        return
    data = _tokenizer_of(stage.data, context)
    if data is None:
        return
    own: str | None
    if stage.model in context.earlier:  # which took the tokenizer of its own data
        trained = context.earlier[stage.model].keys
        theirs = _tokenizer_of(trained.data, context) if isinstance(trained, TrainKeys) else None
        if theirs is None:
            return
        own = theirs.reference
    else:
        own = resolve_model(stage.model, {}).tokenizer
    try:
        if data.sha256 == "":
            data = _entry(data.reference)
        refuse_other_tokenizer(own, stage.model, data, stage.data)
    except EspanError as error:
        raise InvalidKeyError("data", str(error)) from error
    if stage.model in context.earlier:
        return  # its embeddings are those of its own data's tokenizer
    model = described_model(stage.model, context)
    embedded = None
    if model is not None:
        embedded = model.remembered("words", None, lambda known: getattr(known, "vocab_size", None))
    if embedded is not None and data.vocabulary_size > embedded:
        raise InvalidKeyError(
            "data",
            f"its tokenizer, {data.reference}, has {data.vocabulary_size:,} words, but {stage.model} embeds "
            f"only {embedded:,}; prepare it with the model's tokenizer",
        )


def refuse_other_tokenizer(own: str | None, model: str, data: TokenizerEntry, place: str) -> None:
    """Refuses a model's `own` tokenizer if it makes other tokens of a text than the data's.

    Raises:
        EspanError: it does.
    """
    if own is None or pinned(own) == pinned(data.reference):
        return
    if identity_of(own)[0] != data.sha256:
        raise EspanError(
            f"{place} was tokenized with {data.reference}, and {model} has another tokenizer; prepare the "
            f"data with tokenizer: {own}"
        )


def _tokenizer_of(data: str, context: CheckContext) -> TokenizerEntry | None:
    """Returns what is known of the tokenizer of a prepare stage, which has no hash yet, or of shards."""
    if data not in context.earlier:
        return read_manifest(data).tokenizer
    prepared = context.earlier[data].keys
    if not isinstance(prepared, PrepareKeys):
        return None
    return TokenizerEntry(reference=prepared.tokenizer, sha256="", vocabulary_size=0, eos_token_id=None)


def _entry(reference: str) -> TokenizerEntry:
    sha256, words, end = identity_of(reference)
    return TokenizerEntry(reference=reference, sha256=sha256, vocabulary_size=words, eos_token_id=end)
