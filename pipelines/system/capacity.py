"""What a cluster has and can have: the nodes that are up, and the node types its autoscaler starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipelines.system.cluster_session import OWN, cluster_address, ray_session
from pipelines.system.machine import cpu_count, gpus, total_memory
from pipelines.system.node_types import HEAD_RESOURCE, UNLIMITED, AutoscalerTypes, autoscaler_types

_ACCELERATOR_RESOURCE = "accelerator_type:"  # Ray gives a node one unit of `accelerator_type:H100`
_ACCELERATOR_LABEL = "ray.io/accelerator-type"
_TYPE_LABEL = "ray.io/node-group"
_ALMOST = 1e-9  # resources are fractions with four digits in Ray, and floats here


@dataclass(frozen=True)
class NodeType:
    """Nodes that are alike.

    Attributes:
        name: the autoscaler's name for them; empty for nodes without a node type.
        resources: of one node, as Ray counts them: `CPU`, `GPU`, `memory` in bytes. Empty where the
            autoscaler's configuration leaves them out and no such node is up.
        accelerator: Ray's name for the node's GPUs (`H100`); None if unknown.
        up: nodes that are up now.
        least: nodes that the autoscaler keeps up.
        most: the largest possible number of nodes, including those that are up.
        scaled: the autoscaler starts and ends them.
    """

    name: str
    resources: Mapping[str, float]
    accelerator: str | None = None
    up: int = 0
    least: int = 0
    most: int = 0
    scaled: bool = False

    @property
    def gpus(self) -> float:
        """GPUs of one node."""
        return self.resources.get("GPU", 0.0)

    def holds(self, need: Mapping[str, float]) -> int:
        """Returns how many workers that each reserve `need` one node has room for."""
        counts = [
            int(self.resources.get(name, 0.0) / amount + _ALMOST) for name, amount in need.items() if amount
        ]
        return min(counts, default=0)

    def __str__(self) -> str:
        shape = ", ".join(
            f"{name}: {self.resources[name]:g}" for name in ("CPU", "GPU") if name in self.resources
        )
        kind = f" ({self.accelerator})" if self.accelerator else ""
        if self.scaled:
            most = "up to 1 node" if self.most == 1 else f"up to {self.most} nodes"
            most = "any number of nodes" if self.most >= UNLIMITED else most
            now = "1 is up now" if self.up == 1 else f"{self.up} are up now"
            return f"node type {self.name} can have {most} of {{{shape}}}{kind}; {now}"
        return f"{self.up} {'node has' if self.up == 1 else 'nodes have'} {{{shape}}}{kind}"


@dataclass(frozen=True)
class Capacity:
    """What workers can be placed on.

    Attributes:
        node_types: every kind of node there is or can be.
        local: this machine alone, which cannot grow.
        most_scaled: nodes that the autoscaler starts at most, over all its types; None without such a limit.
        unknown: why the autoscaler's node types could not be read; empty where they were, or where there is
            no autoscaler.
    """

    node_types: tuple[NodeType, ...]
    local: bool
    most_scaled: int | None = None
    unknown: str = ""

    def __str__(self) -> str:
        return "this machine" if self.local else "this cluster"

    def room(self, need: Mapping[str, float]) -> int:
        """Returns how many workers that each reserve `need` there can ever be."""
        left = float("inf") if self.most_scaled is None else self.most_scaled
        room = 0
        for each in sorted(self.node_types, key=lambda each: -each.holds(need)):
            nodes = int(min(each.most, left)) if each.scaled else each.most
            left -= nodes if each.scaled else 0
            room += nodes * each.holds(need)
        return room

    def room_now(self, need: Mapping[str, float]) -> int:
        """Returns how many such workers the nodes that are up have room for, were they idle."""
        return sum(each.up * each.holds(need) for each in self.node_types)

    def fitting(self, need: Mapping[str, float]) -> tuple[NodeType, ...]:
        """Returns the kinds of node on which such a worker can be placed, now or later."""
        return tuple(each for each in self.node_types if each.most and each.holds(need))

    @property
    def blind_spots(self) -> str:
        """What is unknown about the cluster and might be a GPU; empty if everything is known."""
        if self.unknown:
            return self.unknown
        bare = [each.name for each in self.node_types if each.most and not each.resources]
        return f"the resources of node type {', '.join(bare)} are not in its configuration" if bare else ""


def expected_capacity() -> Capacity:
    """Returns what a run in this process would have: the cluster it is part of or pointed to, or else this
    machine, which is looked at without starting Ray.

    Raises:
        EspanError: the cluster does not answer.
    """
    return machine_capacity() if cluster_address() == OWN else cluster_capacity()


def machine_capacity() -> Capacity:
    """Returns what this machine has."""
    found = gpus()
    resources = {"CPU": float(cpu_count()), "memory": float(total_memory())}
    if found:
        resources["GPU"] = float(len(found))
    kinds = {name for name in found if name}
    accelerator = kinds.pop() if len(kinds) == 1 else None
    return Capacity((NodeType("", resources, accelerator, up=1, most=1),), local=True)


def cluster_capacity() -> Capacity:
    """Returns what the cluster of `ray_session` has now, and what its autoscaler can add.

    Raises:
        EspanError: Ray does not start or does not answer.
    """
    import ray

    session = ray_session()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if session.started_here:
        return Capacity(_groups(nodes), local=True)
    return with_node_types(nodes, autoscaler_types(nodes))


def with_node_types(nodes: Iterable[Mapping[str, Any]], types: AutoscalerTypes) -> Capacity:
    """Returns the capacity of `nodes`, as `ray.nodes()` lists them, and of an autoscaler's node types."""
    up: dict[str, list[Mapping[str, Any]]] = {name: [] for name in types.configured}
    others: list[Mapping[str, Any]] = []
    for node in nodes:
        name = types.head if HEAD_RESOURCE in node["Resources"] else _type_of(node, types.configured)
        up.get(name or "", others).append(node)
    found = []
    for name, configuration in types.configured.items():
        known = NodeType(
            name,
            configuration.get("resources") or {},
            _accelerator(configuration.get("resources") or {}, configuration.get("labels") or {}),
            up=len(up[name]),
            least=int(configuration.get("min_workers", 0)),
            most=max(int(configuration.get("max_workers", types.most_workers or 0)), len(up[name])),
            scaled=True,
        )
        for node in up[name][:1]:  # what a node really has counts for more than its configuration
            (actual,) = _groups([node])
            resources = dict(actual.resources)
            if known.resources and "memory" not in known.resources:
                # The autoscaler starts no further node for a resource that its configuration leaves out.
                resources.pop("memory", None)
            known = replace(known, resources=resources, accelerator=actual.accelerator or known.accelerator)
        found.append(replace(known, scaled=name != types.head))
    return Capacity(
        (*found, *_groups(others)), local=False, most_scaled=types.most_workers, unknown=types.unknown
    )


def _type_of(node: Mapping[str, Any], types: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Returns the node type of a node: the one it is labelled with, else the only one of its shape."""
    label = (node.get("Labels") or {}).get(_TYPE_LABEL)
    if label in types:
        return str(label)
    shape = _shape(node["Resources"])
    alike = [
        name for name, one in types.items() if one.get("resources") and _shape(one["resources"]) == shape
    ]
    return alike[0] if len(alike) == 1 and label is None else None


def _groups(nodes: Iterable[Mapping[str, Any]]) -> tuple[NodeType, ...]:
    """Returns nodes that no node type stands for, those alike together."""
    groups: dict[Any, NodeType] = {}
    for node in nodes:
        resources = {
            name: float(amount)
            for name, amount in node["Resources"].items()
            if not name.startswith(("node:", _ACCELERATOR_RESOURCE)) and name != "object_store_memory"
        }
        accelerator = _accelerator(node["Resources"], node.get("Labels") or {})
        known = groups.setdefault((_shape(resources), accelerator), NodeType("", resources, accelerator))
        memory = min(known.resources.get("memory", 0.0), resources.get("memory", 0.0))
        groups[_shape(resources), accelerator] = replace(
            known, resources={**known.resources, "memory": memory}, up=known.up + 1, most=known.most + 1
        )
    return tuple(groups.values())


def _shape(resources: Mapping[str, float]) -> tuple[float, float]:
    return float(resources.get("CPU", 0)), float(resources.get("GPU", 0))


def _accelerator(resources: Mapping[str, float], labels: Mapping[str, str]) -> str | None:
    named = [
        name.removeprefix(_ACCELERATOR_RESOURCE)
        for name in resources
        if name.startswith(_ACCELERATOR_RESOURCE)
    ]
    return named[0] if named else labels.get(_ACCELERATOR_LABEL)
