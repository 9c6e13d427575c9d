"""A model that was trained with a beginning-of-sequence token is fitted, scored and served with it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pipelines.context import CheckContext, Context
from pipelines.errors import EspanError, InvalidKeyError, RecipeError
from pipelines.evaluate import check as evaluation
from pipelines.evaluate import run as scoring
from pipelines.evaluate.perplexity import token_nats
from pipelines.evaluate.windows import find_windows
from pipelines.evaluate.worker import Worker
from pipelines.export.write import export
from pipelines.models.bos import begin_with, chosen_bos, own_bos
from pipelines.models.loading import load_model
from pipelines.models.references import ModelSource, write_model_file
from pipelines.models.tokenizers import load_tokenizer, tokenizer_hash
from pipelines.needles.compose import recall_prompt
from pipelines.prepare.check import plan
from pipelines.prepare.run import run as prepare
from pipelines.prepare.shards import MANIFEST, ShardReader, read_manifest, split_folder
from pipelines.recipe.keys.common import BosChoice
from pipelines.recipe.keys.evaluate import EvaluateKeys
from pipelines.recipe.keys.export import ExportKeys
from pipelines.recipe.keys.prepare import PrepareKeys
from pipelines.recipe.keys.train import TrainKeys
from pipelines.recipe.parse import read_recipe
from pipelines.run.plan import plan_recipe
from pipelines.system.cluster_session import close_ray_session
from pipelines.train.job import resolve_job
from pipelines.train.worker.group import Group
from tests.distributed import run_distributed
from tests.real_size.text_tokenizers import KINDS, Kind, fast_tokenizer

LENGTH = 64
TEXTS = [f"the captain found a lantern near the mill {'and the river ' * (n % 5)}." for n in range(60)]
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "attn_layer_indices": [1],
    "state_size": 8,
    "mamba_head_dim": 16,
    "num_attention_heads": 2,
    "head_dim": 16,
    "rotary_dim": 8,
}


def with_template(kind: Kind, single: str) -> PreTrainedTokenizerFast:
    """A tokenizer that by itself turns a text into `single`, as published ones say it in tokenizer.json."""
    tokenizer = fast_tokenizer(kind)
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    template = processors.TemplateProcessing(single=single, special_tokens=special)
    parts = [processors.ByteLevel(trim_offsets=True), template] if kind == "byte-level" else [template]
    tokenizer.backend_tokenizer.post_processor = processors.Sequence(parts)
    return tokenizer


def saved(tokenizer: PreTrainedTokenizerFast, folder: Path, **configuration: Any) -> str:
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | configuration))
    return str(folder)


def context(name: str, folder: Path) -> Context:
    recipe = {"name": "run", "stages": {}}
    (folder / name).mkdir(exist_ok=True)
    return Context(name, str(folder / name), 3, {}, str(folder), recipe)


@pytest.fixture(scope="module")
def ray_head() -> Iterator[None]:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    yield
    close_ray_session()


@dataclass(frozen=True)
class Made:
    """Shards of the texts, a model that was trained on them, and its export."""

    folder: Path

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def documents(self) -> list[list[int]]:
        """All pieces of rows, held out or not."""
        pieces = []
        for folder in (self.path("corpus"), split_folder(self.path("corpus"), "holdout")):
            reader = ShardReader(folder)
            for row in range(len(reader)):
                input_ids, lengths = reader.row(row)
                pieces += [piece.tolist() for piece in torch.tensor(input_ids).split(lengths.tolist())]
        return pieces


def train_alone(rank: int, ranks: int, job: Any) -> None:
    from pipelines.train.worker.loop import train

    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    train(job, Group(rank, ranks, rank, 0, torch.device("cpu")), lambda event: None)


@pytest.fixture(scope="module")
def made(ray_head: None, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Made with a tokenizer that begins a text with <s> and ends it with </s>."""
    folder = tmp_path_factory.mktemp("workspace")
    corpus = folder / "texts.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    keys = {
        "sources": [{"path": str(corpus)}],
        "tokenizer": saved(with_template("prepended mark", "<s> $A </s>"), folder / "tokenizer"),
        "sequence_length": LENGTH,
        "holdout": 0.3,
    }
    prepare(PrepareKeys.model_validate(keys), context("corpus", folder))
    train = TrainKeys.model_validate(
        {
            "data": str(folder / "corpus"),
            "model": {"new": TINY},
            "attention": {"kind": "full"},
            "steps": 1,
            "tokens_per_step": LENGTH,
            "learning_rate": 1e-3,
        }
    )
    job = resolve_job(train, context("trained", folder))
    run_distributed(train_alone, 1, job)
    write_model_file(job.output, job.result())
    export(ExportKeys(model=job.output), context("release", folder))
    return Made(folder)


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize(
    ("single", "choice", "expected"),
    [
        ("$A", "auto", False),
        ("$A", True, True),
        ("$A </s>", True, True),
        ("<s> $A", "auto", True),
        ("<s> $A </s>", "auto", True),
        ("<s> $A </s>", False, False),
    ],
)
def test_a_tokenizer_is_saved_with_what_was_chosen_and_is_the_same_otherwise(
    kind: Kind, single: str, choice: BosChoice, expected: bool, tmp_path: Path
) -> None:
    original = with_template(kind, single)
    sha256, plain = tokenizer_hash(original), original("the river", add_special_tokens=False)["input_ids"]
    bos = chosen_bos(original, choice, "it")
    assert bos == (1 if expected else None)
    begin_with(original, bos).save_pretrained(tmp_path)
    for loaded in (load_tokenizer(str(tmp_path)), AutoTokenizer.from_pretrained(tmp_path)):
        end = [2] if single.endswith("</s>") else []
        assert loaded("the river")["input_ids"] == ([1] if expected else []) + plain + end
        assert own_bos(loaded) == bos
        assert tokenizer_hash(loaded) == sha256


def test_add_bos_token_in_the_configuration_counts(tmp_path: Path) -> None:
    plain = fast_tokenizer("metaspace")
    assert own_bos(load_tokenizer(saved(plain, tmp_path / "without", add_bos_token=False))) is None
    assert own_bos(load_tokenizer(saved(plain, tmp_path / "with", add_bos_token=True))) == 1


def test_every_document_begins_and_ends_once(made: Made) -> None:
    assert read_manifest(made.path("corpus")).tokenizer.bos_token_id == 1
    tokenizer = load_tokenizer(made.path("tokenizer"))
    whole = {(1, *tokenizer(text, add_special_tokens=False)["input_ids"], 2) for text in TEXTS}
    documents = made.documents()
    complete = [piece for piece in documents if piece[0] == 1 and piece[-1] == 2]
    assert len(complete) > 30
    assert {tuple(piece) for piece in complete} == whole
    assert all(1 not in piece[1:] and 2 not in piece[:-1] for piece in documents)


def test_a_trained_model_and_its_export_begin_texts_as_the_data_did(made: Made) -> None:
    for folder in ("trained/model", "release/merged"):
        tokenizer = AutoTokenizer.from_pretrained(made.path(folder))
        assert tokenizer("the river")["input_ids"][0] == 1
    card = Path(made.path("release/merged"), "README.md").read_text()
    assert "Texts begin with `<s>`, and `tokenizer(text)` puts it there" in card


def test_a_model_is_scored_on_texts_that_begin_with_the_token(made: Made) -> None:
    keys = {
        "model": made.path("trained"),
        "perplexity": {"data": made.path("corpus"), "lengths": [8, 16], "rows": 3},
        "recall": {"lengths": [200], "samples": 1, "tasks": ["single"]},
        "workers": 1,
    }
    scores = scoring.evaluate(EvaluateKeys.model_validate(keys), context("scores", made.folder))
    model = load_model(ModelSource(made.path("trained/model")))
    source = find_windows(split_folder(made.path("corpus"), "holdout"), longest=16, windows=3)
    for score in scores.perplexity:
        windows = source.read(0, 3, score.length)
        windows[:, 0] = 1
        nats = float(token_nats(Worker(model), windows, first=score.length - 4).sum())
        assert score.loss == pytest.approx(nats / 12, rel=1e-5)


def test_a_prompt_begins_with_the_token_and_is_no_longer_for_it() -> None:
    tokenizer = fast_tokenizer("prepended mark")
    sample = recall_prompt("single", length=200, seed=0, index=0, tokenizer=tokenizer, bos=1)
    assert len(sample.input_ids) == 200
    assert sample.input_ids.index(1) == 0
    assert 1 not in sample.input_ids[1:]
    ((start, end),) = sample.answer_spans
    assert tokenizer.decode(sample.input_ids[start:end]).strip().isdigit()


def test_data_and_model_that_begin_texts_differently_are_refused_unless_the_recipe_says_how(
    made: Made, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        (model / name).symlink_to(Path(made.path("trained/model"), name))
    begin_with(load_tokenizer(made.path("tokenizer")), None).save_pretrained(model)
    keys = {
        "model": str(model),
        "perplexity": {"data": made.path("corpus"), "lengths": [8]},
        "resources": {"gpus": 0},
    }
    here = CheckContext("scores", str(tmp_path / "out"), 0, str(tmp_path), {})
    stage = EvaluateKeys.model_validate(keys)
    with pytest.raises(InvalidKeyError, match=r"bos: texts begin with <s> in perplexity\.data"):
        evaluation.check(stage, here)
    with pytest.raises(EspanError, match="set bos to true or false"):
        scoring.evaluate(stage, context("refused", made.folder))
    for choice in (True, False):
        evaluation.check(EvaluateKeys.model_validate({**keys, "bos": choice}), here)
    said = evaluation.plan(EvaluateKeys.model_validate({**keys, "bos": True}), here)
    assert said["beginning"] == "texts begin with <s> (bos: true)"


@pytest.mark.parametrize(
    ("bos", "expected"),
    [
        (
            "true",
            "tokenizer 'builtin:tiny' has no beginning-of-sequence token",
        ),
        ("maybe", "must be"),
    ],
)
def test_a_token_that_is_not_there_is_refused_before_work_starts(
    bos: str, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("some words")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: r\nworkspace: {tmp_path / 'run'}\nstages:\n  corpus:\n    prepare:\n"
        f"      bos: {bos}\n      sources: [{{path: {tmp_path / 'a.txt'}}}]\n"
        "      tokenizer: builtin:tiny\n      sequence_length: 2\n"
    )
    with pytest.raises(RecipeError) as refusal:
        plan_recipe(recipe)
    assert f":6: stages.corpus.prepare.bos: {expected}" in str(refusal.value)


def test_without_such_a_token_nothing_is_written_of_it(ray_head: None, tmp_path: Path) -> None:
    needles = {"needles": {"tokens": 50, "needles": 2, "questions": 1}, "documents": 10}
    keys = {"sources": [needles], "tokenizer": "builtin:tiny", "sequence_length": LENGTH}
    recipe = tmp_path / "recipe.yaml"
    text = {"name": "r", "workspace": str(tmp_path / "run"), "stages": {"corpus": {"prepare": keys}}}
    recipe.write_text(yaml.safe_dump(text))
    stage = read_recipe(recipe).stages["corpus"].keys
    assert "bos" not in stage.model_dump()
    assert isinstance(stage, PrepareKeys)
    prepare(stage, context("corpus", tmp_path))
    assert "bos" not in (tmp_path / "corpus" / MANIFEST).read_text()
    assert "beginning" not in plan(stage, CheckContext("corpus", str(tmp_path / "x"), 0, str(tmp_path), {}))
