"""The token that begins a text (BOS): which one it is, and whether a tokenizer adds it by default.

A model trained with one is fine-tuned, scored and served with it; any other model, without it. The default of
a tokenizer is what `tokenizer(text)` does, that is, its post-processor.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pipelines.errors import EspanError
from pipelines.recipe.keys.common import BosChoice

if TYPE_CHECKING:
    from tokenizers.processors import PostProcessor
    from transformers import PreTrainedTokenizerFast


def own_bos(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """Returns the single token that the tokenizer puts before a text by default, or None."""
    before, _ = _added(tokenizer)
    return before[0] if len(before) == 1 else None


def declared_bos(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """Returns the BOS token that the tokenizer names, whether it uses it or not."""
    named = tokenizer.special_tokens_map.get("bos_token")  # the attribute logs an error where there is none
    return None if named is None else int(tokenizer.convert_tokens_to_ids(str(named)))


def chosen_bos(tokenizer: PreTrainedTokenizerFast, choice: BosChoice, reference: str) -> int | None:
    """Returns the token that texts begin with, or None.

    Args:
        tokenizer: of the texts.
        choice: `auto`: the tokenizer's default; true: its BOS token; false: none.
        reference: what the recipe calls the tokenizer.

    Raises:
        EspanError: the tokenizer has no BOS token, or begins texts with several tokens.
    """
    if choice is False:
        return None
    before, _ = _added(tokenizer)
    if choice == "auto" and len(before) > 1:
        tokens = " ".join(tokenizer.convert_ids_to_tokens(before))
        raise EspanError(
            f"tokenizer '{reference}' begins a text with {len(before)} tokens ({tokens}), but at most one "
            "can be used; set bos to true or false"
        )
    if len(before) == 1:
        return before[0]
    if choice == "auto":
        return None
    declared = declared_bos(tokenizer)
    if declared is None:
        raise EspanError(
            f"tokenizer '{reference}' has no beginning-of-sequence token; set bos to false, or bos_token in "
            "its tokenizer_config.json"
        )
    return declared


def begin_with(tokenizer: PreTrainedTokenizerFast, bos: int | None) -> PreTrainedTokenizerFast:
    """Lets `tokenizer(text)` begin texts with `bos`, or with nothing, from now on; returns the tokenizer.

    Saving and loading keep this, with transformers' Auto classes too. Tokens added after a text stay.
    """
    before, after = _added(tokenizer)
    if before == ([] if bos is None else [bos]):
        return tokenizer
    tokenizer.backend_tokenizer.post_processor = _post_processor(tokenizer, bos, after)
    if bos is not None:
        tokenizer.bos_token = tokenizer.convert_ids_to_tokens(bos)
    return tokenizer


def without_bos(tokenizer: PreTrainedTokenizerFast, definition: dict[str, Any]) -> dict[str, Any]:
    """Returns a tokenizer's `definition`, the content of tokenizer.json, without what begins texts.

    A post-processor that adds anything comes back in one form, however it was spelt.
    """
    before, after = _added(tokenizer)
    plain = (definition["post_processor"] or {}).get("type") != "Sequence"
    if plain and not before and not after:
        return definition
    kept = json.loads(_post_processor(tokenizer, None, after).__getstate__())
    return {**definition, "post_processor": kept}


def bos_text(tokenizer: PreTrainedTokenizerFast, bos: int | None, choice: BosChoice) -> str | None:
    """Says how texts begin and why, for `espan plan`; None for a tokenizer that knows no BOS token."""
    why = "as the tokenizer does by default" if choice == "auto" else f"bos: {str(choice).lower()}"
    if bos is not None:
        return f"with {tokenizer.convert_ids_to_tokens(bos)} ({why})"
    known = own_bos(tokenizer) if choice is False else declared_bos(tokenizer)
    return None if known is None else f"without {tokenizer.convert_ids_to_tokens(known)} ({why})"


def _added(tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Returns the tokens that `tokenizer(text)` adds before and behind a text."""
    texts = ("x", *(tokenizer.decode([token]) for token in range(len(tokenizer))))
    for text in texts:  # a tokenizer may know next to nothing
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        if plain:
            whole = tokenizer(text, return_special_tokens_mask=True)
            added = whole["special_tokens_mask"]
            first, ids = added.index(0), whole["input_ids"]
            return ids[:first], ids[first + len(plain) :]
    return [], []


def _post_processor(tokenizer: PreTrainedTokenizerFast, bos: int | None, after: list[int]) -> PostProcessor:
    """Returns a post-processor that adds `bos` before a text and `after` behind it.

    It is built the way transformers builds its own, and offsets do not change.
    """
    from tokenizers import processors

    names = tokenizer.convert_ids_to_tokens
    before = [] if bos is None else [bos]

    def around(part: str, number: int) -> list[str]:
        return [*(f"{names(each)}:{number}" for each in before), f"${part}:{number}"] + [
            f"{names(each)}:{number}" for each in after
        ]

    template = processors.TemplateProcessing(
        single=around("A", 0),
        pair=around("A", 0) + around("B", 1),
        special_tokens=[(names(each), each) for each in dict.fromkeys([*before, *after])],
    )
    byte_level = _byte_level(tokenizer)
    if byte_level is None:
        return template
    return processors.Sequence([byte_level, template]) if before or after else byte_level


def _byte_level(tokenizer: PreTrainedTokenizerFast) -> PostProcessor | None:
    """Returns the part of the post-processor that sets byte-level offsets, if there is one."""
    from tokenizers import processors

    current = tokenizer.backend_tokenizer.post_processor
    state = {} if current is None else json.loads(current.__getstate__())
    for part in state.get("processors", [state]):
        if part.get("type") == "ByteLevel":
            return processors.ByteLevel(**{key: value for key, value in part.items() if key != "type"})
    return None
