"""What hybrids compute on a CPU where the field's kernels can be imported and cannot run, as JSON.

A script: transformers decides what layers call when it is imported, once for a process.
"""

import json
import sys

import torch

from tests.se_model.recurrence.library_on_cpu import make_importable

NAMES = ("qwen3_next", "kimi_linear", "olmo_hybrid", "bamba", "jamba", "zamba", "lfm2")
TOKENS = torch.randint(3, 60, (2, 13), generator=torch.Generator().manual_seed(1))
PADDED = torch.tensor([[0] * 4 + [1] * 9, [1] * 13])


def found(name: str) -> dict[str, object]:
    """Whether transformers' own layers fail, and how far logits with a cache and padding are off.

    Both are compared with the logits of whole rows without either, which our recurrences make.
    """
    from se_model import attach, detach
    from se_model.baselines import FullConfig
    from tests.se_model.tiny_models import tiny_model

    model = tiny_model(name)
    try:
        model(TOKENS, use_cache=True)
        fails = False
    except Exception:  # whatever kernels make of a node without a GPU
        fails = True
    attach(model, FullConfig())
    expected, alone = (model(each, use_cache=False).logits for each in (TOKENS, TOKENS[:1, 4:]))
    first = model(TOKENS[:, :7], use_cache=True)
    eighth = torch.full((2, 1), 7)
    second = model(TOKENS[:, 7:8], past_key_values=first.past_key_values, position_ids=eighth, use_cache=True)
    cached = torch.cat([first.logits, second.logits], dim=1)
    padded = model(TOKENS, attention_mask=PADDED, use_cache=False).logits[0, 4:]
    differences = cached - expected[:, :8], padded - alone[0]
    detach(model)
    return {"fails": fails, "off": max(each.abs().max().item() for each in differences)}


def main() -> None:
    make_importable()
    with torch.no_grad():
        json.dump({name: found(name) for name in NAMES}, sys.stdout)


if __name__ == "__main__":
    main()
