"""Makes the documents of a task at a length: lm-eval's RULER, filled up to that length.

A document depends on the seed, the task, the length, its index, the tokenizer and the data that it is made
of, and on nothing else: documents can be made in any order, by any number of processes, few of them or many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from pipelines.errors import EspanError
from pipelines.recipe.keys.ruler import RulerTask
from pipelines.ruler.compositions import Sources, composition
from pipelines.ruler.draws import draws_of
from pipelines.ruler.fill import SLACK, DoesNotFitError, Filled, Haystack, fill
from pipelines.ruler.prompts import Prompt
from pipelines.ruler.tasks import answer_tokens
from pipelines.ruler.tokens import encode, prompt_text
from pipelines.ruler.variables import EXAMPLE_TOKENS, longest_example

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerFast


def generate(
    task: RulerTask,
    length: int,
    *,
    indices: Sequence[int],
    seed: int,
    tokenizer: PreTrainedTokenizerFast,
    sources: Sources,
) -> list[dict[str, Any]]:
    """Returns documents of a task, with the fields that lm-eval's have and one more.

    What the model is given (`input` and `gen_prefix`, put together as lm-eval does, and what the tokenizer
    adds of its own) and the tokens it may write are `length` together: never more, and at most 1% less.

        index, input, outputs, max_length, gen_prefix   as in lm-eval; of `cwe` also `input_example`
        length   how many tokens these are
        depth    where the answer stands: the share of the tokens given that come before it, from 0 to 1; the
                 mean of several; None where it does not stand in one place

    Raises:
        EspanError: the length is too short or too long for the task, or it needs data that is missing.
    """
    maker = _Maker(task, length, seed, tokenizer, sources)
    try:
        return [maker.document(index) for index in indices]
    except DoesNotFitError as error:
        what = f"RULER's {task} has no prompts of {length} tokens with this tokenizer: "
        if error.too_long:
            what += f"the shortest have {maker.shortest(indices)}; ask for as many or more"
        else:
            longest = error.tokens + answer_tokens(task)
            what += f"what it is made of ends at {longest}; ask for fewer, or leave it out"
        raise EspanError(what) from error


@dataclass(frozen=True)
class _Maker:
    """Makes the documents of one task and length."""

    task: RulerTask
    length: int
    seed: int
    tokenizer: PreTrainedTokenizerFast
    sources: Sources

    def document(self, index: int) -> dict[str, Any]:
        answer = answer_tokens(self.task)
        filled = fill(self.haystack(index), self.length - answer, int(SLACK * self.length))
        prompt = filled.prompt
        example = {} if prompt.input_example is None else {"input_example": prompt.input_example}
        return {
            "index": index,
            "input": prompt.input,
            **example,
            "outputs": prompt.outputs,
            "length": filled.tokens + answer,
            "max_length": self.length,
            "gen_prefix": prompt.gen_prefix,
            "depth": _depth(filled),
        }

    def haystack(self, index: int) -> Haystack:
        made = composition(
            self.task, self.length, index, sources=self.sources, example=lambda: self._solved_example
        )
        draws = partial(draws_of, self.seed, self.task, self.length, index)
        return Haystack(lambda size: made.compose(size, draws()), self._encode, made.smallest, made.largest)

    def shortest(self, indices: Sequence[int]) -> int:
        """Returns a length at which all these documents, as they are at that length, can be made."""
        needed = max(
            haystack.of(haystack.smallest).tokens for haystack in map(self.haystack, indices)
        ) + answer_tokens(self.task)
        return self.length if needed <= self.length else replace(self, length=needed).shortest(indices)

    def _encode(self, prompt: Prompt) -> BatchEncoding:
        return encode(self.tokenizer, prompt_text(self.task, prompt.input, prompt.gen_prefix))

    @cached_property
    def _solved_example(self) -> str:
        """The example of variable tracking: with all the noise that its own length has room for."""
        room = EXAMPLE_TOKENS - answer_tokens(self.task)
        draws = partial(draws_of, self.seed, self.task, self.length, "example")
        return longest_example(draws, lambda text: len(encode(self.tokenizer, text)["input_ids"]) <= room)


def _depth(filled: Filled) -> float | None:
    starts = [filled.encoding.char_to_token(filled.prompt.input.index(each)) for each in filled.prompt.asked]
    return sum(starts) / len(starts) / filled.tokens if starts else None
