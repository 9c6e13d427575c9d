"""Lively tiny models, a tiny byte-level tokenizer, lm-eval's own model around them, and requests."""

import logging
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import pipelines
from pipelines.evaluate.language_model.encode import Prompt, ScoredTokens
from pipelines.evaluate.language_model.token_ids import TokenIds

SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
# Our hybrid, attention alone, a delta rule.
THREE = ["mamba2_hybrid", "llama", "qwen3_next"]
LIMIT = 256
_SPEECH = Path(pipelines.__path__[0], "assets", "essays", "lincoln-1864.txt")


def train_tokenizer(*, begins: bool = False, **special: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer trained on a speech; `begins`: it puts BOS before a text by default."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_SPEECH.read_text()], trainer)
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def lively(model: PreTrainedModel) -> PreTrainedModel:
    """Gives a model weights by which its choices depend on what it read; nothing ends its texts."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.dim() > 1 and parameter.shape[-1] > 4:
            parameter.data.normal_(0, 0.12, generator=generator)
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    return model.requires_grad_(False)


def lm_eval_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, **options: Any) -> HFLM:
    """lm-eval's own, one row at a time: with more, a row's text depends on the others'."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, **{"max_length": LIMIT, **options})


def instances(kind: str, *requests: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, request, number) for number, request in enumerate(requests)]


def random_rows(*lengths: int) -> list[TokenIds]:
    generator = torch.Generator().manual_seed(3)
    return [TokenIds.of(torch.randint(3, 64, (length,), generator=generator).tolist()) for length in lengths]


def prompts_of(*lengths: int, new: int = 16) -> list[Prompt]:
    return [Prompt(row, new) for row in random_rows(*lengths)]


def scored(row: TokenIds, context: int) -> ScoredTokens:
    return ScoredTokens(row[:context], row[context:])
