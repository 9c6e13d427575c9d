"""Tokenizers of the kinds that published models come with, trained on the spot on text with needles in it."""

from __future__ import annotations

from functools import cache
from typing import Literal, get_args

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pipelines.needles.compose import needle_document, word_tokenizer
from pipelines.recipe.keys.needles import NeedleDocuments

Kind = Literal["word-level", "byte-level", "digits apart", "prepended mark", "metaspace", "unigram"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SPECIAL = ["<unk>", "<s>", "</s>"]


@cache
def trained_tokenizer(kind: Kind | Literal["joining"]) -> Tokenizer:
    """Returns a tokenizer without a post-processor; the caller may not change it.

    Kinds: `byte-level` as in GPT-2; `digits apart` as in Llama 3, where a blank before a number is a token of
    its own; `prepended mark` as in Llama 2, Mistral and Zamba2; `metaspace` and `unigram` as in T5 and its
    relatives; `joining` makes one token of words that often follow each other, over ends of sentences too.
    """
    if kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(
            vocab_size=300, unk_token="<unk>", special_tokens=SPECIAL, show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
        bytes_ = pre_tokenizers.ByteLevel.alphabet() if kind in ("byte-level", "digits apart") else []
        trainer = trainers.BpeTrainer(
            vocab_size=len(bytes_) + 300, initial_alphabet=bytes_, special_tokens=SPECIAL, show_progress=False
        )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind == "byte-level":
        tokenizer.pre_tokenizer, tokenizer.decoder = byte_level, decoders.ByteLevel()
    elif kind == "digits apart":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(False), byte_level])
        tokenizer.decoder = decoders.ByteLevel()
    elif kind in ("metaspace", "unigram"):
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        if kind == "prepended mark":  # only while it is trained, so that no token reaches over a blank
            tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    spec = NeedleDocuments(tokens=400)
    tokenizer.train_from_iterator([needle_document(spec, seed=1, index=i) for i in range(20)], trainer)
    if kind == "prepended mark":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])
    return tokenizer


def fast_tokenizer(kind: Kind | Literal["joining"]) -> PreTrainedTokenizerFast:
    """Returns the tokenizer as transformers wraps it."""
    if kind == "word-level":
        return word_tokenizer()
    return PreTrainedTokenizerFast(
        tokenizer_object=trained_tokenizer(kind), unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
