"""Turns KubeRay's custom resource definitions into strict JSON Schemas, which refuse unknown fields.

The API server prunes unknown fields without a word, so that a misspelt key is simply not heard; these schemas
are what our example configurations are tested against. Made from KubeRay v1.7.0 (Apache-2.0):

    python make_schemas.py helm-chart/kuberay-operator/crds/ray.io_rayclusters.yaml .../ray.io_rayjobs.yaml
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import yaml

VERSION = "v1"
_DROPPED = {"description", "default", "format"}


def strict(schema: Any) -> Any:
    """The schema without prose, with every object closed and Kubernetes' int-or-string spelt out."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    # A property may be called "description" or "default": keywords are dropped, not property names.
    kept = {
        key: {name: strict(value) for name, value in body.items()} if key == "properties" else strict(body)
        for key, body in schema.items()
        if key not in _DROPPED and not key.startswith("x-kubernetes")
    }
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        kept.setdefault("additionalProperties", False)
    return kept


def schema_of(definition: dict[str, Any]) -> dict[str, Any]:
    """The strict schema of one resource, `metadata` left open as the API server's own business."""
    version = next(each for each in definition["spec"]["versions"] if each["name"] == VERSION)
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"].pop("status", None)
    schema["properties"]["metadata"] = {"type": "object", "required": ["name"]}
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return schema


def main(paths: list[str]) -> None:
    """Writes `KIND.schema.json.gz` beside this file for each definition; the bytes depend on nothing else."""
    for path in paths:
        definition = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        text = json.dumps(schema_of(definition), separators=(",", ":"), sort_keys=True)
        target = Path(__file__).parent / f"{definition['spec']['names']['kind']}.schema.json.gz"
        target.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))


if __name__ == "__main__":
    main(sys.argv[1:])
