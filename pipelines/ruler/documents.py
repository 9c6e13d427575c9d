"""Training documents of RULER's tasks: a prompt, and behind it the right answer as a model is to write it.

A document has the length that is asked for, its answer included. It depends on the seed, its index and what
documents look like, and differs from every prompt of an evaluation: those are drawn under other names.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

from pipelines.recipe.keys.ruler import RulerDocuments, RulerTask
from pipelines.ruler.compositions import Sources, composition
from pipelines.ruler.draws import Draws, draws_of
from pipelines.ruler.essays import read_essays
from pipelines.ruler.fill import SLACK, DoesNotFitError, Haystack, fill
from pipelines.ruler.prompts import Prompt
from pipelines.ruler.tasks import needs_essays
from pipelines.ruler.tokens import check_known, encode, prompt_text
from pipelines.ruler.variables import EXAMPLE_TOKENS, longest_example
from pipelines.ruler.word_counts import numbered

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerFast

_EXAMPLE_SHARE = 0.4
"""Of a short document with variables, how much the solved example takes at most."""


class TooShortError(ValueError):
    """A document cannot be as short as is asked for; `tokens` is what it has without any more haystack."""

    def __init__(self, task: RulerTask, tokens: int) -> None:
        super().__init__(f"a document of RULER's {task} has {tokens} tokens at least")
        self.task, self.tokens = task, tokens


@dataclass(frozen=True)
class Documents:
    """Makes the documents of a source, one by one in any order.

    Attributes:
        spec: what they look like.
        seed: of everything that is drawn.
        tokenizer: measures them.
    """

    spec: RulerDocuments
    seed: int
    tokenizer: PreTrainedTokenizerFast

    def task_of(self, index: int) -> RulerTask:
        """Returns the task of document `index`: the tasks take turns."""
        return self.spec.tasks[index % len(self.spec.tasks)]

    def document(self, index: int) -> str:
        """Returns document `index`: at most `spec.tokens` long, and at most 1% shorter.

        Raises:
            TooShortError: it cannot be so short.
            EspanError: its haystack is essays, and these cannot be read.
        """
        return _text(self.task_of(index), self._prompt(index))

    def check_known(self, index: int) -> None:
        """Refuses a tokenizer that does not know the words of document `index`.

        Raises:
            TooShortError, EspanError: as `document`, or more than 1% of the words are unknown.
        """
        prompt = self._prompt(index)
        given = {"input": prompt.input, "gen_prefix": prompt.gen_prefix}
        check_known(self.tokenizer, self.task_of(index), [given])

    def _prompt(self, index: int) -> Prompt:
        task, tokens = self.task_of(index), self.spec.tokens
        made = composition(task, tokens, index, sources=self._sources, example=lambda: self._solved_example)
        draws = partial(self._draws, task, index)
        haystack = Haystack(
            lambda size: made.compose(size, draws()),
            lambda prompt: self._encode(_text(task, prompt)),
            made.smallest,
            made.largest,
        )
        try:
            return fill(haystack, tokens, int(SLACK * tokens)).prompt
        except DoesNotFitError as error:
            if error.too_long:
                raise TooShortError(task, error.tokens) from error
            return made.compose(made.largest or made.smallest, draws())

    @cached_property
    def _sources(self) -> Sources:
        return Sources(read_essays(self.spec.essays) if any(map(needs_essays, self.spec.tasks)) else None)

    @cached_property
    def _solved_example(self) -> str:
        """The example of variable tracking: as long as in evaluations where documents have room for it."""
        room = min(EXAMPLE_TOKENS, int(_EXAMPLE_SHARE * self.spec.tokens))
        draws = partial(self._draws, "vt", "example")
        return longest_example(draws, lambda text: len(self._encode(text)["input_ids"]) <= room)

    def _draws(self, task: RulerTask, which: object) -> Draws:
        return draws_of(self.seed, "document", task, self.spec.tokens, which)

    def _encode(self, text: str) -> BatchEncoding:
        return encode(self.tokenizer, text, special=False)


def _text(task: RulerTask, prompt: Prompt) -> str:
    """Returns a prompt and its answer, in the words of RULER's solved examples where a task has one."""
    if task == "cwe":
        answer = numbered(prompt.outputs)
    else:
        answer = (" " if task == "vt" else ", ").join(prompt.outputs)
    return f"{prompt_text(task, prompt.input, prompt.gen_prefix)} {answer}"
