"""The look-ahead of a choice is found where there is one, and nowhere else; the run says what it ran on."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from benchmarks.causality import FORMAT, app
from benchmarks.lookahead import Seen, compare, look_ahead
from pipelines.models.loading import load_model
from pipelines.models.references import resolve_model
from pipelines.system.storage import content_hash
from se_model import SpanConfig
from se_model.attach import attached

SMALL = "--model bytes --length 64 --chunk-size 16 --block-size 4 --top-k 2 --steps 2 --threads 1".split()


def book(folder: Path, name: str) -> Path:
    """Two thousand characters that no two names share, and what follows a book."""
    path = folder / name
    words = " ".join(f"{name}{number * number}" for number in range(300))
    path.write_text(f"{words[:2000]}\n*** END OF THE BOOK ***\n{'x' * 5000}")
    return path


def seen(blocks: list[list[int]], outputs: Tensor, losses: Tensor) -> Seen:
    return Seen([torch.tensor([[blocks]])], [outputs], losses)


def test_a_run_finds_no_look_ahead_under_causal_selection_and_some_under_the_paper_s(tmp_path: Path) -> None:
    texts = [book(tmp_path, name) for name in ("ant", "bee", "cow")]
    arguments = [part for text in texts for part in ("--text", str(text))]
    output = tmp_path / "new" / "result.json"
    done = CliRunner().invoke(app, [*SMALL, *arguments, "--output", str(output)])
    assert done.exit_code == 0, done.stderr
    result = json.loads(output.read_text())
    assert result["format"] == FORMAT
    assert result["texts"] == [{"name": path.name, "sha256": content_hash(str(path))} for path in texts]
    assert (result["seed"], result["setting"]["chunk_size"], result["machine"]["threads"]) == (0, 16, 1)
    (measured,) = result["models"]
    assert (measured["model"], measured["unknown_tokens"]) == ("bytes", 0)
    assert measured["training_loss"] > 0
    records = measured["results"]
    assert [(r["selection"], r["tokens_into_chunk"], r["ending"]) for r in records] == [
        (selection, at, ending)
        for selection in ("chunk", "causal")
        for at in (4, 8, 12)
        for ending in ("other text", "nothing")
    ]
    for record in records:
        # Three rows, the three chunks after the first, two layers of two key/value heads.
        assert record["choices"] == 3 * 3 * 2 * 2
        if record["selection"] == "causal":
            assert record["changed"] == record["blocks_changed"] == 0
            if record["ending"] == "other text":  # rows of another length are rounded differently
                assert record["largest_output_moved"] == record["loss_moved"] == 0
    for ending in ("other text", "nothing"):
        same = [record for record in records if record["ending"] == ending]
        assert sum(record["changed"] for record in same) > 0
        assert sum(record["output_moved"] for record in same) > 1e-4
    assert "other text" in done.stdout


def test_what_differs_is_counted_between_the_chunk_s_start_and_the_token() -> None:
    blocks = [[-1, -1], [0, 2], [1, 3], [4, 5]]
    outputs, losses = torch.ones(1, 1, 16, 1), torch.zeros(1, 15)
    before = seen(blocks, outputs, losses)
    changed = outputs.clone()
    changed[:, :, 6:8] = 3.0
    after = seen([[-1, -1], [0, 2], [3, 6], [7, 8]], changed, losses.index_fill(1, torch.tensor([6, 9]), 0.5))
    # Chunks of 8 in groups of 4: of tokens 8 to 11 one block of two, of 12 to 15 both.
    whole = compare(before, after, start=8, last=15, refresh=4)
    assert (whole["changed"].tolist(), whole["blocks"].tolist()) == ([[[True]]], [[[1.5]]])
    assert whole["moved"].tolist() == [[0.0]]
    assert whole["loss"].tolist() == [[0, 0.5, 0, 0, 0, 0, 0]]
    half = compare(before, after, start=0, last=7, refresh=4)
    assert (half["changed"].tolist(), half["blocks"].tolist()) == ([[[False]]], [[[0.0]]])
    assert half["moved"].item() == pytest.approx(1.0)
    assert half["loss"].tolist() == [[0, 0, 0, 0, 0, 0, 0.5]]


def test_the_model_comes_back_as_it_was() -> None:
    model = load_model(resolve_model("builtin:tiny", {}))
    rows = torch.randint(2, 200, (2, 48), generator=torch.Generator().manual_seed(1))
    look_ahead(model, SpanConfig(chunk_sizes=16, block_size=4, top_k=2), rows, (0.5,))
    assert attached(model) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--chunk-size", "18"], "chunk_size must be a multiple of block_size 4, not 18"),
        (["--top-k", "12"], "no chunk of 16 with more than 12 blocks"),
        (["--length", "4000"], "give longer texts or a smaller --length"),
        (["--model", "builtin:small"], "nothing called 'builtin:small'"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(value),
)
def test_what_cannot_be_measured_is_refused(options: list[str], message: str, tmp_path: Path) -> None:
    arguments = [part for name in ("ant", "bee") for part in ("--text", str(book(tmp_path, name)))]
    done = CliRunner().invoke(app, [*SMALL, *arguments, "--output", str(tmp_path / "result.json"), *options])
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert not (tmp_path / "result.json").exists()
