"""How far a chunk's choice of blocks looks ahead: what changes before a token when the text after it does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from se_model import attach, detach, se_attention, select_blocks
from se_model.span import Attention, SpanConfig
from se_model.span.documents import Documents

ENDINGS = ("other text", "nothing")


@dataclass(frozen=True)
class Seen:
    """One forward of a model: what each attention layer chose and gave, and each token's loss.

    Attributes:
        blocks: of each layer, int64 [B, G, choices, k].
        outputs: of each layer, [B, H, L, D].
        losses: of the token after each, in nats, [B, L - 1].
    """

    blocks: list[Tensor]
    outputs: list[Tensor]
    losses: Tensor


class WatchedSpan:
    """Span attention that keeps what every layer chose and gave in the last forward."""

    kind: ClassVar[str] = "span"

    def __init__(self, span: SpanConfig) -> None:
        self.span = span
        self.draws = span.draws
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def bind(self, *, layer: int, step: int) -> Attention:
        """The attention of one layer, which leaves its choice and its output in ``layers``."""

        def attend(
            q: Tensor,
            k: Tensor,
            v: Tensor,
            *,
            scale: float | None = None,
            cu_seqlens: Documents | None = None,
        ) -> Tensor:
            options = asdict(self.span.options(layer=layer, step=step, scale=scale))
            blocks = select_blocks(q, k, v, **options, cu_seqlens=cu_seqlens)
            output = se_attention(q, k, v, **options, cu_seqlens=cu_seqlens, blocks=blocks)
            self.layers[layer] = blocks, output
            return output

        return attend


@torch.no_grad()
def see(model: PreTrainedModel, watched: WatchedSpan, tokens: Tensor) -> Seen:
    """Runs a model that ``watched`` is attached to. tokens: int64 [B, L]."""
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    losses = F.cross_entropy(logits.transpose(1, 2).float(), tokens[:, 1:], reduction="none")
    layers = [watched.layers[layer] for layer in sorted(watched.layers)]
    return Seen([blocks for blocks, _ in layers], [output for _, output in layers], losses)


def look_ahead(
    model: PreTrainedModel, span: SpanConfig, tokens: Tensor, shares: tuple[float, ...]
) -> list[dict[str, Any]]:
    """How often and how far a later token reaches back, under one selection (``README.md`` has the fields).

    In every chunk that has more candidates than it may retrieve, what follows a token t is replaced: by the
    text that stands there in the next row, or by nothing. Choices, outputs and losses up to t are compared.

    Args:
        model: a causal language model to which nothing is attached; nothing is afterwards.
        tokens: int64 [B, L], B of at least 2 different texts.
        shares: where in its chunk t stands.

    Returns:
        One record per ending and share.
    """
    options = span.options(layer=0, step=0)
    watched = WatchedSpan(span)
    first = options.top_k * options.block_size // options.chunk_size + 1
    found: dict[tuple[str, int], list[dict[str, Tensor]]] = {}
    attach(model, watched)
    for chunk in range(first, tokens.shape[1] // options.chunk_size):
        start, end = chunk * options.chunk_size, (chunk + 1) * options.chunk_size
        whole = see(model, watched, tokens[:, :end])
        for at in (round(share * options.chunk_size) for share in shares):
            last = start + at - 1
            for ending, changed in _endings(tokens[:, :end], last):
                difference = compare(
                    whole, see(model, watched, changed), start, last, options.queries_per_choice
                )
                found.setdefault((ending, at), []).append(difference)
    detach(model)
    if not found:
        raise ValueError(
            f"rows of {tokens.shape[1]} tokens have no chunk of {options.chunk_size} with more than "
            f"{options.top_k} blocks to choose from"
        )
    return [
        {"selection": span.selection, "ending": ending, "tokens_into_chunk": at, **_summary(differences)}
        for (ending, at), differences in found.items()
    ]


def _endings(tokens: Tensor, last: int) -> Iterator[tuple[str, Tensor]]:
    kept = tokens[:, : last + 1]
    yield ENDINGS[0], torch.cat([kept, tokens.roll(1, 0)[:, last + 1 :]], dim=1)
    yield ENDINGS[1], kept


def compare(before: Seen, after: Seen, start: int, last: int, refresh: int) -> dict[str, Tensor]:
    """What differs between two forwards from the chunk's ``start`` to token ``last``.

    Returns:
        ``changed``: whether a choice differs, and ``blocks``: how many of its blocks, the mean over the
        choices of the chunk up to ``last``; both [layers, B, G]. ``moved``: norm of the difference of the
        outputs over the norm of the outputs, [layers, B]. ``loss``: of the tokens that are predicted up to
        ``last``, after minus before, [B, tokens].
    """
    choices = slice(start // refresh, last // refresh + 1)
    own = slice(start, last + 1)
    changed, replaced, moved = [], [], []
    for was, now in zip(before.blocks, after.blocks, strict=True):
        was, now = was[:, :, choices], now[:, :, choices]
        kept = ((was[..., :, None] == now[..., None, :]) & (was >= 0)[..., None]).any(-1).sum(-1)
        lost = (was >= 0).sum(-1) - kept
        changed.append((lost > 0).any(-1))
        replaced.append(lost.double().mean(-1))
    for one, other in zip(before.outputs, after.outputs, strict=True):
        one, other = one[:, :, own].flatten(1).double(), other[:, :, own].flatten(1).double()
        moved.append((other - one).norm(dim=1) / one.norm(dim=1))
    predicted = slice(start, last)
    return {
        "changed": torch.stack(changed),
        "blocks": torch.stack(replaced),
        "moved": torch.stack(moved),
        "loss": (after.losses[:, predicted] - before.losses[:, predicted]).double(),
    }


def _summary(differences: list[dict[str, Tensor]]) -> dict[str, Any]:
    changed, blocks, moved = (
        torch.stack([difference[name] for difference in differences]).double()
        for name in ("changed", "blocks", "moved")
    )
    loss = torch.cat([difference["loss"].flatten() for difference in differences])
    return {
        "choices": changed.numel(),
        "changed": float(changed.mean()),
        "blocks_changed": float(blocks.mean()),
        "output_moved": float(moved.mean()),
        "largest_output_moved": float(moved.max()),
        "loss_moved": float(loss.abs().mean()),
        "loss_gained": float(loss.mean()),
        "changed_by_layer": changed.mean(dim=(0, 2, 3)).tolist(),
    }
