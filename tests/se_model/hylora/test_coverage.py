"""Coverage counts what trains from the model itself, kind by kind."""

from collections.abc import Callable

import pytest
from torch import nn

from se_model.hylora import HyLoraConfig, apply_hylora, coverage
from se_model.hylora.kinds import Kind

Build = Callable[[str], nn.Module]


def numbers(model: nn.Module) -> dict[str, tuple[int, int, int, int]]:
    return {
        str(kind): (row.trainable_tensors, row.tensors, row.trainable_parameters, row.parameters)
        for kind, row in coverage(model).kinds.items()
    }


def test_every_number_of_the_hybrid(build: Build) -> None:
    """Width 32, inner width 64, state 8, 4 heads of 8, 2 for keys and values, embedding tied to the head."""
    adapter = apply_hylora(build("mamba2_hybrid"), HyLoraConfig(rank=4, alpha=8))
    qkv = (4 + 2 + 2) * 8
    mamba_convolution = (64 + 2 * 8) * (4 + 1)
    mamba_projections = 32 * (2 * 64 + 2 * 8 + 4) + 64 * 32
    assert numbers(adapter) == {
        "attention projections": (2, 2, 4 * (32 + qkv) + 4 * (32 + 32), 32 * qkv + 32 * 32),
        "embeddings": (1, 1, 64 * 32, 64 * 32),
        "norms": (6, 6, 4 * 32 + 2 * 64, 4 * 32 + 2 * 64),
        "1-D convolutions": (6, 6, 2 * mamba_convolution + qkv * 5, 2 * mamba_convolution + qkv * 5),
        "state-space layers": (0, 10, 0, 2 * (mamba_projections + 3 * 4)),
    }


@pytest.mark.parametrize(
    "name", ["mamba2_hybrid", "mamba2_hybrid-untied", "bamba", "zamba2", "falcon_h1", "qwen3_next", "lfm2"]
)
def test_totals_are_those_of_the_models_parameters(build: Build, name: str) -> None:
    bare = build(name)
    assert coverage(bare).parameters == coverage(bare).trainable_parameters == bare.num_parameters()
    adapter = apply_hylora(bare, HyLoraConfig())
    assert coverage(adapter).parameters == build(name).num_parameters()
    assert coverage(adapter).trainable_parameters == sum(
        {p: p.numel() for p in adapter.parameters() if p.requires_grad}.values()
    )


def test_the_adapter_does_not_change_what_things_are(build: Build) -> None:
    for name in (
        "mamba2_hybrid",
        "jamba",
        "bamba",
        "zamba2",
        "falcon_h1",
        "nemotron_h",
        "qwen3_next",
        "olmo_hybrid",
        "lfm2",
        "granitemoehybrid",
    ):
        bare = {kind: row[1::2] for kind, row in numbers(build(name)).items()}
        assert {
            kind: row[1::2] for kind, row in numbers(apply_hylora(build(name), HyLoraConfig())).items()
        } == bare


def test_state_space_and_feed_forward_layers_stay_frozen(build: Build) -> None:
    kinds = numbers(apply_hylora(build("bamba"), HyLoraConfig()))
    assert kinds["state-space layers"][:2] == (0, 5)
    assert kinds["feed-forward"][:2] == (0, 6)
    assert kinds["output head"][:2] == (0, 1)


def test_the_table_names_each_kind_with_its_percentage(build: Build) -> None:
    lines = str(
        coverage(apply_hylora(build("llama"), HyLoraConfig(rank=4, alpha=8, variant="lora+")))
    ).splitlines()
    assert [line[:22].strip() for line in lines] == [
        "kind", "attention projections", "embeddings", "norms", "feed-forward", "output head", "all",
    ]  # fmt: skip
    assert lines[2].split()[-6:] == ["1", "of", "1", "2,048", "2,048", "100.00%"]
    assert lines[4].split()[-1] == "0.00%"


def test_a_kind_that_should_train_and_does_not_is_refused(build: Build) -> None:
    config = HyLoraConfig()
    adapter = apply_hylora(build("mamba2_hybrid"), config)
    for name, parameter in adapter.named_parameters():
        if "layers.2.mixer.conv1d" in name:
            parameter.requires_grad_(False)
    with pytest.raises(
        ValueError,
        match=r"all 1-D convolutions, but 1 of 3 stay frozen, first backbone.layers.2.mixer.conv1d.weight",
    ):
        coverage(adapter, config)
    adapter.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing trains"):
        coverage(adapter)


def test_kinds_are_in_the_order_of_their_definition(build: Build) -> None:
    kinds = list(coverage(build("falcon_h1")).kinds)
    assert kinds == [kind for kind in Kind if kind in kinds]
