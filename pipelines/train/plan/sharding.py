"""Whether the model accepts the data's rows, whole or cut over `context_parallel` workers."""

from __future__ import annotations

from math import lcm
from typing import TYPE_CHECKING, Any

from pipelines.context import CheckContext
from pipelines.errors import InvalidKeyError, one_line
from pipelines.models.architecture import attached_skeleton, described_model
from pipelines.models.fitting import attention_config, hylora_config
from pipelines.recipe.keys.train import TrainKeys, divisors, nearest_of
from pipelines.system.answers import remembered

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

KEY = "context_parallel"


def row_tokens(stage: TrainKeys, sequence_length: int, packed: bool) -> int:
    """Returns the tokens of what is cut: a row, or the one row that a packed micro-batch is joined to."""
    return sequence_length * (stage.micro_batch_rows if packed else 1)


def check_rows(stage: TrainKeys, sequence_length: int, packed: bool) -> None:
    """Refuses rows that cannot be cut into equal shares of whole chunks.

    Raises:
        InvalidKeyError: says what to change.
    """
    ranks, sizes = stage.context_parallel, stage.attention.chunks
    if ranks == 1:
        return
    # Chunks of every size must end with the shares; mostly the largest is a multiple of the others.
    largest, unit = max(sizes, default=1), lcm(*sizes)
    tokens = row_tokens(stage, sequence_length, packed)
    row = f"a row of {tokens} tokens"
    if tokens != sequence_length:
        row = f"{row} ({stage.micro_batch_rows} packed rows of {sequence_length}, joined)"
    fitting = [each for each in divisors(stage.workers) if each == 1 or tokens % (each * unit) == 0]
    if ranks * largest > tokens:
        raise InvalidKeyError(
            KEY,
            f"more ranks than chunks: {ranks} workers cannot share {row} in chunks of {largest}; lower "
            f"{KEY} to {max(fitting)}, shorten attention.chunk_sizes or lengthen sequence_length",
        )
    if tokens % (ranks * unit):
        which = "the largest" if unit == largest else "the least common multiple"
        whole = f"whole chunks of {unit} ({which} of attention.chunk_sizes)" if sizes else "tokens"
        raise InvalidKeyError(
            KEY,
            f"{ranks} workers cannot share {row} in equal numbers of {whole}; use {KEY}: "
            f"{nearest_of(ranks, fitting)}, or rows of a multiple of {ranks * unit} tokens",
        )


def check_architecture(stage: TrainKeys, packed_rows: bool, context: CheckContext) -> None:
    """Refuses an attention that the model does not take, HyLoRA of layers that it does not have, and packed
    rows that a layer would run across.

    Raises:
        InvalidKeyError: names the architecture and the first such layer.
    """
    model = described_model(stage.model, context)
    if model is None:
        return

    def refusal_of(configuration: PreTrainedConfig) -> str | None:
        from se_model.attach import packing_refusal
        from se_model.hylora import check_kinds

        try:
            built = attached_skeleton(configuration, attention_config(stage.attention, context.seed))
        except ValueError as error:
            raise InvalidKeyError("model", one_line(error)) from error
        except Exception as error:  # whatever an architecture makes of an odd configuration
            what = f"{type(error).__name__}: {one_line(error)}"
            raise InvalidKeyError(
                "model", f"its config.json describes no model ({what}); correct it"
            ) from error
        if stage.hylora is not None:
            try:
                check_kinds(built, hylora_config(stage.hylora))
            except ValueError as error:
                raise InvalidKeyError("hylora.variant", str(error)) from error
        return packing_refusal(built) if packed else None

    # Layers that take a part of a row are told where its documents begin: `check_layers` asks for those.
    packed = packed_rows and stage.context_parallel == 1
    adapted = None if stage.hylora is None else stage.hylora.model_dump(mode="json")
    asked = [packed, adapted, *_attention(stage, context)]
    refusal = model.remembered("architecture", asked, refusal_of)
    if refusal is not None:
        maker = f"stage '{stage.data}'" if stage.data in context.earlier else "the stage that prepared it"
        raise InvalidKeyError(
            "data", f"its rows are packed by document: {refusal}; set packing: concatenate in {maker}"
        )


def check_layers(stage: TrainKeys, context: CheckContext) -> None:
    """Refuses an attention or a layer that cannot run on a part of a row, by its name.

    A model that is not on this machine yet is judged by the workers, before they train.

    Raises:
        InvalidKeyError: names the kind of attention, or the layer.
    """
    if stage.context_parallel == 1:
        return
    kind, kinds = stage.attention.kind, remembered("parallel attention", _parallel_kinds)
    if kind not in kinds:
        raise InvalidKeyError(
            KEY,
            f"attention of kind {kind} cannot run on a part of a row; use {KEY}: 1, or one of the kinds "
            f"{', '.join(kinds)}",
        )
    model = described_model(stage.model, context)
    if model is None:
        return

    def check(configuration: PreTrainedConfig) -> bool:
        from se_model.attach import check_parallel

        check_parallel(attached_skeleton(configuration, attention_config(stage.attention, context.seed)))
        return True

    try:
        model.remembered("parallel", _attention(stage, context), check)
    except ValueError as error:
        raise InvalidKeyError(KEY, one_line(error)) from error


def _parallel_kinds() -> list[str]:
    from se_model.parallel.attention import PARALLEL_ATTENTION

    return sorted(PARALLEL_ATTENTION)


def _attention(stage: TrainKeys, context: CheckContext) -> list[Any]:
    return [stage.attention.model_dump(mode="json"), context.seed]
