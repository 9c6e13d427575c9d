"""When a generated text ends, and what remains of it; and how a task of lm-eval (0.4.13) asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from pipelines.errors import EspanError
from pipelines.evaluate.language_model.encode import special_token

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

MAX_NEW_TOKENS = 256
"""What lm-eval generates where a task does not say how much."""

# What a task may also say: none of it matters to greedy decoding.
_WITHOUT_EFFECT = ("do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p")
# By their neutral values, settings of a checkpoint's own that make its choices other than the likeliest.
_NEUTRAL = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "num_beams": 1,
    "bad_words_ids": None,
    "sequence_bias": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "guidance_scale": None,
}


@dataclass(frozen=True)
class Generation:
    """How a prompt is continued: greedily, until one of these texts or for so many tokens."""

    stop: tuple[str, ...] = ()
    max_new_tokens: int = MAX_NEW_TOKENS

    @classmethod
    def of(cls, asked: Mapping[str, Any]) -> Generation:
        """Reads a task's `generation_kwargs`.

        Raises:
            EspanError: it asks for anything but greedy decoding, or for less than one token.
        """
        found = dict(normalize_gen_kwargs(dict(asked), MAX_NEW_TOKENS))
        until, tokens = found.pop("until"), found.pop("max_gen_toks")
        if found.get("do_sample"):
            raise EspanError(
                "generation_kwargs ask for sampling (do_sample, temperature); only greedy decoding is known"
            )
        for key, value in found.items():
            if key not in _WITHOUT_EFFECT and not (key in _NEUTRAL and value == _NEUTRAL[key]):
                raise EspanError(
                    f"generation_kwargs has {key}: {value!r}, which is not known here; leave it out"
                )
        if tokens < 1:
            raise EspanError(
                f"generation_kwargs ask for {tokens} tokens (max_gen_toks); at least 1 is needed"
            )
        return cls(tuple(until), tokens)


def check_greedy(settings: GenerationConfig) -> None:
    """Refuses a checkpoint whose own settings change what greedy decoding would choose.

    Raises:
        EspanError: naming the setting.
    """
    for key, neutral in _NEUTRAL.items():
        value = getattr(settings, key, None)
        if value not in (None, neutral):
            raise EspanError(
                f"the model's generation_config.json has {key}: {value!r}, which is not known here; set it "
                f"to {neutral!r} in the model's folder"
            )


@dataclass(frozen=True)
class Stops:
    """The texts that end a generation, the tokenizer's EOS token among them; none of them remains in it."""

    tokenizer: PreTrainedTokenizerBase
    strings: tuple[str, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> Stops:
        """Returns those of a task."""
        return cls(tokenizer, tuple(handle_stop_sequences(list(stop), special_token(tokenizer, "eos_token"))))

    @cached_property
    def _windows(self) -> dict[int, list[str]]:
        """By how many of the newest tokens they are looked for in, the strings.

        Two more than their own: a string may be written by other tokens than those that the tokenizer makes
        of it.
        """
        windows: dict[int, list[str]] = {}
        for string in self.strings:
            own = self.tokenizer.encode(string, add_special_tokens=False)
            windows.setdefault(len(own) + 2, []).append(string)
        return windows

    def end(self, tokens: Sequence[int]) -> bool:
        """Whether a generation ends with the last of its tokens so far."""
        return any(
            string in newest
            for window, strings in self._windows.items()
            for newest in [self.tokenizer.decode(tokens[-window:])]
            for string in strings
        )

    def text(self, tokens: Sequence[int]) -> str:
        """Returns the text before the first stop, special tokens left out."""
        decoded = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return str(postprocess_generated_text(decoded, list(self.strings), None))
