"""Whose choices are looked at: models by reference, and one that first reads the very texts, byte by byte."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipelines.models.loading import load_model
from pipelines.models.references import resolve_model
from pipelines.models.tokenizers import load_tokenizer
from se_model import Mamba2HybridConfig, Mamba2HybridForCausalLM
from se_model.loss import causal_lm_loss

BYTES = "bytes"
# Of each text, this share is read in training and the rest is measured on.
TRAINED = 0.8
_END_OF_BOOK = "*** END OF"
_ROWS, _ROW_BYTES, _WARM_UP = 16, 256, 20


@dataclass(frozen=True)
class Reader:
    """A model, what turns text into its tokens, and the token that stands for all it does not know."""

    name: str
    model: PreTrainedModel
    encode: Callable[[str], list[int]]
    unknown: int | None
    training_loss: float | None = None

    @property
    def parameters(self) -> int:
        """How many numbers the model has."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def read_text(path: Path) -> str:
    """A text file, UTF-8 or Latin-1, without what Project Gutenberg writes after a book."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    return text.split(_END_OF_BOOK, 1)[0]


def check_reader(reference: str) -> None:
    """Looks whether a model is to be had, before another one is trained.

    Raises:
        EspanError: if there is no such model.
        ValueError: if it brings no tokenizer.
    """
    if reference != BYTES and resolve_model(reference, {}).tokenizer is None:
        raise ValueError(f"{reference} brings no tokenizer")


def make_reader(reference: str, texts: list[str], *, steps: int, seed: int) -> Reader:
    """The model called ``reference`` with its tokenizer, or, for "bytes", a new one trained on the texts.

    Raises:
        EspanError, ValueError: as ``check_reader``.
    """
    check_reader(reference)
    if reference == BYTES:
        return _train_on_bytes([text[: int(TRAINED * len(text))].encode() for text in texts], steps, seed)
    source = resolve_model(reference, {})
    tokenizer = load_tokenizer(source.tokenizer or reference)
    return Reader(
        reference,
        load_model(source, merge=True),
        lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        tokenizer.unk_token_id if tokenizer.unk_token_id is not None else tokenizer.vocab.get("<unk>"),
    )


def draw_rows(reader: Reader, texts: list[str], length: int, seed: int) -> Tensor:
    """One row of every text, from the part that is kept out of training: int64 [texts, length].

    Raises:
        ValueError: if a text is too short.
    """
    drawn = random.Random(seed)
    rows = []
    for text in texts:
        tail = text[int(TRAINED * len(text)) :]
        # A token takes fewer than twelve characters on the average in every tokenizer for English.
        characters = 12 * length
        start = drawn.randrange(max(1, len(tail) - characters))
        rows.append(reader.encode(tail[start : start + characters])[:length])
        if len(rows[-1]) < length:
            raise ValueError(
                f"the last fifth of a text holds {len(rows[-1])} tokens, fewer than {length}: "
                "give longer texts or a smaller --length"
            )
    return torch.tensor(rows)


def _train_on_bytes(texts: list[bytes], steps: int, seed: int) -> Reader:
    torch.manual_seed(seed)
    drawn = random.Random(seed)
    model = Mamba2HybridForCausalLM(
        Mamba2HybridConfig(
            vocab_size=256,
            hidden_size=64,
            num_hidden_layers=4,
            attn_layer_indices=[1, 3],
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            rotary_dim=16,
            state_size=16,
            mamba_head_dim=32,
            ssm_chunk_size=64,
        )
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / _WARM_UP) * (1 - step / max(1, steps))
    )
    losses: list[float] = []
    for _ in range(steps):
        rows = []
        for text in (drawn.choice(texts) for _ in range(_ROWS)):
            start = drawn.randrange(max(1, len(text) - _ROW_BYTES))
            rows.append(list(text[start : start + _ROW_BYTES]))
        total, count = causal_lm_loss(model, torch.tensor(rows))
        optimizer.zero_grad()
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(total.detach() / count))
    recent = losses[-10:]
    return Reader(
        BYTES,
        model.eval(),
        lambda text: list(text.encode()),
        None,
        sum(recent) / len(recent) if recent else None,
    )
