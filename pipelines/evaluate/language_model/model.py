"""A loaded model as lm-eval (0.4.13) wants it: `simple_evaluate(model=EspanLM(model, tokenizer), ...)`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import LM
from torch import nn

from pipelines.errors import EspanError
from pipelines.evaluate.language_model.cache import CACHE_BYTES, CacheSize, cache_size
from pipelines.evaluate.language_model.encode import Encoder, Prompt, ScoredTokens
from pipelines.evaluate.language_model.generate import complete
from pipelines.evaluate.language_model.score import Likelihood, score
from pipelines.evaluate.language_model.stopping import Generation, Stops
from pipelines.evaluate.language_model.together import shares
from pipelines.evaluate.worker import Worker
from se_model.loss import unwrap

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedTokenizerBase


class RequestLM(LM):
    """Answers lm-eval's requests; subclasses say where `score` and `complete` are computed.

    encoder: makes tokens of them.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder, self.tokenizer = encoder, encoder.tokenizer

    @abstractmethod
    def score(self, requests: Sequence[ScoredTokens]) -> list[Likelihood]:
        """Returns the likelihood of each continuation; see `score.score`."""

    @abstractmethod
    def complete(self, prompts: Sequence[Prompt], stop: tuple[str, ...]) -> list[str]:
        """Returns what the model writes after each prompt, before the first of the strings of `stop`."""

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Likelihood]:
        """Answers lm-eval's requests of this name.

        Raises:
            EspanError: as `Encoder.pair`.
        """
        answers = self.score([self.encoder.pair(*request.args) for request in requests])
        self._remember("loglikelihood", requests, answers)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Answers lm-eval's requests of this name.

        Raises:
            EspanError: the tokenizer has neither a BOS nor an EOS token.
        """
        windows = [self.encoder.windows(*request.args) for request in requests]
        likelihoods = iter(self.score([each for some in windows for each in some]))
        answers = [sum((next(likelihoods)[0] for _ in some), start=0.0) for some in windows]
        self._remember("loglikelihood_rolling", requests, answers)
        return answers

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers lm-eval's requests of this name.

        Raises:
            EspanError: as `Generation.of`, `Encoder.prompt` and `complete`.
        """
        asked = [(context, Generation.of(how)) for context, how in (request.args for request in requests)]
        prompts = [self.encoder.prompt(context, how.max_new_tokens) for context, how in asked]
        answers = [""] * len(requests)
        for stop in dict.fromkeys(how.stop for _, how in asked):
            numbers = [number for number, (_, how) in enumerate(asked) if how.stop == stop]
            texts = self.complete([prompts[number] for number in numbers], stop)
            for number, text in zip(numbers, texts, strict=True):
                answers[number] = text
        self._remember("generate_until", requests, answers)
        return answers

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name, by which lm-eval tells its caches of requests apart."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Returns no template.

        Raises:
            EspanError: one is asked for.
        """
        if chat_template:
            raise EspanError("chat templates are not applied here; leave apply_chat_template out")
        return ""

    def _remember(self, what: str, requests: Sequence[Instance], answers: Sequence[Any]) -> None:
        """Gives lm-eval's cache of answers, if it has one, what was found."""
        add: Callable[[str, Any, Any], None] = self.cache_hook.add_partial
        for request, answer in zip(requests, answers, strict=True):
            add(what, request.args, answer)


class EspanLM(RequestLM):
    """A transformers causal language model, attention attached or not, in this process.

    Args:
        model: with its weights, in evaluation mode.
        tokenizer: the model's.
        max_length: the most tokens that a row may have; see `Encoder.of`.
        add_bos: whether texts begin with the BOS token; None for as the tokenizer does by default.
        tokens_per_batch: tokens that go through the model together.
        cache_bytes: what is kept of rows that are decoded together takes no more, unless a single row does.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None = None,
        add_bos: bool | None = None,
        tokens_per_batch: int = 4096,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        super().__init__(Encoder.of(unwrap(model).config, tokenizer, max_length=max_length, add_bos=add_bos))
        self.model = model
        self.tokens_per_batch, self.cache_bytes = tokens_per_batch, cache_bytes

    def score(self, requests: Sequence[ScoredTokens]) -> list[Likelihood]:
        """As `RequestLM.score`."""
        return score(Worker(self.model), requests, tokens_per_batch=self.tokens_per_batch)

    def complete(self, prompts: Sequence[Prompt], stop: tuple[str, ...]) -> list[str]:
        """As `RequestLM.complete`."""
        stops, answers = Stops.of(self.tokenizer, stop), [""] * len(prompts)
        for rows in shares(prompts, self._cache_size.within(self.cache_bytes)):
            together = [prompts[row] for row in rows]
            texts = complete(self.model, together, stops, tokens_per_batch=self.tokens_per_batch)
            for row, text in zip(rows, texts, strict=True):
                answers[row] = text
        return answers

    @cached_property
    def _cache_size(self) -> CacheSize:
        causal_lm = unwrap(self.model)
        return cache_size(causal_lm.config, causal_lm.dtype)
