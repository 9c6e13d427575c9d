"""README's lines of Python do what they say, as they stand there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from se_model import HyLoraConfig, Mamba2HybridConfig, Mamba2HybridForCausalLM, apply_hylora, coverage
from se_model.attach import attached
from tests.real_size.published import MAMBA2ATTN_2_7B

README = Path(__file__).parents[2] / "README.md"
NAME = '"state-spaces/mamba2attn-2.7b"'
TINY = MAMBA2ATTN_2_7B | {
    "d_model": 32,
    "n_layer": 3,
    "vocab_size": 61,
    "ssm_cfg": {"layer": "Mamba2", "d_state": 8, "headdim": 16},
    "attn_layer_idx": [1],
    "attn_cfg": MAMBA2ATTN_2_7B["attn_cfg"] | {"head_dim": 16, "num_heads": 2, "rotary_emb_dim": 8},
}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A checkpoint in mamba_ssm's format, in float32."""
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    torch.manual_seed(1)
    model = Mamba2HybridForCausalLM(Mamba2HybridConfig.from_pretrained(tmp_path))
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    return tmp_path


def snippet(checkpoint: Path) -> str:
    """The only Python block of the README, with another checkpoint's name."""
    _, block = README.read_text().split("```python\n")
    code = block.split("```\n")[0]
    assert code.count(NAME) == 1
    return code.replace(NAME, repr(str(checkpoint)))


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_the_readmes_python_trains_all_that_coverage_names_in_bfloat16(
    published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The same draws as in the snippet give the same low-rank updates to begin with.
    torch.manual_seed(2)
    model = Mamba2HybridForCausalLM.from_pretrained(published, dtype=torch.bfloat16)
    before = parameters(apply_hylora(model, HyLoraConfig(rank=32, alpha=64)))

    torch.manual_seed(2)
    names: dict[str, Any] = {}
    exec(compile(snippet(published), str(README), "exec"), names)
    model = names["model"]
    report = coverage(model)
    assert str(report) in capsys.readouterr().out
    after = parameters(model)
    assert after.keys() == before.keys()
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == trainable
    assert report.trainable_parameters == sum(after[name].numel() for name in moved)
    assert {str(kind) for kind, row in report.kinds.items() if row.trainable_tensors} == {
        "attention projections", "embeddings", "norms", "1-D convolutions",
    }  # fmt: skip
    assert all(after[name].dtype == torch.float32 for name in moved)
    assert attached(model) is None
    assert {p.dtype for p in model.merge_and_unload().parameters()} == {torch.bfloat16}
