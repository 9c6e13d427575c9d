"""A cluster whose GPU nodes are not up yet gives GPUs to whoever does not say otherwise, and says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.errors import EspanError
from pipelines.system.capacity import Capacity, NodeType, with_node_types
from pipelines.system.node_types import AutoscalerTypes, kuberay_types, types_in_pod
from pipelines.system.worker_resources import as_many_as_fit, check_room, reserve
from tests.pipelines.train.conftest import SPAN, TINY, write_corpus
from tests.real_size.autoscaling_cluster import autoscaling_cluster

ROOT = Path(__file__).parents[2]
GPU_NODES = {"resources": {"CPU": 2, "GPU": 2}, "min_workers": 0, "max_workers": 2}

# One program, because each connection to a cluster takes seconds: plans, trains, evaluates, and prints what
# came of it and what the cluster was asked for.
PROGRAM = """
import io, json, sys
from pipelines.errors import EspanError
from pipelines.run.plan import plan_recipe
from pipelines.system.progress import Progress
from pipelines.run.runner import run_recipe

found = {"plan": {}, "said": {}, "errors": {}}
for name in sys.argv[1:]:
    stages = plan_recipe(f"{name}.yaml").stages
    found["plan"][name] = {stage.name: dict(stage.details) for stage in stages}
    said = io.StringIO()
    try:
        run_recipe(f"{name}.yaml", {}, Progress(said))
    except EspanError as error:
        found["errors"][name] = str(error)
    found["said"][name] = said.getvalue()

import ray
from pipelines.system.capacity import cluster_capacity
from pipelines.system.node_types import autoscaler_types
from ray._raylet import GcsClient
from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig

groups = ray.util.placement_group_table().values()
found["bundles"] = [list(group["bundles"].values()) for group in groups]
# A worker node is not where the autoscaler's configuration lies.
asked_elsewhere = ray.remote(num_gpus=1)(lambda: autoscaler_types(ray.nodes()))
found["types"] = sorted(ray.get(asked_elsewhere.remote()).configured)
# What managed services do, and Ray's own autoscalers do not: tell the control store.
told = ClusterConfig(
    node_group_configs=[NodeGroupConfig(name="managed", resources={"CPU": 4, "GPU": 1}, max_count=-1)]
)
GcsClient(ray.get_runtime_context().gcs_address).report_cluster_config(told.SerializeToString())
found["told"] = str(cluster_capacity().node_types[0])
found["nodes"] = [node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]]
print(json.dumps(found))
"""


def write_recipes(folder: Path, corpus: Path) -> None:
    train = {
        "data": str(corpus),
        "model": {"new": TINY},
        "attention": SPAN,
        "steps": 2,
        "tokens_per_step": 256,
        "workers": 2,
        "learning_rate": 1e-3,
    }
    scores = {"model": "builtin:tiny", "recall": {"lengths": [64], "samples": 2}}
    for name, stage in {"train": {"train": train}, "evaluate": {"evaluate": scores}}.items():
        recipe = {"name": name, "workspace": str(folder / f"run-{name}"), "stages": {"one": stage}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))


def test_workers_ask_an_autoscaler_for_gpus_and_one_that_gets_none_ends_the_stage_in_one_line(
    tmp_path: Path,
) -> None:
    write_recipes(tmp_path, write_corpus(tmp_path / "corpus"))
    with autoscaling_cluster({"gpu": GPU_NODES}) as cluster:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, "train", "evaluate"],
            env={**cluster.environment, "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    there = "node type gpu can have up to 2 nodes of {CPU: 2, GPU: 2}"
    assert found["plan"]["train"]["one"]["workers"] == f"2 x (1 CPU, 1 GPU); {there}; 0 are up now"
    assert found["plan"]["train"]["one"]["precision"].startswith("bf16")
    assert f"one: workers: 2 x (1 CPU, 1 GPU); {there}; 0 are up now\n" in found["said"]["train"]
    assert f"one: workers: 2 x (1 CPU, 1 GPU); {there}; 1 is up now\n" in found["said"]["evaluate"]
    # One group of workers, which was not tried again.
    assert found["bundles"] == [[{"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}]]
    assert 2.0 in found["nodes"]
    for name in ("train", "evaluate"):
        error = found["errors"][name]
        assert error.startswith("stage 'one': a worker on "), error
        assert "reserved a GPU" in error
        assert "finds no CUDA device there" in error
        assert "\n" not in error
    assert found["types"] == ["gpu", "ray.head.default"]
    assert found["told"] == "node type managed can have any number of nodes of {CPU: 4, GPU: 1}; 0 are up now"


def cluster(*types: NodeType, **keys: Any) -> Capacity:
    return Capacity(types, local=False, **keys)


HEAD = NodeType("", {"CPU": 0.0}, up=1, most=1)
CPUS = NodeType("cpu", {"CPU": 16.0}, most=10, scaled=True)
H100S = NodeType("gpu", {"CPU": 32.0, "GPU": 8.0}, "H100", most=4, scaled=True)


def test_what_a_recipe_says_is_reserved_whatever_there_is() -> None:
    for there in (cluster(HEAD, CPUS), cluster(HEAD, H100S), cluster(HEAD, unknown="nobody says")):
        assert reserve(4, 2.0, 0.0, there).resources == {"CPU": 2.0}
        assert reserve(4, None, 0.5, there).resources == {"CPU": 1.0, "GPU": 0.5}


def test_without_a_word_workers_get_one_gpu_each_where_there_can_be_some() -> None:
    workers = reserve(8, None, None, cluster(HEAD, CPUS, H100S))
    assert workers.resources == {"CPU": 1.0, "GPU": 1.0}
    assert workers.accelerators == {"H100"}
    assert str(workers) == (
        "8 x (1 CPU, 1 GPU); node type gpu can have up to 4 nodes of {CPU: 32, GPU: 8} (H100); 0 are up now"
    )


def test_without_gpus_anywhere_workers_compute_on_cpus() -> None:
    workers = reserve(8, None, None, cluster(HEAD, CPUS))
    assert workers.resources == {"CPU": 1.0}
    assert str(workers) == "8 x (1 CPU); no GPU: no node and no node type of this cluster has one"


def test_a_cluster_that_does_not_tell_is_not_taken_for_one_without_gpus() -> None:
    bare = NodeType("gpu", {}, most=4, scaled=True)
    for there, why in (
        (cluster(HEAD, unknown="Kubernetes answers 403"), "Kubernetes answers 403"),
        (cluster(HEAD, bare), "the resources of node type gpu are not in its configuration"),
    ):
        with pytest.raises(EspanError, match=rf"{why}; say resources: {{gpus: 1}}"):
            reserve(8, None, None, there)


def test_more_workers_than_gpus_are_refused_on_a_cluster_and_use_cpus_on_this_machine() -> None:
    with pytest.raises(EspanError, match=r"33 workers of 1 GPU are more than the 32 .* use 32 workers, or"):
        reserve(33, None, None, cluster(HEAD, CPUS, H100S))
    with pytest.raises(EspanError, match="are more than the 16"):
        reserve(32, None, None, cluster(HEAD, CPUS, H100S, most_scaled=2))
    machine = Capacity((NodeType("", {"CPU": 8.0, "GPU": 1.0}, "L4", up=1, most=1),), local=True)
    workers = reserve(2, None, None, machine)
    assert workers.resources == {"CPU": 1.0}
    assert workers.reason == "no GPU: 2 workers would need 2, this machine has 1 GPU (L4)"
    assert reserve(1, None, None, machine).gpus == 1
    asked = reserve(2, None, 1.0, machine)
    assert asked.reason == "as resources.gpus says: for a cluster, as this machine has 1 GPU (L4)"
    with pytest.raises(EspanError, match=r"2 workers of 1 CPUs and 1 GPUs do not fit on this machine"):
        check_room(asked, machine)


def test_a_node_that_has_the_gpu_but_not_the_cpus_holds_no_worker() -> None:
    workers = reserve(1, 64.0, None, cluster(HEAD, H100S))
    assert (workers.gpus, workers.reason) == (0, "no GPU: nothing with a GPU has 64 CPUs")


def test_any_number_of_workers_is_what_is_up_or_else_one_node() -> None:
    need = {"CPU": 1.0, "GPU": 1.0}
    assert as_many_as_fit(need, cluster(HEAD, H100S)) == 8
    up = NodeType("gpu", H100S.resources, up=3, most=4, scaled=True)
    assert as_many_as_fit(need, cluster(HEAD, up)) == 24
    assert as_many_as_fit({"CPU": 1.0}, cluster(HEAD, CPUS)) == 16


def node(resources: dict[str, float], **labels: str) -> dict[str, Any]:
    return {"Resources": resources, "Labels": labels}


def test_nodes_that_are_up_count_for_their_type_by_label_or_by_shape() -> None:
    types = AutoscalerTypes.of(
        {
            "max_workers": 6,
            "head_node_type": "head",
            "available_node_types": {
                "head": {"resources": {"CPU": 0}, "max_workers": 0},
                "big": {"resources": {"CPU": 32, "GPU": 8, "accelerator_type:H100": 1}, "max_workers": 4},
                "local": {"resources": {}},
            },
        }
    )
    nodes = [
        node({"CPU": 0, "node:__internal_head__": 1.0}),
        node({"CPU": 32, "GPU": 8, "memory": 5.0}),
        node({"CPU": 8, "GPU": 1, "accelerator_type:A10G": 1.0}, **{"ray.io/node-group": "local"}),
        node({"CPU": 3}),
    ]
    there = with_node_types(nodes, types)
    found = {each.name: each for each in there.node_types}
    assert {name: each.up for name, each in found.items()} == {"head": 1, "big": 1, "local": 1, "": 1}
    assert (found["big"].most, found["local"].most, found["head"].most) == (4, 6, 1)
    assert (found["big"].accelerator, found["local"].accelerator) == ("H100", "A10G")
    assert found["local"].gpus == 1
    assert there.blind_spots == ""
    assert with_node_types(nodes[:1], types).blind_spots.startswith("the resources of node type local")


def test_the_shipped_kuberay_cluster_can_have_gpus() -> None:
    shipped = yaml.safe_load((ROOT / "cluster" / "configs" / "kuberay-cluster.yaml").read_text())
    shipped["metadata"]["namespace"] = "default"  # as Kubernetes gives it back
    workers = reserve(8, None, None, with_node_types([], kuberay_types(shipped)))
    assert str(workers) == (
        "8 x (1 CPU, 1 GPU); node type gpu can have up to 2 nodes of {CPU: 32, GPU: 8}; 0 are up now"
    )
    shipped["spec"]["enableInTreeAutoscaling"] = False
    assert with_node_types([], kuberay_types(shipped)).node_types == ()


def test_a_pod_that_kubernetes_does_not_answer_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("RAY_CLUSTER_NAME", "espan")
    types = types_in_pod()  # there is no service account here
    assert types is not None
    with pytest.raises(
        EspanError, match=r"does not report the node types of RayCluster espan: .*; say resources"
    ):
        reserve(8, None, None, with_node_types([], types))
    monkeypatch.delenv("RAY_CLUSTER_NAME")
    assert types_in_pod() is None
