"""The README's tables of models, made by running each architecture's tiny model.

python -m tests.se_model.architectures.table      # from the repository's root: writes them into README.md
"""

import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from se_model.attach import attach, attention_layers, check_parallel, left_layers
from se_model.hylora import apply_hylora, coverage
from se_model.hylora.kinds import TRAINED_IN_FULL, Kind, parts
from se_model.recurrence.decoders import recurrent_layers
from tests.se_model.architectures.beyond import BEYOND, beyond_causal
from tests.se_model.architectures.probes import (
    RIGHT,
    SPAN,
    calling,
    hylora_config,
    logits,
    packing,
    padding,
    random_tokens,
)
from tests.se_model.tiny_models import ARCHITECTURES, tiny_model

README = Path(__file__).parents[3] / "README.md"
COMMAND = "python -m tests.se_model.architectures.table"
BEGIN, END = "<!-- models: begin (made by `" + COMMAND + "`) -->", "<!-- models: end -->"


def with_tables(readme: str) -> str:
    """`readme` with what stands between the markers made anew."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md lacks the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


def tables() -> str:
    """Three tables in Markdown: attaching, layers that ask for more than causality, HyLoRA."""
    attaching = _table(
        ["model", "attention layers", "packed documents", "padding", "masks over pairs", "context parallel"],
        [_attaching(name) for name in ARCHITECTURES],
    )
    beyond = _table(
        ["model", "its layers ask for", "taken", "left as they are", "refused"],
        [[_code(name.partition("-")[0]), asks_for, *_beyond(name)] for name, (asks_for, _) in BEYOND.items()],
    )
    hylora = _table(
        [
            "model",
            "low-rank updates",
            "in full: embeddings",
            "norms",
            "convolutions",
            "frozen",
            "merges with",
        ],
        [_hylora(name) for name in ARCHITECTURES],
    )
    return "\n\n".join(
        (
            "What `attach` finds, and what an attached model takes:",
            attaching,
            "What `attach` does with layers that ask for more than causality, in tiny models:",
            beyond,
            "What HyLoRA trains, by name within a layer:",
            hylora,
        )
    )


def _attaching(name: str) -> list[str]:
    model = tiny_model(name)
    layers = [layer for layer, _ in attention_layers(model)]
    found = _names(model, layers, within_layer=False)
    if _share_weights(model):
        found += " (weights shared between layers)"
    sides = [
        padding(name, side, with_positions=known) for side in ("left", "right") for known in (True, False)
    ]
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    pairs = calling(attach(model, SPAN), attention_mask=mask)
    return [
        _code(name),
        found,
        _packing(name),
        "left, right" if set(sides) == {RIGHT} else "refused",
        RIGHT if pairs == RIGHT else "refused",
        _parallel(model),
    ]


def _parallel(attached: PreTrainedModel) -> str:
    try:
        check_parallel(attached)
    except ValueError:
        return f"refused: {_carrying(attached)} would have to hand on state"
    return "yes"


def _packing(name: str) -> str:
    arguments = ("cu_seqlens", "position_ids")
    read = [argument for argument in arguments if packing(name, (argument,)) == RIGHT]
    if read:
        return "yes, by " + " or ".join(_code(argument) for argument in read)
    return f"refused: {_carrying(tiny_model(name))} would carry state across"


def _carrying(model: PreTrainedModel) -> str:
    carrying = recurrent_layers(model)
    return _names(model, [layer for layer in carrying if layer.rpartition(".")[0] not in carrying])


def _hylora(name: str) -> list[str]:
    model = tiny_model(name)
    config = hylora_config(model)
    names = {kind: _names(model, [part.name for part in parts(model) if part.kind is kind]) for kind in Kind}
    kinds = coverage(adapter := apply_hylora(model, config), config).kinds
    # `coverage` has raised if anything of these stayed frozen.
    trained = {Kind.ATTENTION, *TRAINED_IN_FULL[config.variant]}
    frozen = [str(kind) for kind in kinds if kind not in trained]
    convolutions = names[Kind.CONVOLUTIONS] or f"none: variant {_code(config.variant)}"
    embeddings, norms = names[Kind.EMBEDDINGS], names[Kind.NORMS]
    return [
        _code(name),
        names[Kind.ATTENTION],
        embeddings,
        norms,
        convolutions,
        ", ".join(frozen),
        _merges_with(name, adapter),
    ]


def _merges_with(name: str, adapter: PeftModel) -> str:
    """Whether plain peft merges what was saved to the adapter's logits, or `load_adapter` is needed."""
    tokens, generator = random_tokens(1, 8), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapter.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    expected = logits(adapter.eval(), tokens)
    with tempfile.TemporaryDirectory() as folder:
        adapter.save_pretrained(folder, save_embedding_layers=False)
        merged = PeftModel.from_pretrained(tiny_model(name), folder).merge_and_unload().eval()
    largest = (logits(merged, tokens) - expected).abs().max()
    return "plain peft" if largest < 1e-4 * expected.abs().max() else "`load_adapter`"


def _share_weights(model: PreTrainedModel) -> bool:
    weights = [id(weight) for _, layer in attention_layers(model) for weight in layer.parameters()]
    return len(set(weights)) < len(weights)


def _beyond(name: str) -> list[str]:
    """Which layers are taken, which are left, or why all are refused."""
    model = beyond_causal(name)
    try:
        attach(model, SPAN)
    except ValueError as refusal:
        return ["", "", str(refusal)]
    answer = calling(model)
    assert answer == RIGHT, answer
    left = left_layers(model)
    reasons = {
        reason: [layer.removeprefix(f"{model.base_model_prefix}.") for layer in left if left[layer] == reason]
        for reason in left.values()
    }
    taken = [layer for layer, _ in attention_layers(model) if layer not in left]
    return [
        ", ".join(_code(layer.removeprefix(f"{model.base_model_prefix}.")) for layer in taken),
        "; ".join(f"{', '.join(map(_code, layers))}: {reason}" for reason, layers in reasons.items()),
        "",
    ]


def _names(model: PreTrainedModel, names: Iterable[str], *, within_layer: bool = True) -> str:
    """Names without what repeats: `self_attn.{q_proj, k_proj}` for each of layers 0 to 63."""
    children: dict[str, dict[str, None]] = {}
    for name in names:
        short = re.sub(r"\.\d+(?=\.|$)", ".*", name.removeprefix(f"{model.base_model_prefix}."))
        parent, _, leaf = (short.removeprefix("layers.*.") if within_layer else short).rpartition(".")
        children.setdefault(parent, {})[leaf] = None
    groups = []
    for parent, leaves in children.items():
        joined = ", ".join(leaves)
        if not parent:
            groups += [_code(leaf) for leaf in leaves]
        else:
            groups.append(_code(f"{parent}.{{{joined}}}" if len(leaves) > 1 else f"{parent}.{joined}"))
    return ", ".join(groups)


def _code(text: str) -> str:
    return f"`{text}`"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    """Write the tables into README.md."""
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(f"{README}: written\n")


if __name__ == "__main__":
    main()
