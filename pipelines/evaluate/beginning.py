"""How the texts begin on which a model is scored: with the token it saw there in training, or with none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.errors import EspanError, InvalidKeyError
from pipelines.evaluate.tokenizer import recall_tokenizer
from pipelines.models.references import ModelSource, resolve_model
from pipelines.models.tokenizer_answers import bos_of, bos_text_of, token_of
from pipelines.prepare.shards import TokenizerEntry, read_manifest, split_folder
from pipelines.recipe.keys.common import BosChoice
from pipelines.recipe.keys.prepare import PrepareKeys
from pipelines.recipe.keys.train import TrainKeys

if TYPE_CHECKING:
    from pipelines.context import CheckContext
    from pipelines.recipe.keys.evaluate import EvaluateKeys


@dataclass(frozen=True)
class Beginning:
    """How texts begin under a tokenizer: with the token `bos`, or, where it is None, with none."""

    tokenizer: str
    bos: int | None

    @classmethod
    def of_tokenizer(cls, reference: str, choice: BosChoice) -> Beginning:
        """Returns how a tokenizer, of prompts or of a model, begins texts."""
        return cls(reference, bos_of(reference, choice))

    @classmethod
    def of_data(cls, entry: TokenizerEntry) -> Beginning:
        """Returns how the documents of shards begin."""
        return cls(entry.reference, entry.bos_token_id)

    def text(self, choice: BosChoice) -> str | None:
        """Says it; None where the tokenizer knows no token that begins texts."""
        return bos_text_of(self.tokenizer, self.bos, choice)


def agreed(choice: BosChoice, model: str, own: Beginning | None, data: Beginning | None) -> Beginning | None:
    """Returns how prompts and windows begin; None if nothing says so, which means without a token.

    Args:
        choice: the key `bos`.
        model: what the recipe calls the model.
        own: of the prompts' tokenizer or the model's; None if there is none.
        data: of the documents to score; None if there are none.

    Raises:
        EspanError: the two differ and `choice` does not decide, or the tokenizer has no such token.
    """
    known = own or data
    if known is None:
        return None
    if choice != "auto":
        return Beginning.of_tokenizer(known.tokenizer, choice)
    if own is not None and data is not None and own.bos != data.bos:
        places = [f"under the tokenizer of {model}", "in perplexity.data"]
        with_token = data if own.bos is None else own
        if own.bos is None:
            places.reverse()
        token = token_of(with_token.tokenizer, with_token.bos)
        raise EspanError(
            f"texts begin with {token} {places[0]}, but not {places[1]}; set bos to true or false, as the "
            "model was trained"
        )
    return known


def planned(keys: EvaluateKeys, context: CheckContext) -> Beginning | None:
    """Returns how texts will begin, as far as this is known before anything runs.

    Raises:
        InvalidKeyError: as `agreed`.
    """
    data = None
    if keys.perplexity:
        name = keys.perplexity.data
        folder = split_folder(name, keys.perplexity.split)
        data = _of_stage_or_shards("perplexity.data", name, folder, context)
    try:
        return agreed(keys.bos, keys.model, _of_model(keys, context), data)
    except EspanError as error:
        raise InvalidKeyError("bos", str(error)) from error


def of_source(keys: EvaluateKeys, model: ModelSource, prompts: str | None, data: str | None) -> int | None:
    """Returns the token that begins prompts and windows, or None, once everything is there.

    Args:
        keys: of the stage.
        model: where the model comes from.
        prompts: the tokenizer of the prompts, where recall is measured.
        data: folder of the documents to score, where perplexity is measured.

    Raises:
        EspanError: as `agreed`.
    """
    reference = prompts or model.tokenizer
    own = Beginning.of_tokenizer(reference, keys.bos) if reference else None
    documents = Beginning.of_data(read_manifest(data).tokenizer) if data else None
    found = agreed(keys.bos, keys.model, own, documents)
    return found.bos if found else None


def _of_model(keys: EvaluateKeys, context: CheckContext) -> Beginning | None:
    given = keys.recall.tokenizer if keys.recall else None
    if keys.model in context.earlier and given is None:
        # The tokenizer that training leaves beside a model begins texts as the training's documents do.
        trained = context.earlier[keys.model].keys
        if not isinstance(trained, TrainKeys):
            return None
        return _of_stage_or_shards("model", trained.data, trained.data, context)
    reference = recall_tokenizer(keys, context) if keys.recall else resolve_model(keys.model, {}).tokenizer
    return Beginning.of_tokenizer(reference, keys.bos) if reference else None


def _of_stage_or_shards(key: str, name: str, folder: str, context: CheckContext) -> Beginning | None:
    """Returns how documents begin; None for a stage that does not say which tokenizer it uses."""
    try:
        if name not in context.earlier:
            return Beginning.of_data(read_manifest(folder).tokenizer)
        prepared = context.earlier[name].keys
        if not isinstance(prepared, PrepareKeys):
            return None
        return Beginning.of_tokenizer(prepared.tokenizer, prepared.bos)
    except EspanError as error:
        raise InvalidKeyError(key, str(error)) from error
