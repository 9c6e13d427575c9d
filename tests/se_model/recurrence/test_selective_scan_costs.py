"""What the chunked selective scan keeps, holds and computes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.measure import peak_bytes, saved_bytes, saved_tensors, storage_identity
from se_model.recurrence import selective_scan_chunked


def inputs(length: int, channels: int = 64) -> list[Tensor]:
    """u, dt, A, B, C with states of 16, as models have them."""
    generator = torch.Generator().manual_seed(0)
    shapes = (1, length, channels), (1, length, channels), (1, length, 1, 16), (1, length, 1, 16)
    u, dt, B, C = (torch.randn(shape, generator=generator) for shape in shapes)
    tensors = u, F.softplus(dt), -torch.arange(1.0, 17).repeat(channels, 1), B, C
    return [tensor.requires_grad_() for tensor in tensors]


def step_and_back(tensors: list[Tensor]) -> None:
    y, state = selective_scan_chunked(*tensors)
    torch.autograd.grad([y, state], tensors, [torch.ones_like(y), torch.ones_like(state)])


def test_a_state_of_each_segment_is_all_that_is_kept_beside_the_inputs():
    tensors = inputs(2048)
    saved = saved_tensors(lambda: selective_scan_chunked(*tensors))
    assert {storage_identity(tensor) for tensor in tensors} <= saved.keys()
    assert saved_bytes(lambda: selective_scan_chunked(*tensors), tensors) == 4 * 64 * 16 * 4


def test_states_of_tokens_live_no_longer_than_their_segment():
    jamba = inputs(256, channels=8192)
    states = 256 * 8192 * 16 * 4
    own = 4 * sum(tensor.nbytes for tensor in jamba)  # inputs' gradients, outputs and upstream among them
    assert peak_bytes(lambda: step_and_back(jamba), "cpu") < states + own


class Work(TorchDispatchMode):
    """Counts the numbers in all results, and the updates of states."""

    updates = numbers = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **options or {})
        self.updates += "addcmul" in str(function)
        self.numbers += sum(each.numel() for each in tree_leaves(result) if isinstance(each, Tensor))
        return result


def test_work_grows_with_the_length_alone_and_tokens_do_not_follow_one_another():
    def work(length: int) -> Work:
        with Work() as counted:
            step_and_back(inputs(length))
        return counted

    first, second, fourth = (work(length) for length in (1024, 2048, 4096))
    assert fourth.numbers - second.numbers == 2 * (second.numbers - first.numbers) <= 2 * first.numbers
    assert first.updates < 1024
