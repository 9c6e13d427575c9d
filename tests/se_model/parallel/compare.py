"""What a model computes on one process and on several, and how near that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from se_model.loss import causal_lm_loss, unwrap
from se_model.parallel import SequenceShard


@dataclass
class Outcome:
    """What one rank, or the only process, computes: output [B, n, hidden], sums of loss, gradients."""

    output: Tensor
    loss: Tensor
    count: Tensor
    gradients: dict[str, Tensor]


def outcome(
    model: nn.Module, tokens: Tensor, cu_seqlens: Tensor | None = None, shard: SequenceShard | None = None
) -> Outcome:
    """One forward and backward of whole rows, or of a rank's shard of them; tokens: [B, L]."""
    outputs: list[Tensor] = []
    decoder = getattr(unwrap(model), unwrap(model).base_model_prefix)
    hook = decoder.register_forward_hook(lambda _, __, output: outputs.append(output.last_hidden_state))
    loss, count = causal_lm_loss(model, tokens, cu_seqlens=cu_seqlens, shard=shard, chunk_tokens=5)
    loss.backward()
    hook.remove()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return Outcome(outputs[0].detach(), loss.detach(), count, gradients)


def assert_together(shards: list[Outcome], expected: Outcome, tolerance: float, case: Any) -> None:
    """The ranks' outputs side by side, and the sums of their losses and gradients, are one process's."""
    assert sum(int(shard.count) for shard in shards) == int(expected.count)
    output = torch.cat([shard.output for shard in shards], dim=1)
    assert_near(output, expected.output, tolerance, case, "output")
    assert_near(sum(shard.loss for shard in shards), expected.loss, tolerance, case, "loss")
    for name, gradient in expected.gradients.items():
        assert gradient.abs().max() > 0, name
        total = sum(shard.gradients[name] for shard in shards)
        assert_near(total, gradient, tolerance, case, name)


def assert_near(actual: Any, expected: Tensor, tolerance: float, case: Any, what: str) -> None:
    """Within ``tolerance`` of the largest entry: sums over all tokens in another order."""
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error <= tolerance, f"{what} is off by {error:.1e} of its largest entry in {case}"
