"""Loading under ZeRO-3: every weight is split over the workers as soon as it is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipelines.errors import EspanError
from pipelines.models.weights.fill import empties, fill_buffers
from pipelines.train.worker.engine import deepspeed_config, import_deepspeed
from pipelines.train.worker.group import Group

if TYPE_CHECKING:
    from pipelines.models.loading import Opened
    from pipelines.recipe.keys.train import TrainKeys


def load_sharded(opened: Opened, stage: TrainKeys, group: Group) -> nn.Module:
    """Returns the model with this worker's share of every weight; every worker calls it.

    The first worker reads (or draws) the weights one by one; each is sent to all workers, which keep their
    parts. So a worker holds its shard and one tensor, on its device, and never the model.

    Raises:
        EspanError: on every worker, if the first cannot read a weight.
    """
    deepspeed = import_deepspeed()
    arriving = _Arriving(opened, stage, group)
    # Init scatters one parameter before it asks for the next.
    deepspeed.zero.Init(module=arriving, config_dict_or_path=deepspeed_config(stage, 1, 1, False))
    group.agree(arriving.raise_problem)
    group.agree(lambda: fill_buffers(opened.model, opened.weights))
    return opened.model.to(group.device)


class _Arriving(nn.Module):
    """A module whose parameters are created one by one, as they are requested."""

    def __init__(self, opened: Opened, stage: TrainKeys, group: Group) -> None:
        super().__init__()
        # In a tuple, so that it does not become a submodule.
        self._opened = (opened,)
        self._dtype = torch.bfloat16 if stage.precision == "bf16" else None
        self._group = group
        self._problem: str | None = None
        # One piece of memory through which all of them come: taken and given back one by one, they would
        # leave a heap full of holes between the shards that stay.
        sizes = [
            parameter.numel() * self._type(parameter).itemsize for parameter in opened.model.parameters()
        ]
        self._buffer = torch.empty(max(sizes), dtype=torch.uint8, device=group.device)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Yields every parameter of the model, each whole and in its place."""
        (opened,) = self._opened
        there = [parameter for parameter in opened.model.parameters() if not parameter.is_meta]
        for parameter in there:  # a new adapter
            parameter.data = parameter.data.to(self._type(parameter))
            yield parameter
        for name, empty in empties(opened.model):
            whole = nn.Parameter(self._value(name, empty.parameter), requires_grad=False)
            empty.put(whole)
            yield whole

    def raise_problem(self) -> None:
        """Raises what went wrong on the first worker while the others waited for its weights."""
        if self._problem is not None:
            raise EspanError(self._problem)

    def _value(self, name: str, empty: nn.Parameter) -> Tensor:
        dtype = self._type(empty)
        value = self._buffer[: empty.numel() * dtype.itemsize].view(dtype).view(empty.shape)
        (opened,) = self._opened
        if self._group.first and self._problem is None:
            try:
                value.copy_(opened.weights.read(name, mapped=True))
            except (EspanError, OSError) as error:
                # The others wait for a tensor: they get one, and learn of the problem at the end.
                self._problem = str(error)
        return value

    def _type(self, parameter: nn.Parameter) -> torch.dtype:
        # In bf16 DeepSpeed makes every weight of that type.
        return self._dtype or parameter.dtype
