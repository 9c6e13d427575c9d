"""Recall: whether the model gives answers that can only be found far back in the prompt.

Scored without generating. The whole prompt, its right answers included, goes through the model once. An
answer counts when the model's first choice is right at each of its tokens: for a prompt with one answer that
is "greedy decoding writes the answer". Of several, a later one is read after the *right* earlier ones, so
that one mistake does not cause others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from pipelines.evaluate.scores import prompt_hash
from pipelines.evaluate.units import Outcome, batches
from pipelines.evaluate.worker import Worker, tokenizer_of
from pipelines.needles.compose import RecallSample, recall_prompt
from pipelines.needles.find import cases_in
from pipelines.recipe.keys.needles import RecallTask
from se_model.span.hits import Hits, LayerHits
from se_model.span.statistics import record_selections


@dataclass(frozen=True)
class RecallUnit:
    """Prompts `first` to `first + count` of one task at one length.

    Attributes:
        tokenizer: its reference.
        seed: of the prompts.
        bos: the token that begins prompts, if any.
    """

    task: RecallTask
    length: int
    first: int
    count: int
    tokenizer: str
    seed: int
    bos: int | None = None

    @property
    def key(self) -> str:
        """As `Unit.key`; names the outcome's format, too, so that none without depths is taken for it."""
        return f"recall2-{self.task}-{self.length}-{self.first}"

    @property
    def tokens(self) -> int:
        """As `Unit.tokens`."""
        return self.count * self.length

    def score(self, worker: Worker) -> Outcome:
        """Returns `answers` of each prompt, whether each was given, `depths`, where the needle of each
        stands, `hits`, what choices of blocks found, `never_chosen`, the share of blocks in no choice, and
        `prompts`, its hash.
        """
        tokenizer = tokenizer_of(self.tokenizer)
        samples = self.prompts()
        rows = [(sample.input_ids, [len(sample.input_ids)]) for sample in samples]
        with record_selections() as selections:
            # Ranks that share a row see a part of it each, and its padding.
            if worker.group is None:
                selections.ask(partial(cases_in, tokenizer, rows, joined=False))
            answers = score_recall(worker, samples)
        return {
            "answers": answers,
            "depths": [sample.needle_depths for sample in samples],
            "hits": hits_record(selections.hits()),
            "never_chosen": 1 - reach["distinct"] if (reach := selections.reach()) else None,
            "prompts": [prompt_hash(sample.input_ids) for sample in samples],
        }

    def prompts(self) -> list[RecallSample]:
        """Returns the unit's prompts."""
        return [
            recall_prompt(
                self.task,
                length=self.length,
                seed=self.seed,
                index=index,
                tokenizer=tokenizer_of(self.tokenizer),
                bos=self.bos,
            )
            for index in range(self.first, self.first + self.count)
        ]


def recall_units(
    tasks: Sequence[RecallTask],
    lengths: Sequence[int],
    samples: int,
    *,
    tokenizer: str,
    seed: int,
    bos: int | None,
    tokens_per_batch: int,
) -> list[RecallUnit]:
    """Cuts `samples` prompts of every task and length into batches of at most `tokens_per_batch` tokens."""
    return [
        RecallUnit(task, length, first, count, tokenizer, seed, bos)
        for task in tasks
        for length in lengths
        for first, count in batches(samples, length, tokens_per_batch)
    ]


def score_recall(worker: Worker, samples: Sequence[RecallSample]) -> list[list[bool]]:
    """Says for each sample, in order, whether the model gives each of its answers.

    All samples have the same number of tokens.
    """
    input_ids = torch.tensor([sample.input_ids for sample in samples])
    answers = [(row, start, end) for row, sample in enumerate(samples) for start, end in sample.answer_spans]
    rows = torch.tensor([row for row, start, end in answers for _ in range(start, end)])
    positions = torch.tensor([position for _, start, end in answers for position in range(start, end)])
    right = worker.predict(input_ids, rows, positions - 1, input_ids[rows, positions]).first_choice.tolist()
    outcomes: list[list[bool]] = [[] for _ in samples]
    token = 0
    for row, start, end in answers:
        outcomes[row].append(all(right[token : token + end - start]))
        token += end - start
    return outcomes


def hits_record(hits: Hits) -> dict[str, Any]:
    """Returns hits as JSON holds them."""
    return {str(layer): asdict(found) for layer, found in hits.layers.items()}


def read_hits(record: dict[str, Any]) -> Hits:
    """Returns the hits that `hits_record` wrote."""
    layers = {
        int(layer): LayerHits(
            **found | {name: tuple(value) for name, value in found.items() if isinstance(value, list)}
        )
        for layer, found in record.items()
    }
    return Hits(layers)
