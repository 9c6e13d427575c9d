"""The shipped cluster configurations, against the schemas of the programs that read them."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from string import Template
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTER = Path(__file__).parents[2] / "cluster"
SCHEMAS = Path(__file__).parent / "data"
KUBERAY = {"RayCluster": "kuberay-cluster.yaml", "RayJob": "kuberay-job.yaml"}
FILLED_BY_TERRAFORM = {
    "max_workers": "2",
    **{
        f"{kind}_{what}": '["id-1", "id-2"]'
        for kind in ("head", "worker")
        for what in ("subnets", "security_groups")
    },
}


def kuberay(kind: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / "configs" / KUBERAY[kind]).read_text())


def kuberay_schema(kind: str) -> dict[str, Any]:
    return json.loads(gzip.decompress((SCHEMAS / f"{kind}.schema.json.gz").read_bytes()))


@pytest.fixture
def aws() -> dict[str, Any]:
    """The AWS configuration as Terraform fills it in: lists and numbers as such, other values as text."""
    text = (CLUSTER / "configs" / "aws.yaml").read_text()
    names = set(re.findall(r"\$\{(\w+)\}", text))
    return yaml.safe_load(
        Template(text).safe_substitute({name: FILLED_BY_TERRAFORM.get(name, "x") for name in names})
    )


def test_ray_accepts_the_aws_configuration(aws: dict[str, Any]) -> None:
    validate_config(prepare_config(aws))


def test_ray_refuses_the_aws_configuration_with_a_misspelt_key(aws: dict[str, Any]) -> None:
    aws["idle_timeout_minute"] = aws.pop("idle_timeout_minutes")
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minute"):
        validate_config(prepare_config(aws))


def test_aws_workers_are_spot_instances_and_none_without_work(aws: dict[str, Any]) -> None:
    workers = [node for name, node in aws["available_node_types"].items() if name != aws["head_node_type"]]
    assert workers
    assert all(node["min_workers"] == 0 for node in workers)
    assert all(node["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"} for node in workers)


def test_every_ray_on_aws_asks_for_a_token_and_its_dashboard_stays_on_the_head(aws: dict[str, Any]) -> None:
    starts = [
        command
        for commands in (aws["head_start_ray_commands"], aws["worker_start_ray_commands"])
        for command in commands
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "/home/ray/.ray/auth_token" in aws["file_mounts"]


def test_nobody_but_terraform_decides_who_reaches_aws_nodes(aws: dict[str, Any]) -> None:
    """Without these keys Ray makes a key pair and a security group open to the world on port 22."""
    assert "ssh_private_key" in aws["auth"]
    for node in aws["available_node_types"].values():
        assert {"KeyName", "SecurityGroupIds", "SubnetIds", "LaunchTemplate"} <= node["node_config"].keys()


@pytest.mark.parametrize("kind", KUBERAY)
def test_kuberay_accepts_the_configuration(kind: str) -> None:
    jsonschema.validate(kuberay(kind), kuberay_schema(kind))


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("RayCluster", ("spec", "enableInTreeAutoscaling")),
        ("RayCluster", ("spec", "workerGroupSpecs", 0, "minReplicas")),
        ("RayCluster", ("spec", "headGroupSpec", "template", "spec", "containers", 0, "resources")),
        ("RayJob", ("spec", "shutdownAfterJobFinishes")),
        ("RayJob", ("spec", "rayClusterSpec", "authOptions")),
    ],
)
def test_kuberay_would_not_hear_a_misspelt_key(kind: str, path: tuple[str | int, ...]) -> None:
    configuration = kuberay(kind)
    *parents, key = path
    place: Any = configuration
    for parent in parents:
        place = place[parent]
    place[f"{key}s"] = place.pop(key)
    with pytest.raises(jsonschema.ValidationError, match=f"'{key}s' was unexpected"):
        jsonschema.validate(configuration, kuberay_schema(kind))


def test_the_job_runs_on_the_cluster_of_the_example_beside_it() -> None:
    assert kuberay("RayJob")["spec"]["rayClusterSpec"] == kuberay("RayCluster")["spec"]


def test_the_kuberay_cluster_is_closed_cheap_and_of_this_ray() -> None:
    spec = kuberay("RayCluster")["spec"]
    assert spec["rayVersion"] == ray.__version__
    assert spec["authOptions"] == {"mode": "token"}
    assert all(group["minReplicas"] == group["replicas"] == 0 for group in spec["workerGroupSpecs"])
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert all(each["resources"]["requests"] == each["resources"]["limits"] for each in pod["containers"])


def test_the_job_is_one_that_kuberay_can_end() -> None:
    """The schema takes any text for these; KubeRay does not."""
    job = kuberay("RayJob")["spec"]
    assert job["submissionMode"] == "K8sJobMode"
    assert job["shutdownAfterJobFinishes"]
    assert job["entrypoint"].split()[:2] == ["espan", "run"]


def test_what_the_image_copies_is_there_and_not_kept_out_of_its_context() -> None:
    lines = [
        line.split()
        for line in (CLUSTER / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from=" not in line
    ]
    copied = {name for _, *sources, _ in lines for name in sources}
    kept_in = {
        line[1:] for line in (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"
    }
    assert copied == kept_in
    assert {name for name in copied if not (CLUSTER.parent / name).exists()} == set()
