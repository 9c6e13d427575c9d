"""Chunk sizes are drawn anew in every forward call of training, and the same when it is repeated."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Trainer, TrainingArguments

from se_model import HyLoraConfig, TrainerSteps, apply_hylora, attach, get_step, load_adapter, set_step
from se_model.attach import attention_layers
from se_model.baselines import RandomConfig
from se_model.loss import causal_lm_loss
from se_model.span import SpanConfig
from tests.se_model.architectures.probes import LENGTH, random_tokens
from tests.se_model.tiny_models import ARCHITECTURES, tiny_model
from tests.tolerances import EXACT, F32_SHORT, within

SIZES, STEPS, LAYERS = (4, 8), 50, 2
ROWS = [{"input_ids": row, "labels": row} for row in random_tokens(STEPS, LENGTH)]


@dataclass(frozen=True)
class Recording(SpanConfig):
    """Notes each (step, layer, chunk size) that a layer asks for."""

    chunk_sizes: Any = SIZES
    block_size: int = 4
    top_k: int = 1
    seen: list[tuple[int, int, int]] = field(default_factory=list)

    def bind(self, *, layer: int, step: int) -> Any:
        self.seen.append((step, layer, self.chunk_size(layer=layer, step=step)))
        return super().bind(layer=layer, step=step)


def drawn(config: Recording, first: int = 0, last: int = STEPS) -> list[tuple[int, int, int]]:
    """What steps draw in two layers."""
    return [
        (step, layer, config.chunk_size(layer=layer, step=step))
        for step in range(first, last)
        for layer in range(LAYERS)
    ]


def assert_both_sizes_in_both_layers(seen: list[tuple[int, int, int]]) -> None:
    sizes = [{step: size for step, layer, size in seen if layer == which} for which in range(LAYERS)]
    assert [set(of.values()) for of in sizes] == LAYERS * [set(SIZES)]
    assert sizes[0] != sizes[1]


def hybrid() -> nn.Module:
    torch.manual_seed(5)
    return apply_hylora(tiny_model("mamba2_hybrid-ends"), HyLoraConfig(rank=4, alpha=8)).train()


def train(model: nn.Module, steps: range) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in steps:
        model(input_ids=ROWS[step]["input_ids"][None], labels=ROWS[step]["labels"][None]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def trainer(model: nn.Module, folder: Path, **arguments: Any) -> Trainer:
    settings = {"per_device_train_batch_size": 1, "max_steps": STEPS, "learning_rate": 1e-2, "use_cpu": True}
    quiet = {"report_to": [], "disable_tqdm": True, "logging_strategy": "no", "save_strategy": "no"}
    return Trainer(
        model,
        TrainingArguments(str(folder), **(settings | quiet | arguments)),
        train_dataset=ROWS,
        eval_dataset=ROWS[:2],
    )


def test_a_plain_loop_draws_in_every_step_and_layer() -> None:
    config = Recording()
    train(attach(hybrid(), config), range(STEPS))
    assert config.seen == drawn(config)
    assert_both_sizes_in_both_layers(config.seen)


@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["kept", "not-reentrant", "reentrant"])
def test_transformers_trainer_draws_in_every_step_and_layer_and_not_when_it_evaluates(
    checkpointing: bool | None, tmp_path: Path
) -> None:
    config = Recording()
    model = attach(hybrid(), config)
    recomputing = {
        "gradient_checkpointing": checkpointing is not None,
        "gradient_checkpointing_kwargs": {"use_reentrant": bool(checkpointing)},
    }
    trainer(model, tmp_path, eval_strategy="steps", eval_steps=20, **recomputing).train()
    assert get_step(model) == STEPS
    evaluated = 3 * LAYERS  # after 20, 40 and all steps, with the draw of the step to come
    times = 1 if checkpointing is None else 2
    assert len(config.seen) == times * STEPS * LAYERS + evaluated
    assert set(config.seen) == set(drawn(config, last=STEPS + 1))
    assert_both_sizes_in_both_layers(config.seen)


def test_what_does_not_train_does_not_count() -> None:
    model = attach(hybrid(), Recording())
    with torch.no_grad():
        model(input_ids=random_tokens(1, LENGTH))
    model.eval()(input_ids=random_tokens(1, LENGTH)).logits.sum().backward()
    model.generate(input_ids=random_tokens(1, LENGTH), max_new_tokens=2, pad_token_id=0)
    assert get_step(model) == 0
    causal_lm_loss(model.train(), random_tokens(1, LENGTH))
    assert get_step(model) == 1


@pytest.mark.parametrize("reentrant", [False, True], ids=["not-reentrant", "reentrant"])
@pytest.mark.parametrize("name", [*ARCHITECTURES, "mamba2_hybrid-ends"])
def test_layers_are_repeated_with_their_own_draws_though_other_forwards_came_between(
    name: str, reentrant: bool
) -> None:
    model = tiny_model(name)
    config = Recording()

    def gradients() -> dict[str, Tensor | None]:
        model.zero_grad()
        set_step(attach(model, config).train(), 3)
        losses = [causal_lm_loss(model, random_tokens(1, LENGTH + more))[0] for more in range(3)]
        with torch.no_grad():
            model.eval()(input_ids=random_tokens(1, LENGTH))
        model.train()
        sum(losses).backward()
        return {parameter: value.grad for parameter, value in model.named_parameters()}

    expected, layers = gradients(), len(attention_layers(model))
    forwards = config.seen[: 3 * layers]
    assert [step for step, _, _ in forwards] == [step for step in (3, 4, 5) for _ in range(layers)]
    config.seen.clear()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for parameter, gradient in gradients().items():
        if expected[parameter] is None:  # an expert that no token was sent to
            assert gradient is None
        else:
            torch.testing.assert_close(gradient, expected[parameter], **within(10 * F32_SHORT), msg=parameter)
    repeated = config.seen[4 * layers :]
    assert sorted(repeated) == sorted(forwards)


def test_random_blocks_are_repeated_too() -> None:
    model = attach(tiny_model("llama"), RandomConfig(chunk_sizes=8, block_size=1, top_k=2)).train()

    def gradients() -> list[Tensor]:
        model.zero_grad()
        set_step(model, 0)
        sum(causal_lm_loss(model, random_tokens(1, LENGTH))[0] for _ in range(2)).backward()
        return [p.grad for p in model.parameters()]

    expected = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for gradient, same in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(gradient, same, **within(10 * F32_SHORT))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_around_the_whole_model_is_refused_where_something_is_drawn(reentrant: bool) -> None:
    def backward(model: nn.Module) -> None:
        embedded = model.get_input_embeddings()(random_tokens(1, LENGTH)).detach().requires_grad_()
        run = checkpoint(lambda x: model(inputs_embeds=x).logits.sum(), embedded, use_reentrant=reentrant)
        run.backward()

    with pytest.raises(ValueError, match=r"LlamaModel is run again as a whole .*_checkpointing_enable"):
        backward(attach(tiny_model("llama"), Recording()).train())
    backward(attach(tiny_model("llama"), Recording(chunk_sizes=8)).train())


def test_a_plain_loop_resumes_with_the_draws_that_it_would_have_had(tmp_path: Path) -> None:
    whole, config = attach(hybrid(), Recording()), Recording()
    train(whole, range(12))
    stopped = attach(hybrid(), config)
    train(stopped, range(7))
    stopped.save_pretrained(tmp_path, save_embedding_layers=False)
    step = get_step(stopped)

    resumed = attach(load_adapter(tiny_model("mamba2_hybrid-ends"), tmp_path, is_trainable=True), config)
    set_step(resumed, step)
    train(resumed.train(), range(7, 12))
    assert config.seen == drawn(config, last=12)
    assert_same_weights(resumed, whole)


def test_transformers_trainer_resumes_with_the_draws_that_it_would_have_had(tmp_path: Path) -> None:
    """With two forward calls in a step."""
    steps = {"max_steps": 6, "gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 4}
    whole, config = attach(hybrid(), Recording()), Recording()
    trainer(whole, tmp_path, **steps).train()
    resumed = attach(hybrid(), config)
    again = trainer(resumed, tmp_path, **steps)
    again.add_callback(TrainerSteps)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert config.seen == drawn(config, first=8, last=12)
    assert_same_weights(resumed, whole)


def assert_same_weights(model: nn.Module, expected: nn.Module) -> None:
    same = dict(expected.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, same[name], msg=name, **EXACT)
