"""The node types of a cluster's autoscaler, read where Ray 2.60 keeps them.

Ray has a place for them in its control store (`ClusterConfig`), which its own autoscalers, v1 and v2, leave
empty: only managed services fill it in. What the autoscaler goes by is a file on the head node, named in the
command line of the `monitor.py` that runs there, or, under KubeRay, the RayCluster itself. Can go when
`ray.autoscaler` offers the node types (ray-project/ray, python/ray/autoscaler/v2/sdk.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HEAD_RESOURCE = "node:__internal_head__"
"""A resource that only the head has."""

UNLIMITED = 1 << 31
"""Stands for an unlimited number of nodes."""

_HEAD_SECONDS = 120.0
_NAMESPACE_FILE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"


@dataclass(frozen=True)
class AutoscalerTypes:
    """What an autoscaler may start.

    Attributes:
        configured: name -> `resources`, `labels`, `min_workers`, `max_workers`, as Ray's cluster files have
            them; empty without an autoscaler.
        head: the name of the head's type, which is never started again.
        most_workers: nodes besides the head, at most, over all types; None without such a limit.
        unknown: why they cannot be read; empty where they can.
    """

    configured: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    head: str | None = None
    most_workers: int | None = None
    unknown: str = ""

    @classmethod
    def of(cls, configuration: Mapping[str, Any]) -> AutoscalerTypes:
        """Reads Ray's cluster configuration, as `ray up` takes it."""
        return cls(
            configuration.get("available_node_types") or {},
            configuration.get("head_node_type"),
            configuration.get("max_workers"),
        )


def autoscaler_types(nodes: Sequence[Mapping[str, Any]]) -> AutoscalerTypes:
    """Returns the node types of the cluster that this process is connected to; `nodes` are `ray.nodes()`."""
    import ray

    head = next((node for node in nodes if HEAD_RESOURCE in node["Resources"]), None)
    if head is None:
        return AutoscalerTypes(unknown="the cluster's head node is not among its nodes")
    here = (
        ray.get_runtime_context().get_node_id() == head["NodeID"] and not ray.util.client.ray.is_connected()
    )
    if here:
        return types_on_head()
    # Any head runs a task that asks for no CPU. "DEFAULT": inside a trial of Ray Tune it would else have to
    # fit into what the trial itself reserved.
    task = ray.remote(types_on_head).options(
        num_cpus=0, resources={HEAD_RESOURCE: 0.001}, scheduling_strategy="DEFAULT"
    )
    try:
        return ray.get(task.remote(), timeout=_HEAD_SECONDS)
    except ray.exceptions.RayError as error:
        return AutoscalerTypes(
            unknown=f"the head node does not say what its autoscaler can start ({type(error).__name__})"
        )


def types_on_head() -> AutoscalerTypes:
    """Returns the node types of this cluster's autoscaler; called on its head node."""
    import ray

    return (
        _reported()
        or _of_monitor(ray.get_runtime_context().gcs_address)
        or types_in_pod()
        or AutoscalerTypes()
    )


def _reported() -> AutoscalerTypes | None:
    """Reads what an autoscaler has told Ray's control store, if it has."""
    from ray._private.state import state

    found = state.get_cluster_config()
    if found is None or not found.node_group_configs:
        return None
    return AutoscalerTypes(
        {
            group.name: {
                "resources": dict(group.resources),
                "min_workers": group.min_count,
                "max_workers": UNLIMITED if group.max_count < 0 else group.max_count,
            }
            for group in found.node_group_configs
        }
    )


def _of_monitor(gcs_address: str) -> AutoscalerTypes | None:
    """Reads the file that this cluster's autoscaler was started with, if one runs on this machine."""
    import psutil
    import yaml

    option = "--autoscaling-config="
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if f"--gcs-address={gcs_address}" not in words or not any(
            word.endswith("/monitor.py") for word in words
        ):
            continue
        file = next((word.removeprefix(option) for word in words if word.startswith(option)), None)
        if file is None:
            return AutoscalerTypes()  # it watches the nodes and starts none
        try:
            return AutoscalerTypes.of(yaml.safe_load(Path(file).expanduser().read_text()))
        except (OSError, yaml.YAMLError) as error:
            what = str(error).splitlines()[0]
            return AutoscalerTypes(unknown=f"the autoscaler's configuration {file} cannot be read: {what}")
    return None


def types_in_pod() -> AutoscalerTypes | None:
    """Asks Kubernetes for this pod's RayCluster, as KubeRay's autoscaler beside it does; None elsewhere."""
    name = os.environ.get("RAY_CLUSTER_NAME")
    if name is None or "KUBERNETES_SERVICE_HOST" not in os.environ:
        return None
    from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient

    try:
        namespace = Path(_NAMESPACE_FILE).read_text().strip()
        return kuberay_types(KubernetesHttpApiClient(namespace).get(f"rayclusters/{name}"))
    except (OSError, ValueError, KeyError) as error:  # requests' errors are OSErrors
        what = str(error).splitlines()[0]
        return AutoscalerTypes(
            unknown=f"Kubernetes does not report the node types of RayCluster {name}: {what}"
        )


def kuberay_types(cluster: Mapping[str, Any]) -> AutoscalerTypes:
    """Returns the node types of a RayCluster, as Kubernetes holds it; none where it does not scale."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    if not cluster["spec"].get("enableInTreeAutoscaling"):
        return AutoscalerTypes()
    return AutoscalerTypes.of(_derive_autoscaling_config_from_ray_cr(dict(cluster)))
