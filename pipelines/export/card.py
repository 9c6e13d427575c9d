"""The model card: what the model is, how to load it, what it scores, and how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

import se_model
from pipelines.context import Context
from pipelines.evaluate.scores import Mean, Scores, TaskMeasure
from pipelines.models.files import is_place
from pipelines.models.references import ModelSource
from pipelines.recipe.keys.export import ExportKeys, Form
from pipelines.recipe.references import is_builtin, split_reference
from pipelines.system.versions import code_version, decisive_versions

_FOLDER = "path/to/this/folder"
_MEANS: Mapping[TaskMeasure, str] = {"recall": "recall", "ruler": "RULER"}
"""What is measured in tasks by length, and what the card calls it."""


@dataclass(frozen=True)
class Proof:
    """How far the written model's logits are from the trained model's, how large those are, and its class."""

    largest_difference: float
    largest_logit: float
    model_class: str


def model_card(
    form: Form,
    source: ModelSource,
    stage: ExportKeys,
    context: Context,
    check: Proof,
    beginning: str | None = None,
) -> str:
    """Returns the card as Markdown, with the front matter that the model hub reads.

    `beginning` is the token that the tokenizer in the card's folder puts before a text: empty for none, None
    where there is no tokenizer.
    """
    recipe = context.recipe
    parts = [
        _front_matter(form, source),
        f"# {recipe['name']}",
        _what(form, source, stage, recipe),
        "## Use\n\n" + _use(form, source, check.model_class) + _beginning(beginning),
        _scores([(name, Scores.read(context.path_of(name))) for name in stage.scores]),
        "## Checked\n\n" + _checked(form, check),
        "## How it was made\n\n" + _origin(recipe),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(form: Form, source: ModelSource) -> str:
    fields: dict[str, Any] = {
        "library_name": "transformers" if form == "merged" else "peft",
        "pipeline_tag": "text-generation",
    }
    if not is_place(source.base) and not is_builtin(source.base):
        fields["base_model"] = split_reference(source.base)[0]
    fields["tags"] = ["long-context", "expansion-span", "state-space-model"]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False).strip()}\n---"


def _what(form: Form, source: ModelSource, stage: ExportKeys, recipe: Mapping[str, Any]) -> str:
    train = recipe["stages"].get(stage.model, {}).get("train")
    if train is None:
        return f"`{stage.model}`, as a checkpoint of its own."
    whole = "the whole model" if form == "merged" else f"the adapter alone, to be loaded over `{source.base}`"
    hylora, attention = train["hylora"], train["attention"]["kind"]
    tuned = "every parameter" if hylora is None else f"{hylora['variant']} of rank {hylora['rank']}"
    start = "A new model" if isinstance(train["model"], dict) else f"`{train['model']}`"
    if not is_place(source.base) and "@" in source.base:
        start += f" (`{source.base}`)"
    tokens = train["steps"] * train["tokens_per_step"]
    return (
        f"{start}, trained with {attention} attention ({tuned}) on `{train['data']}` for {train['steps']:,} "
        f"steps, {tokens:,} tokens. This folder holds {whole}. Run it with full attention, as any other. "
        "The licences of the base model and of the data apply."
    )


def _use(form: Form, source: ModelSource, model_class: str) -> str:
    own = hasattr(se_model, model_class)
    family = model_class if own else "AutoModelForCausalLM"
    tokenizer = ["AutoTokenizer"] if source.tokenizer is not None else []
    from_transformers = ", ".join([*([] if own else [family]), *tokenizer])
    ships = form == "adapter" and is_builtin(source.base)
    lines = [
        *(["from peft import PeftModel"] if form == "adapter" else []),
        *([f"from transformers import {from_transformers}"] if from_transformers else []),
        *([f"from se_model import {family}"] if own else []),
        *(["from pipelines.models.builtin import builtin"] if ships else []),
        "",
    ]
    if form == "merged":
        lines += [f'model = {family}.from_pretrained("{_FOLDER}")']
    else:
        lines += [f"base = {family}.from_pretrained({_from(source.base)})"]
        lines += [f'model = PeftModel.from_pretrained(base, "{_FOLDER}")']
    if tokenizer:
        lines += [f'tokenizer = AutoTokenizer.from_pretrained("{_FOLDER}")']
    return "```python\n" + "\n".join(lines) + "\n```"


def _from(base: str) -> str:
    """Returns the arguments of `from_pretrained` for a base model, as Python."""
    if is_builtin(base):
        return f'builtin("{base}")'
    name, revision = (base, "") if is_place(base) else split_reference(base)
    return f'"{name}", revision="{revision}"' if f"@{revision}" in base else f'"{name}"'


def _beginning(token: str | None) -> str:
    if token is None:
        return ""
    if not token:
        return "\n\nTexts begin without a beginning-of-sequence token, and `tokenizer(text)` adds none."
    return (
        f"\n\nTexts begin with `{token}`, and `tokenizer(text)` puts it there. If you make tokens in "
        "another way, make sure that each text begins with it once."
    )


def _scores(found: Sequence[tuple[str, Scores]]) -> str:
    if not found:
        return ""
    tables = []
    for measure, title in _MEANS.items():
        lengths = sorted({length for _, scores in found for length in scores.lengths(measure)})
        if lengths:
            rows = [
                (
                    f"{name} ({scores.model})",
                    [_percent(scores.mean_at(measure, length)) for length in lengths],
                )
                for name, scores in found
            ]
            tables.append(_table(f"{title}, mean of all tasks", lengths, rows))
    perplexity_lengths = sorted({score.length for _, scores in found for score in scores.perplexity})
    if perplexity_lengths:
        rows = []
        for name, scores in found:
            cells = [scores.perplexity_at(length) for length in perplexity_lengths]
            rows.append(
                (
                    f"{name} ({scores.model})",
                    ["–" if cell is None else f"{cell.perplexity:.2f}" for cell in cells],
                )
            )
        tables.append(_table("perplexity", perplexity_lengths, rows))
    return "## Scores\n\nBy context length in tokens.\n\n" + "\n\n".join(tables)


def _table(title: str, lengths: Sequence[int], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    lines = [f"| {title} | " + " | ".join(f"{length:,}" for length in lengths) + " |"]
    lines.append("| --- |" + " ---: |" * len(lengths))
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows]
    return "\n".join(lines)


def _percent(mean: Mean | None) -> str:
    return "–" if mean is None else f"{mean.value:.1%}"


def _checked(form: Form, check: Proof) -> str:
    what = "checkpoint" if form == "merged" else "adapter, over its base,"
    return (
        f"This {what} was read again, and its logits compared with those of the model as it was trained, in "
        f"float32: the largest difference is {check.largest_difference:.2e}, the largest logit "
        f"{check.largest_logit:.3g}."
    )


def _origin(recipe: Mapping[str, Any]) -> str:
    written = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).strip()
    named = ", ".join(f"{name} {version}" for name, version in decisive_versions().items())
    code = code_version()
    return (
        "With [Expansion Span](https://arxiv.org/abs/2412.13328), from this recipe:\n\n"
        f"```yaml\n{written}\n```\n\nVersions: {named}; code {code.get('commit', code['version'])}."
    )
