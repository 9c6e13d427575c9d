"""What a model goes through between `apply_hylora` and its last token, in steps that tests put together."""

import torch
from peft import PeftModel
from torch import Tensor

from se_model.loss import causal_lm_loss
from tests.se_model.architectures.probes import LENGTH, random_tokens


def train(model: PeftModel, steps: int, rate: float = 1e-2) -> dict[str, bool]:
    """Steps of training, then evaluation mode. Says of each trainable parameter whether it had a gradient."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    reached = dict.fromkeys(trainable, False)
    optimizer = torch.optim.AdamW(trainable.values(), lr=rate, weight_decay=0.0)
    model.train()
    for _ in range(steps):
        loss, count = causal_lm_loss(model, random_tokens(4, LENGTH))
        (loss / count).backward()
        for name, parameter in trainable.items():
            reached[name] |= parameter.grad is not None and bool(parameter.grad.any())
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return reached


def generated(model: PeftModel) -> list[list[int]]:
    prompts = random_tokens(2, 13)
    mask = torch.ones_like(prompts)
    prompts[0, :4], mask[0, :4] = 0, 0
    arguments = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(input_ids=prompts, attention_mask=mask, **arguments)[:, 13:].tolist()


def kept(model: PeftModel, *, trainable: bool) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad is trainable}
