"""The tokenizer of small models that are trained for RULER: `builtin:ruler-tiny`.

Its 1,024 tokens are learnt from what RULER writes and from the essays that ship with the package, and can
write any text: all bytes are among them. Numbers are written two digits at a time: a model copies a number
that it has never seen by what follows what, and a pair of digits seldom stands in a number twice.
"""

from __future__ import annotations

import string
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.recipe.keys.ruler import RULER_TASKS
from pipelines.ruler.compositions import Sources, composition
from pipelines.ruler.draws import draws_of
from pipelines.ruler.essays import SHIPPED, read_essays
from pipelines.ruler.tokens import prompt_text
from pipelines.ruler.variables import solved_example
from pipelines.ruler.word_lists import listed_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END = "<eos>"
_TOKENS = 1024
_PIECES = r" ?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""A word, or marks, with the blank before it; two digits; white space up to that blank."""
_PROMPTS, _LENGTH, _UNITS = 40, 512, 4
_LETTERS_REPEATED = 200


def ruler_tokenizer() -> PreTrainedTokenizerFast:
    """Returns the tokenizer, trained anew: always the same one."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.decoders import ByteLevel as ByteLevelDecoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(BPE())
    bytes_of_pieces = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = Sequence([Split(Regex(_PIECES), "isolated"), bytes_of_pieces])
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=_TOKENS,
        special_tokens=[END],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        model_input_names=["input_ids", "attention_mask"],
    )


def _texts() -> Iterator[str]:
    """Yields what the tokens are learnt from."""
    essays = read_essays(None)
    yield from (file.read_text("utf-8") for file in sorted(Path(SHIPPED).glob("*.txt")))
    yield from (f" {word}" for word in listed_words())
    yield from (f"-{word}" for word in listed_words())
    for task in RULER_TASKS:
        for index in range(_PROMPTS):
            draws = partial(draws_of, 0, "vocabulary", task, index)
            example = partial(solved_example, 1, draws())
            made = composition(task, _LENGTH, index, sources=Sources(essays), example=example)
            prompt = made.compose(max(made.smallest, _UNITS), draws())
            yield prompt_text(task, prompt.input, prompt.gen_prefix)
    # All letters behind a blank, and all pairs of digits, become tokens, whatever else is learnt.
    pairs = [f"{number:02}" for number in range(100)]
    yield from [" ".join(["", *string.ascii_letters, *pairs])] * _LETTERS_REPEATED
