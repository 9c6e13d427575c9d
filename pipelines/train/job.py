"""What the workers are told: a stage's keys, with every reference in them resolved."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

from pipelines.context import Context
from pipelines.errors import EspanError
from pipelines.models.bos import own_bos
from pipelines.models.merging import merge_into
from pipelines.models.references import MODEL_FILE, ModelSource, resolve_model, write_model_file
from pipelines.models.tokenizers import load_tokenizer
from pipelines.prepare.shards import read_manifest
from pipelines.recipe.keys.train import NewModel, TrainKeys
from pipelines.recipe.path_keys import TOKENIZER
from pipelines.system import storage
from pipelines.system.precision import Choice, Settled, choose_precision
from pipelines.system.worker_resources import Reservation
from pipelines.train.resources import in_precision
from pipelines.train.tokenizer import refuse_other_tokenizer
from pipelines.train.worker.checkpoints import CheckpointStore

MODEL_FOLDER = "model"
BASE_FOLDER = "base"
CHECKPOINTS_FOLDER = "checkpoints"


@dataclass(frozen=True)
class TrainJob:
    """One training run.

    Attributes:
        keys: of the stage; `precision` is never `auto`.
        model: what training starts from.
        data: folder of the shards.
        tokenizer: reference of the tokenizer of both.
        output: the stage's folder, a path or an fsspec URL.
        seed: of everything that is random.
        rows_per_step: rows of one update, over all workers.
        bos: the token that begins each document, if any.
    """

    keys: TrainKeys
    model: ModelSource
    data: str
    tokenizer: str
    output: str
    seed: int
    rows_per_step: int
    bos: int | None = None

    @property
    def precision(self) -> Settled:
        """The precision of weights and arithmetic."""
        assert self.keys.precision != "auto", "resolve_job settles it"
        return self.keys.precision

    @property
    def checkpoints(self) -> str:
        """The folder of the checkpoints."""
        return storage.join(self.output, CHECKPOINTS_FOLDER)

    def result(self) -> ModelSource:
        """Returns what the stage leaves behind, as `model.json` tells of it."""
        own = f"./{MODEL_FOLDER}"
        if self.keys.hylora is None:
            return ModelSource(own, tokenizer=own)
        return ModelSource(self._base_from_here(), adapter=own, tokenizer=own)

    def _base_from_here(self) -> str:
        """Returns the base relative to the output where both lie in one workspace, which may be moved."""
        workspace = posixpath.dirname(self.output.rstrip("/"))
        if not self.model.base.startswith(workspace + "/"):
            return self.model.base
        path = posixpath.relpath(self.model.base, self.output)
        return path if path.startswith(".") else f"./{path}"


def training_precision(stage: TrainKeys, output: str, workers: Reservation) -> Choice:
    """Returns the precision to train in: a training that left a checkpoint goes on in the checkpoint's.

    Raises:
        EspanError: the newest checkpoint is damaged.
    """
    newest = None
    if stage.precision == "auto":
        newest = CheckpointStore(storage.join(output, CHECKPOINTS_FOLDER)).newest()
    if newest is None:
        return choose_precision(stage.precision, workers)
    return Choice(newest.state.precision, f"as in the checkpoint of step {newest.state.step}")


def resolve_job(stage: TrainKeys, context: Context, precision: Settled = "fp32") -> TrainJob:
    """Looks up the shards and the model, and makes the base of the training where there is none yet.

    `precision` is what `precision: auto` comes to; see `training_precision`.

    Raises:
        EspanError: shards and model do not fit together.
    """
    data = context.path_of(stage.data)
    manifest = read_manifest(data)
    if manifest.rows == 0:
        raise EspanError(
            f"{data} holds no rows to train on; give the corpus more text or shorten sequence_length"
        )
    if isinstance(stage.model, NewModel):
        model = ModelSource("", new={"vocab_size": manifest.tokenizer.vocabulary_size, **stage.model.new})
    else:
        model = resolve_model(stage.model, context.inputs)
        refuse_other_tokenizer(model.tokenizer, model.name, manifest.tokenizer, data)
        _tell_of_other_beginning(model, manifest.tokenizer.bos_token_id, context)
        if model.adapter is not None:
            model = _merged_base(model, context)
    return TrainJob(
        keys=in_precision(stage, precision) if stage.precision == "auto" else stage,
        model=model,
        data=data,
        tokenizer=TOKENIZER.absolute(manifest.tokenizer.reference, ()),
        output=context.output,
        seed=context.seed,
        rows_per_step=stage.rows_per_step(manifest.sequence_length),
        bos=manifest.tokenizer.bos_token_id,
    )


def _tell_of_other_beginning(model: ModelSource, bos: int | None, context: Context) -> None:
    """Tells the user if the data's documents begin differently from texts of the model's tokenizer."""
    if model.tokenizer is None:
        return
    tokenizer = load_tokenizer(model.tokenizer)
    own = own_bos(tokenizer)
    if own != bos:
        token = tokenizer.convert_ids_to_tokens(own if bos is None else bos)
        there, here = ("begins", "do not begin") if bos is None else ("does not begin", "begin")
        context.progress.message(
            f"{context.name}: the tokenizer of {model.name} {there} texts with {token}, but the documents of "
            f"the data {here} with it; the trained model's tokenizer will do as the data does"
        )


def _merged_base(model: ModelSource, context: Context) -> ModelSource:
    """Folds an adapter into its base, once: a new adapter needs a base that exists on disk."""
    folder = storage.join(context.output, BASE_FOLDER)
    merged = ModelSource(folder, tokenizer=folder if model.tokenizer else None)
    if storage.exists(storage.join(folder, MODEL_FILE)):
        return merged
    merge_into(model, folder, f"{context.name}: merging {model.name}", context.progress)
    write_model_file(folder, ModelSource(".", tokenizer="." if model.tokenizer else None))
    return merged
