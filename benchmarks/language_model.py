"""How fast requests of lm-eval are answered, beside its own HFLM: ``python -m benchmarks.language_model``."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.measure import interleaved_seconds
from benchmarks.records import describe_machine, warn_if_busy
from pipelines.evaluate.language_model.model import EspanLM
from pipelines.models.tokenizers import load_tokenizer
from pipelines.needles.compose import recall_prompt
from pipelines.recipe.keys.needles import RECALL_TASKS
from pipelines.system.machine import cpu_count
from pipelines.system.storage import write_json_atomic
from pipelines.system.versions import code_version
from se_model import Mamba2HybridConfig, Mamba2HybridForCausalLM

FORMAT = "espan-language-model-benchmark/1"
OUTPUT = Path(__file__).parent / "results" / "language_model-cpu.json"
PROMPTS, SHORTEST, LONGEST, NEW_TOKENS = 24, 900, 1000, 32
QUESTIONS, CHOICES = 12, 4
BATCHES = (1, 8, PROMPTS)
OWN = "EspanLM"
HEADINGS = ("model", "requests", "answered by", "seconds", "requests a second")
TARGET_HEADINGS = ("model", "requests", "target", "wanted", "measured", "met")
NOTES = Console(stderr=True)

# Of a size that two cores generate with in seconds; vocabularies are as large as usual.
_SIZES = {"vocab_size": 32_000, "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}

app = typer.Typer(add_completion=False)

Record = dict[str, Any]
Answer = Callable[[], list[Any]]


def models() -> dict[str, Callable[[], PreTrainedModel]]:
    """What is asked, by name: random weights, and nothing that ends a text but the number of its tokens."""
    ours = Mamba2HybridConfig(
        **_SIZES, num_hidden_layers=8, attn_layer_indices=[3, 6], head_dim=64, rotary_dim=32, state_size=64
    )
    llama = AutoConfig.for_model(
        "llama", **_SIZES, num_hidden_layers=6, intermediate_size=768, eos_token_id=None, bos_token_id=None
    )
    return {
        "Mamba-2-Hybrid": partial(Mamba2HybridForCausalLM, ours),
        "Llama": partial(AutoModelForCausalLM.from_config, llama),
    }


def prompts(tokenizer: PreTrainedTokenizerBase) -> list[Instance]:
    """Recall probes of every task and of unequal lengths, to be continued by NEW_TOKENS tokens."""
    step = (LONGEST - SHORTEST) / max(1, PROMPTS - 1)
    texts = [_probe(tokenizer, number, SHORTEST + round(number * step)) for number in range(PROMPTS)]
    asked = {"until": [], "max_gen_toks": NEW_TOKENS, "do_sample": False}
    return [Instance("generate_until", {}, (text, asked), number) for number, text in enumerate(texts)]


def pairs(tokenizer: PreTrainedTokenizerBase) -> list[Instance]:
    """Contexts a quarter to half as long, each with several continuations of four tokens."""
    step = SHORTEST // 4 // QUESTIONS
    contexts = [_probe(tokenizer, number, SHORTEST // 4 + number * step) for number in range(QUESTIONS)]
    # Of words that the tokenizer knows: else all would be the same tokens, and answered at once.
    words = _probe(tokenizer, QUESTIONS, SHORTEST // 2).split()
    continuations = [" " + " ".join(words[number : number + 4]) for number in range(CHOICES)]
    return [
        Instance("loglikelihood", {}, (context, continuation), number)
        for number, context in enumerate(contexts)
        for continuation in continuations
    ]


def measure(name: str, model: PreTrainedModel, repeats: int, seconds: float) -> list[Record]:
    """A record for each kind of request and each side."""
    tokenizer = load_tokenizer("builtin:tiny")
    own = EspanLM(model, tokenizer, max_length=2 * LONGEST)
    others = {
        f"HFLM, batches of {size}": HFLM(
            pretrained=model, tokenizer=tokenizer, max_length=2 * LONGEST, batch_size=size
        )
        for size in BATCHES
    }
    records = []
    for kind, requests in (("generate_until", prompts(tokenizer)), ("loglikelihood", pairs(tokenizer))):
        calls: dict[str, Answer] = {
            side: partial(getattr(answering, kind), requests, disable_tqdm=True)
            for side, answering in {OWN: own, **others}.items()
        }
        for call in calls.values():
            call()
        samples = interleaved_seconds(calls, "cpu", repeats=repeats, seconds=seconds)
        records += [
            {
                "model": name,
                "requests": kind,
                "count": len(requests),
                "by": side,
                "seconds": statistics.median(samples[side]),
                "samples": samples[side],
            }
            for side in calls
        ]
    return records


def rows(result: Record) -> list[tuple[str, ...]]:
    """One line for each record."""
    return [
        (
            record["model"],
            record["requests"],
            record["by"],
            f"{record['seconds']:.2f}",
            f"{record['count'] / record['seconds']:.1f}",
        )
        for record in result["results"]
    ]


def verdicts(result: Record) -> list[tuple[str, ...]]:
    """For each model and kind of request, whether it is answered as fast as by HFLM at its fastest."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for record in result["results"]:
        found.setdefault((record["model"], record["requests"]), {})[record["by"]] = record["seconds"]
    lines: list[tuple[str, ...]] = []
    for (model, requests), seconds in found.items():
        ratio = seconds[OWN] / min(taken for side, taken in seconds.items() if side != OWN)
        met = "yes" if ratio <= 1 else "no"
        lines.append((model, requests, "time / HFLM's at its fastest", "1", f"{ratio:.2f}", met))
    return lines


@app.command()
def main(
    repeats: Annotated[
        int, typer.Option(min=1, help="Timed calls at least, of which the median counts.")
    ] = 3,
    seconds: Annotated[float, typer.Option(min=0, help="Quick calls are repeated for about so long.")] = 3.0,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch. [default: all cores]")] = None,
    output: Annotated[Path, typer.Option(help="JSON file to write.")] = OUTPUT,
) -> None:
    """Measures generation and log-likelihoods on this machine's CPU, ours and lm-eval's own in turn."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    torch.set_num_threads(threads or cpu_count())
    host = describe_machine("cpu")
    warn_if_busy(host, NOTES.print)
    results = []
    for name, build in models().items():
        NOTES.print(f"measuring {name} ...")
        torch.manual_seed(0)
        results += measure(name, build().eval(), repeats, seconds)
    result = {
        "format": FORMAT,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": host,
        "versions": {
            "torch": torch.__version__,
            **{package: metadata.version(package) for package in ("transformers", "lm-eval")},
            "code": code_version(),
        },
        "sizes": {
            "prompts": PROMPTS, "tokens": [SHORTEST, LONGEST], "new tokens": NEW_TOKENS,
            "questions": QUESTIONS, "choices": CHOICES,
        },
        "results": results,
    }  # fmt: skip
    write_json_atomic(str(output), result)
    for headings, lines in ((HEADINGS, rows(result)), (TARGET_HEADINGS, verdicts(result))):
        table = Table(*headings)
        for line in lines:
            table.add_row(*line)
        Console().print(table)
    NOTES.print(f"written to {output}")


def _probe(tokenizer: PreTrainedTokenizerBase, number: int, tokens: int) -> str:
    task = RECALL_TASKS[number % len(RECALL_TASKS)]
    sample = recall_prompt(task, length=tokens, seed=0, index=number, tokenizer=tokenizer)
    return str(tokenizer.decode(sample.input_ids))


if __name__ == "__main__":
    app()
