"""Writing a whole model that ZeRO-3 split over the workers, tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipelines.errors import EspanError
from pipelines.models.weights.write import plan_files, write_files, write_settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def save_sharded(model: PreTrainedModel, folder: Path) -> None:
    """Writes `model`, whose weights are split over the workers, as safetensors; every worker calls it.

    The first worker writes. It holds one tensor beside its shard, as every worker does while that tensor is
    gathered.

    Raises:
        EspanError: on every worker, if the first cannot write.
    """
    import torch.distributed

    tensors: dict[str, nn.Parameter | Tensor] = dict(model.named_parameters())
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    tensors |= {name: tensor for name, tensor in model.state_dict().items() if name not in names}
    files = plan_files(model, {name: _outline(tensor) for name, tensor in tensors.items()})
    in_order = [stored.name for file in files for stored in file.tensors]
    problem: list[str | None] = [None]
    if torch.distributed.get_rank() == 0:
        left = iter(in_order)
        try:
            write_files(model, files, lambda name: _gathered(tensors[next(left)]), folder)
            write_settings(model, folder, next(model.parameters()).dtype)
        except (OSError, EspanError) as error:
            # The others go through all tensors before they can be told.
            problem = [f"the trained model cannot be written: {error}"]
            for name in left:
                _gathered(tensors[name])
    else:
        for name in in_order:
            _gathered(tensors[name], keep=False)
    torch.distributed.broadcast_object_list(problem, src=0)
    if problem[0] is not None:
        raise EspanError(problem[0])


def _outline(tensor: nn.Parameter | Tensor) -> Tensor:
    return torch.empty(getattr(tensor, "ds_shape", tensor.shape), dtype=tensor.dtype, device="meta")


def _gathered(tensor: nn.Parameter | Tensor, keep: bool = True) -> Tensor:
    """Returns the whole of a tensor on the CPU, where it is kept; every worker calls it."""
    import deepspeed

    if not hasattr(tensor, "ds_id"):
        return tensor.detach()
    with deepspeed.zero.GatheredParameters([tensor]):
        return tensor.detach().cpu().clone() if keep else tensor.new_empty(0)
