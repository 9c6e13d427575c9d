"""What one architecture does with an attached attention, found out by running its tiny model.

A probe returns "yes", or the reason that a refusal gave; what is silently wrong is an AssertionError.
Both the tests and the README's tables ask these.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from se_model.attach import attach
from se_model.hylora import HyLoraConfig
from se_model.hylora.config import Variant
from se_model.loss import packed_position_ids
from se_model.span import SpanConfig
from tests.se_model.sizes import SIZES
from tests.se_model.tiny_models import tiny_model
from tests.tolerances import F32, within

LENGTH = 29
SPAN = SpanConfig(chunk_sizes=8, block_size=4, top_k=1)
EVERYTHING = SpanConfig(chunk_sizes=8, block_size=1, top_k=LENGTH)
RIGHT = "yes"
_BOUNDS = (0, 1, 12, LENGTH)
_PADDING = 9


def random_tokens(*shape: int) -> Tensor:
    return torch.randint(3, SIZES["vocab_size"], shape, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def logits(model: nn.Module, tokens: Tensor, **arguments: object) -> Tensor:
    return model(input_ids=tokens, use_cache=False, **arguments).logits


def hylora_config(model: nn.Module) -> HyLoraConfig:
    """HyLoRA; for a model without convolutions LoRA+, which is the same without them."""
    convolutions = any(isinstance(module, nn.Conv1d) for module in model.modules())
    variant: Variant = "hylora" if convolutions else "lora+"
    return HyLoraConfig(rank=4, alpha=8, variant=variant)


def packing(name: str, told_by: tuple[str, ...]) -> str:
    """Documents in one row against each in its own; `told_by` names the arguments that tell of them."""
    model, tokens, cu_seqlens = (
        attach(tiny_model(name), SPAN),
        random_tokens(1, LENGTH),
        torch.tensor(_BOUNDS),
    )
    known = {"cu_seqlens": cu_seqlens, "position_ids": packed_position_ids(cu_seqlens)}
    arguments = {argument: known[argument] for argument in told_by}

    def compare() -> None:
        packed = logits(model, tokens, **arguments)
        for start, end in itertools.pairwise(_BOUNDS):
            alone = logits(model, tokens[:, start:end])
            torch.testing.assert_close(packed[:, start:end], alone, **within(F32))

    return _right_or_refused(compare)


def padding(name: str, side: str, *, with_positions: bool) -> str:
    """A padded row beside a full one against either alone."""
    model, tokens = attach(tiny_model(name), SPAN), random_tokens(2, LENGTH)
    mask = torch.ones_like(tokens)
    mask[0, slice(0, _PADDING) if side == "left" else slice(LENGTH - _PADDING, LENGTH)] = 0
    arguments: dict[str, Tensor] = {"attention_mask": mask}
    if with_positions:
        arguments["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)

    def compare() -> None:
        padded = logits(model, tokens * mask, **arguments)
        for row in range(2):
            real = mask[row].bool()
            alone = logits(model, tokens[row : row + 1, real])
            torch.testing.assert_close(padded[row, real], alone[0], **within(F32))

    return _right_or_refused(compare)


def calling(model: nn.Module, **arguments: object) -> str:
    """What a call of an attached model is answered with that should be refused."""
    return _right_or_refused(lambda: logits(model, random_tokens(1, LENGTH), **arguments))


def _right_or_refused(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except ValueError as refusal:
        return str(refusal)
    return RIGHT
