"""The Triton kernels against the oracle: on a GPU where there is one, else in Triton's interpreter.

The interpreter takes milliseconds for every program, and its tiles are 16 to 32 rows, so that rows of a few
hundred tokens meet every branch. The cases of real size need a GPU and run under ``make gpu``.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from se_model.span import se_attention, select_blocks
from se_model.span.rules import RELEVANCIES, SUMMARIES, Queries
from tests.tolerances import BY_DTYPE, within

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@dataclass(frozen=True)
class Case:
    bounds: tuple[int, ...] = (0, 150)
    heads: int = 2
    groups: int = 2
    width: int = 32
    chunk: int = 64
    block: int = 16
    top_k: int = 3
    selection: str = "chunk"
    refresh: int | None = None
    summary: str = "attention"
    relevancy: str = "sum"
    queries: Queries = "all"
    dtype: torch.dtype = torch.float32
    batch: int = 1

    @property
    def options(self) -> dict[str, object]:
        return {
            "chunk_size": self.chunk, "block_size": self.block, "top_k": self.top_k, "summary": self.summary,
            "relevancy": self.relevancy, "queries": self.queries, "selection": self.selection,
            "refresh": self.refresh,
            "cu_seqlens": torch.tensor(self.bounds) if len(self.bounds) > 2 else None,
        }  # fmt: skip

    def __str__(self) -> str:
        default = Case()
        changed = {name: value for name, value in vars(self).items() if value != getattr(default, name)}
        return "-".join(f"{name}={value}" for name, value in changed.items()) or "default"


BY_JUDGES = Case(summary="key_bounds", relevancy="mass", queries={"representative": 5})
BY_KEYS = replace(BY_JUDGES, summary="representative_keys", relevancy="peak")
CASES = [
    Case(),
    *(Case(width=width) for width in (64, 80, 96, 128)),
    Case(bounds=(0, 70), width=256),
    *(Case(width=width, bounds=(0, 50)) for width in (8, 24)),
    *(Case(dtype=dtype) for dtype in (torch.float16, torch.bfloat16)),
    Case(heads=4, groups=1),
    Case(heads=4, groups=2, batch=2, bounds=(0, 90), selection="causal"),
    *(Case(block=block, chunk=2 * block, bounds=(0, 5 * block + 3)) for block in (32, 64)),
    Case(block=128, chunk=128, bounds=(0, 300), heads=1, groups=1),
    Case(block=16, chunk=48, bounds=(0, 160)),
    Case(block=4, chunk=20, bounds=(0, 63), top_k=2),
    Case(block=48, chunk=96, bounds=(0, 210), top_k=2),
    *(Case(top_k=top_k, bounds=(0, 140)) for top_k in (0, 1, 64)),
    # More than the kernels keep: the choice is torch's.
    Case(block=4, chunk=16, top_k=70, bounds=(0, 310), heads=1, groups=1),
    *(Case(bounds=(0, length)) for length in (1, 15, 64, 65, 127, 129)),
    Case(bounds=(0, 3, 70, 71, 135, 200)),
    Case(bounds=(0, 64, 128), selection="causal"),
    *(Case(selection="causal", refresh=refresh, bounds=(0, 140)) for refresh in (None, 8, 64)),
    Case(selection="causal", refresh=24, chunk=48, bounds=(0, 30, 160)),
    Case(summary="mean_key", heads=4, groups=2),
    Case(summary="key_bounds", heads=4, groups=2),
    BY_JUDGES,
    replace(BY_JUDGES, heads=6, groups=2, batch=2, bounds=(0, 100), dtype=torch.float16),
    replace(BY_JUDGES, heads=4, groups=2, bounds=(0, 30, 150), selection="causal"),
    replace(BY_KEYS, heads=4, groups=2, chunk=32, bounds=(0, 50, 120), dtype=torch.bfloat16),
    replace(BY_KEYS, heads=4, groups=2, chunk=48, refresh=24, width=24, bounds=(0, 110), selection="causal",
            relevancy="sum", dtype=torch.float16),
    # No more keys than are kept.
    replace(BY_KEYS, queries="all", block=4, chunk=12, bounds=(0, 90), relevancy="max"),
    # Judges and blocks of several tiles, the last not full.
    replace(BY_JUDGES, queries="all", block=4, top_k=12, chunk=20, refresh=20, selection="causal"),
    replace(BY_JUDGES, summary="attention", heads=4, queries={"stride": 3}, block=4, bounds=(0, 140)),
    replace(BY_JUDGES, summary="mean_key", heads=4, groups=1, relevancy="max", queries={"stride": 3}),
    # More representatives are kept than a tile has queries.
    replace(BY_JUDGES, width=256, queries={"representative": 20}, bounds=(0, 140), dtype=torch.bfloat16),
    replace(BY_JUDGES, block=128, chunk=128, bounds=(0, 300), heads=1, groups=1, relevancy="sum"),
    # More than the kernels keep: the choice is torch's.
    replace(BY_JUDGES, block=8, chunk=80, queries={"representative": 65}, bounds=(0, 170)),
    *(
        pytest.param(
            replace(
                Case(bounds=(0, 2500), heads=4, groups=2, chunk=1024, block=32, top_k=8, dtype=dtype),
                width=width,
                selection=selection,
            ),
            marks=GPU,
        )
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
        for width in (32, 64, 80, 96, 128, 256)
        for selection in ("chunk", "causal")
    ),
    *(
        pytest.param(
            replace(
                Case(bounds=(0, 700, 2500), heads=4, groups=2, chunk=1024, block=32, top_k=8, width=128),
                summary=summary,
                relevancy=relevancy,
                queries=queries,
                selection=selection,
                dtype=torch.bfloat16 if selection == "causal" else torch.float32,
            ),
            marks=GPU,
        )
        for summary in SUMMARIES
        for relevancy in RELEVANCIES
        for queries in ("all", {"representative": 16}, {"stride": 32})
        for selection in ("chunk", "causal")
    ),
    pytest.param(Case(bounds=(0, 700, 701, 3000), chunk=512, block=128, top_k=5), marks=GPU),
]  # fmt: skip


@pytest.fixture(autouse=True)
def unwritten_memory_is_not_a_number():
    """In deterministic mode torch fills what it allocates: a kernel that reads what none wrote shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def inputs_of(case: Case) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    length = case.bounds[-1]
    return [
        torch.randn(case.batch, length, heads, case.width, generator=generator)
        .to(DEVICE, case.dtype)
        .transpose(1, 2)
        .requires_grad_()
        for heads in (case.heads, case.groups, case.groups)
    ]


def weights_like(output: Tensor) -> Tensor:
    return torch.randn(output.shape, generator=torch.Generator().manual_seed(9)).to(output)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_gradients_and_choices_are_the_oracle_s(case):
    inputs = inputs_of(case)
    blocks = select_blocks(*inputs, **case.options, backend="fused")
    assert torch.equal(blocks, select_blocks(*inputs, **case.options, backend="naive"))
    output = se_attention(*inputs, **case.options, backend="fused")
    assert output.dtype == case.dtype
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = se_attention(*exact, **case.options, blocks=blocks, backend="naive")
    bound = within(BY_DTYPE[case.dtype])
    torch.testing.assert_close(output.double(), expected, **bound)
    weights = weights_like(output)
    found = torch.autograd.grad(output, inputs, weights)
    for name, one, other in zip(
        "qkv", found, torch.autograd.grad(expected, exact, weights.double()), strict=True
    ):
        torch.testing.assert_close(
            one.double(), other, **bound, msg=lambda text, name=name: f"d{name}: {text}"
        )


@pytest.mark.parametrize(
    "case", [Case(), Case(heads=4, groups=1, bounds=(0, 40, 150), selection="causal")], ids=str
)
def test_two_runs_agree_to_the_last_bit(case):
    inputs = inputs_of(case)
    first, second = (se_attention(*inputs, **case.options, backend="fused") for _ in range(2))
    assert torch.equal(first, second)
    weights = weights_like(first)
    for one, other in zip(
        torch.autograd.grad(first, inputs, weights), torch.autograd.grad(second, inputs, weights), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("case", [Case(bounds=(0, 100)), replace(BY_JUDGES, bounds=(0, 100))], ids=str)
def test_memory_layout_makes_no_difference(case):
    inputs = inputs_of(case)
    expected = se_attention(*inputs, **case.options, backend="fused")
    # The head dimension strided, and a gradient that is one number seen everywhere.
    strided = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in inputs]
    output = se_attention(*strided, **case.options, backend="fused")
    assert torch.equal(output, expected)
    for one, other in zip(
        torch.autograd.grad(output.sum(), inputs),
        torch.autograd.grad(expected, inputs, torch.ones_like(expected)),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_a_choice_held_fixed_may_be_shorter_than_top_k():
    case = Case(bounds=(0, 200), chunk=32)
    inputs = inputs_of(case)
    blocks = select_blocks(*inputs, **case.options)[..., :2].clone()
    blocks[:, :, 3:, 1] = -1
    options = {**case.options, "blocks": blocks}
    expected = se_attention(*inputs, **options, backend="naive")
    output = se_attention(*inputs, **options, backend="fused")
    torch.testing.assert_close(output, expected, **within(BY_DTYPE[case.dtype]))


def test_large_logits_stay_finite():
    case = Case(bounds=(0, 100))
    inputs = [x.detach() * factor for x, factor in zip(inputs_of(case), (100, 100, 1), strict=True)]
    output = se_attention(*inputs, **case.options, backend="fused")
    expected = se_attention(*(x.double() for x in inputs), **case.options, backend="naive")
    assert output.isfinite().all()
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=1e-2)
