"""One update for each shared weight.

Zamba and Zamba2 run a few attention blocks many times over: the layers are modules of their own that hold
the same parameters. peft (0.21) looks at modules, so every use would learn its own update, and merging would
add all of them to the one weight. Here the uses share the update's parameters, and the first use merges for
all. No file can make plain peft merge it rightly: whatever delta each use is given, merging adds all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from peft import PeftModel, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.other import ModulesToSaveWrapper
from peft.utils.save_and_load import load_peft_weights
from torch import nn

from se_model.hylora.masters import hold_in_float32


def share_updates(model: PeftModel) -> None:
    """Let every use of a shared weight train, save and merge the same update, that of its first use."""
    for module, leaf, first in _later_uses(model):
        setattr(module, leaf, first)
    layers: dict[int, LoraLayer] = {}
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            first_layer = layers.setdefault(id(layer.get_base_layer().weight), layer)
            # A layer's record of what is merged into its weight: one weight, one record. peft then merges
            # at the first use and finds the others merged, and takes it out again likewise.
            layer.merged_adapters = first_layer.merged_adapters


def load_adapter(model: nn.Module, folder: str | Path, *, is_trainable: bool = False) -> PeftModel:
    """`PeftModel.from_pretrained`, with one update for each shared weight, as it was trained.

    Plain peft loads the same adapters and gives the same logits; but where weights are shared (Zamba2), its
    `merge_and_unload` adds the update once per use. What this returns merges rightly; with `is_trainable` it
    goes on training in float32, from the very numbers that were saved.

    Raises:
        ValueError: if the adapter has different updates for uses of one weight.
    """
    adapter = PeftModel.from_pretrained(model, str(folder), is_trainable=is_trainable)
    for module, leaf, first in _later_uses(adapter):
        if not torch.equal(getattr(module, leaf), first):
            raise ValueError(
                f"{folder} has different updates for uses of one shared weight: it was not trained by "
                "apply_hylora, and cannot be merged"
            )
    share_updates(adapter)
    if is_trainable:
        # peft rounded what it loaded to the model's dtype; what trains goes on from what was saved.
        hold_in_float32(adapter)
        set_peft_model_state_dict(adapter, load_peft_weights(str(folder), device="cpu"))
    return adapter


def _later_uses(model: PeftModel) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """What an adapter adds to a weight that an earlier module has too.

    Yields (module, name of its parameter, the parameter of the first use in its place).
    """
    first_uses: dict[tuple[int, str], nn.Parameter] = {}
    for module in model.modules():
        for weight, key, added, leaf in _added(module):
            parameter = getattr(added, leaf)
            first = first_uses.setdefault((id(weight), key), parameter)
            if first is not parameter:
                yield added, leaf, first


def _added(module: nn.Module) -> Iterator[tuple[nn.Parameter, str, nn.Module, str]]:
    """What an adapter adds to the own weights of `module`: (weight, a key for its part, holder, leaf)."""
    if isinstance(module, LoraLayer):
        for matrices in ("lora_A", "lora_B"):
            for adapter, linear in getattr(module, matrices).items():
                yield module.get_base_layer().weight, f"{matrices}.{adapter}", linear, "weight"
    elif isinstance(module, ModulesToSaveWrapper):
        for adapter, trained in module.modules_to_save.items():
            for leaf, weight in module.original_module.named_parameters(recurse=False):
                yield weight, adapter, trained, leaf
