"""auto: bf16 on GPUs that have it, float32 elsewhere; one precision for all workers, said before and kept."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from pipelines.context import Context
from pipelines.errors import EspanError
from pipelines.evaluate import run as scoring
from pipelines.evaluate.units import Outcome
from pipelines.recipe.keys.evaluate import EvaluateKeys
from pipelines.recipe.keys.train import TrainKeys
from pipelines.run.plan import plan_recipe
from pipelines.system import machine, storage
from pipelines.system.capacity import Capacity, NodeType
from pipelines.system.devices import Device, check_devices
from pipelines.system.precision import NoBfloat16Error, choose_precision, has_bf16, multiply_in_float32
from pipelines.system.progress import Progress
from pipelines.system.worker_resources import Reservation, reserve
from pipelines.train import run as trainer
from pipelines.train.job import CHECKPOINTS_FOLDER, resolve_job, training_precision
from pipelines.train.resources import reservation
from pipelines.train.worker.checkpoints import COMMITTED, STATE_FILE, TrainState, checkpoint_name
from tests.pipelines.train.conftest import SPAN, TINY, write_corpus

ROOT = Path(__file__).parents[2]
ON_CPUS = Reservation(2, 1.0, 0.0, "")
UNTOLD = Capacity((NodeType("gpu", {"CPU": 8.0, "GPU": 8.0}, most=1, scaled=True),), local=False)


def on_gpus(*types: str | None) -> Reservation:
    return Reservation(2, 1.0, 1.0, "", frozenset(types))


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ("A100 A100-80G A10G L4 L40S H100 H200 H20 GH200 B200 B300 GB200 GB300 RTX-PRO-6000", True),
        ("RTX-A6000 GeForce-RTX-3090 GeForce-RTX-4090 GeForce-RTX-5090 AMD-Instinct-MI300X-OAM", True),
        ("V100 P100 P4 T4 K80 M60 GeForce-RTX-2080-Ti GeForce-GTX-1080 TITAN-V RTX-8000", False),
        ("Intel-GPU-Max-1550 AMD-Radeon-HD-7900 something-new", None),
    ],
)
def test_which_types_of_gpu_compute_in_bf16(types: str, expected: bool | None) -> None:
    assert {name: has_bf16(name) for name in types.split()} == dict.fromkeys(types.split(), expected)


def test_auto_is_decided_by_every_gpu_that_a_worker_may_get() -> None:
    assert choose_precision("auto", ON_CPUS).text(0) == "fp32, for CPUs"
    assert choose_precision("auto", on_gpus("H100", "A100")).text(1) == "bf16, A100, H100 has it"
    assert choose_precision("auto", on_gpus("H100", "T4")).text(1) == "fp32, T4 has no bf16; TF32 off"
    assert choose_precision("auto", on_gpus(None, "T4")).precision == "fp32"
    unknown = choose_precision("auto", on_gpus(None, "H100"))
    assert (unknown.precision, unknown.assumed) == ("bf16", True)
    assert not choose_precision("auto", on_gpus("H100")).assumed


@pytest.mark.parametrize("workers", [ON_CPUS, on_gpus("T4"), on_gpus("H100"), on_gpus(None)])
def test_what_a_recipe_says_is_computed_in_on_any_device(workers: Reservation) -> None:
    for asked in ("fp32", "bf16"):
        choice = choose_precision(asked, workers)
        assert (choice.precision, choice.assumed) == (asked, False)


def test_a_gpu_without_bf16_is_an_error_only_where_bf16_was_not_asked_for() -> None:
    old = Device("node-1", "Tesla T4", False, "2.13.0")
    new = Device("node-2", "NVIDIA H100 80GB HBM3", True, "2.13.0")
    check_devices([new, old], needs_bf16=False)
    check_devices([new, new], needs_bf16=True)
    with pytest.raises(NoBfloat16Error, match=r"^Tesla T4 on node-1 has no bf16$"):
        check_devices([new, old], needs_bf16=True)
    with pytest.raises(EspanError, match=r"^a worker on node-3 reserved a GPU, but torch 2\.13\.0 finds no"):
        check_devices([new, Device("node-3", None, False, "2.13.0")], needs_bf16=False)


@pytest.fixture
def float32_settings() -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.usefixtures("float32_settings")
def test_float32_on_a_gpu_is_float32_also_in_convolutions_and_cpus_are_left_alone() -> None:
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    multiply_in_float32(torch.device("cpu"))
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("high", True)
    multiply_in_float32(torch.device("cuda"))
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", False)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("precision") / "shards")


@pytest.fixture
def make_stage(shards: Path) -> Callable[..., TrainKeys]:
    def make(**keys: Any) -> TrainKeys:
        plain = {"data": str(shards), "model": {"new": TINY}, "attention": SPAN, "steps": 4}
        more = {"tokens_per_step": 256, "learning_rate": 1e-3, "workers": 2}
        return TrainKeys.model_validate({**plain, **more, **keys})

    return make


def context(output: Path, said: io.StringIO | None = None) -> Context:
    output.mkdir(exist_ok=True)
    return Context("tuned", str(output), 3, {}, str(output.parent), {}, Progress(said or io.StringIO()))


def test_a_job_holds_the_precision_that_auto_comes_to(
    make_stage: Callable[..., TrainKeys], tmp_path: Path
) -> None:
    asked = make_stage()
    assert asked.precision == "auto"
    assert resolve_job(asked, context(tmp_path / "a")).precision == "fp32"
    assert resolve_job(asked, context(tmp_path / "b"), "bf16").keys.precision == "bf16"
    assert resolve_job(make_stage(precision="bf16"), context(tmp_path / "c"), "fp32").precision == "bf16"


def leave_checkpoint(output: Path, step: int, **keys: Any) -> None:
    folder = output / CHECKPOINTS_FOLDER / checkpoint_name(step)
    state = dict(vars(TrainState(step, 8 * step, step, 3, step, 2, 2)))
    del state["precision"]
    storage.make_folder(str(folder))
    storage.write_json_atomic(str(folder / STATE_FILE), {**state, **keys})
    storage.write_json_atomic(str(folder / COMMITTED), {"files": {}})


def test_a_training_goes_on_in_the_precision_of_its_checkpoint_wherever_it_goes_on(
    make_stage: Callable[..., TrainKeys], tmp_path: Path
) -> None:
    leave_checkpoint(tmp_path, 2, precision="bf16")
    choice = training_precision(make_stage(), str(tmp_path), ON_CPUS)
    assert (choice.precision, choice.reason) == ("bf16", "as in the checkpoint of step 2")
    assert not training_precision(make_stage(), str(tmp_path), on_gpus(None)).assumed
    assert training_precision(make_stage(precision="fp32"), str(tmp_path), ON_CPUS).precision == "fp32"


def test_a_checkpoint_that_does_not_say_is_of_when_float32_was_the_default(
    make_stage: Callable[..., TrainKeys], tmp_path: Path
) -> None:
    leave_checkpoint(tmp_path, 2)
    assert training_precision(make_stage(), str(tmp_path), on_gpus("H100")).precision == "fp32"


def test_a_training_on_gpus_of_untold_type_starts_again_in_float32_where_one_has_no_bf16(
    make_stage: Callable[..., TrainKeys], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []

    def workers_with_an_old_gpu(
        job: Any, workers: Any, live: Any, *, check_bf16: bool = False
    ) -> dict[str, Any]:
        attempts.append((job.precision, check_bf16))
        if check_bf16:
            raise NoBfloat16Error("Tesla T4 on node-1 has no bf16")
        return {"steps": 4, "first_loss": 2.0, "last_loss": 1.0}

    monkeypatch.setattr(trainer, "ray_session", lambda: SimpleNamespace(started_here=False))
    monkeypatch.setattr(trainer, "cluster_capacity", lambda: UNTOLD)
    monkeypatch.setattr(trainer, "run_workers", workers_with_an_old_gpu)
    said = io.StringIO()
    result = trainer.run(make_stage(), context(tmp_path / "out", said))
    assert attempts == [("bf16", True), ("fp32", False)]
    assert result["precision"] == "fp32"
    assert "tuned: precision: fp32, Tesla T4 on node-1 has no bf16; TF32 off\n" in said.getvalue()


def test_all_scores_are_in_one_precision_which_they_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []

    class FleetWithAnOldGpu(AbstractContextManager[Any]):
        def __init__(self, scorer: Any, *, crews: int, **others: Any) -> None:
            self.scorer = scorer
            attempts.append((scorer.dtype, scorer.gpus, crews))

        def __exit__(self, *_: object) -> None: ...

        def score(self, units: Any, what: str) -> list[Outcome]:
            if self.scorer.check_bf16:
                raise NoBfloat16Error("Tesla T4 on node-1 has no bf16")
            told = {"hits": {}, "never_chosen": None, "seconds": 1.0}
            each = {"answers": [True], "depths": [0.5], "prompts": ""}
            return [{name: [value] * unit.count for name, value in each.items()} | told for unit in units]

    monkeypatch.setattr(scoring, "cluster_capacity", lambda: UNTOLD)
    monkeypatch.setattr(scoring, "Fleet", FleetWithAnOldGpu)
    keys = {"model": "builtin:tiny", "recall": {"lengths": [64], "samples": 40}, "tokens_per_batch": 64}
    scores = scoring.evaluate(EvaluateKeys.model_validate(keys), context(tmp_path / "scores"))
    assert attempts == [(torch.bfloat16, 1, 8), (torch.float32, 1, 8)]
    assert scores.precision == "fp32"


def plan_of(stage: dict[str, Any], folder: Path) -> dict[str, str]:
    recipe = {"name": "r", "workspace": str(folder / "run"), "stages": {"tuned": {"train": stage}}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return dict(plan_recipe(folder / "recipe.yaml").stages[0].details)


def test_the_plan_says_what_workers_reserve_and_compute_in_and_by_which_gpus(
    make_stage: Callable[..., TrainKeys], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = make_stage(resources={"cpus": 1}).model_dump(mode="json", exclude_unset=True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(machine, "_DEVICES", tmp_path / "dev")
    monkeypatch.setattr(machine, "_NVIDIA", tmp_path / "gpus")
    plan = plan_of(stage, tmp_path)
    assert plan["workers"] == "2 x (1 CPU); no GPU: this machine has none"
    assert plan["precision"] == "fp32, for CPUs"
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()
    for number in (0, 1):
        told = tmp_path / "gpus" / f"0000:0{number}:00.0" / "information"
        told.parent.mkdir(parents=True)
        told.write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 68\n")
    plan = plan_of(stage, tmp_path)
    assert plan["workers"] == "2 x (1 CPU, 1 GPU); this machine has 2 GPUs (H100)"
    assert plan["precision"] == "bf16, H100 has it"
    assert (
        plan_of({**stage, "precision": "fp32"}, tmp_path)["precision"] == "fp32, as the recipe says; TF32 off"
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    plan = plan_of(stage, tmp_path)
    assert plan["workers"] == "2 x (1 CPU); no GPU: 2 workers would need 2, this machine has 1 GPU (H100)"
    assert plan["precision"] == "fp32, for CPUs"


PLAN_HERE = """
import json, sys
from pipelines.system.capacity import expected_capacity
from pipelines.run.plan import plan_recipe
from pipelines.system.precision import choose_precision
from pipelines.system.worker_resources import reserve

choose_precision("auto", reserve(2, None, None, expected_capacity()))
heavy = sorted({"ray", "torch"} & set(sys.modules))
(stage,) = plan_recipe("recipe.yaml").stages  # a model's skeleton may need torch
print(json.dumps([heavy, "ray" in sys.modules, dict(stage.details)]))
"""


def test_without_a_cluster_a_plan_speaks_of_this_machine_and_imports_no_ray(
    make_stage: Callable[..., TrainKeys], tmp_path: Path
) -> None:
    plan_of(make_stage(model="builtin:tiny").model_dump(mode="json", exclude_unset=True), tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PLAN_HERE],
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    heavy, ray, details = json.loads(done.stdout)
    assert (heavy, ray) == ([], False)
    assert details["workers"].startswith("2 x (")
    assert "this machine has" in details["workers"]


def test_explicit_resources_decide_the_precision_too(make_stage: Callable[..., TrainKeys]) -> None:
    workers = reservation(make_stage(resources={"gpus": 0}), UNTOLD)
    assert choose_precision("auto", workers).precision == "fp32"
    assert choose_precision("auto", reserve(2, None, 1.0, UNTOLD)).assumed
