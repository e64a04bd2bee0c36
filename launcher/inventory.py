"""The machines written down in a YAML file (`cluster=file`)."""

import difflib
from typing import Any

import msgspec
import yaml

from launcher.cluster import Cluster, ClusterKind, Node
from launcher.errors import Refused
from launcher.sizes import parse_bytes

EXAMPLE = "nodes: [{id: head, head: true, cpus: 16, memory_bytes: 64GiB, gpus: 0}]"
KEYS = Node.__struct_fields__
CLUSTER_KEYS = ("nodes", "can_add", "head_names", "head_interfaces", "holders")


def read_inventory(text: str, path: str) -> Cluster:
    """The cluster that an inventory describes.

    Args:
        text: Of the file, with keys of `Cluster`: `nodes:`, a list of nodes with the keys of
            `Node`. Sizes may be written as 64GiB.
        path: Of the file, for messages.

    Raises:
        Refused: The message names the file, the node and the key.
    """
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise Refused(f"{path}:{line} is not YAML: {_reason(error)}", EXAMPLE) from None
    nodes = content.get("nodes") if isinstance(content, dict) else None
    if not isinstance(nodes, list) or not nodes:
        raise Refused(f"{path}: nodes must be a list of nodes: {nodes!r}", EXAMPLE)
    for key in content:
        if key not in CLUSTER_KEYS:
            raise Refused(f"{path}: there is no key {key}: {content[key]!r}", EXAMPLE)
    found = tuple(_node(raw, index, path) for index, raw in enumerate(nodes))
    try:
        return msgspec.convert(content | {"nodes": found, "kind": ClusterKind.file}, Cluster)
    except msgspec.ValidationError as error:
        reason, _, key = str(error).partition(" - at `$.")
        if not key:  # of Cluster itself
            raise Refused(
                f"{path}: {error}", "head: true on one node, an id of its own on each"
            ) from None
        raise Refused(f"{path}: {key.rstrip('`')}: {reason}", EXAMPLE) from None


def _node(raw: Any, index: int, path: str) -> Node:
    if not isinstance(raw, dict):
        raise Refused(f"{path}: node {index} must have keys: {raw!r}", EXAMPLE)
    where = f"{path}: node {raw.get('id', index)}"
    for key in raw:
        if key not in KEYS:
            close = difflib.get_close_matches(str(key), KEYS, n=1) or [", ".join(KEYS)]
            raise Refused(f"{where}: there is no key {key}: {raw[key]!r}", f"keys: {close[0]}")
    sized = {key: _size(value, key, where) for key, value in raw.items()}
    try:
        node = msgspec.convert(sized, Node)
    except msgspec.ValidationError as error:
        reason, _, key = str(error).partition(" - at `$.")
        raise Refused(f"{where}: {key.rstrip('`') or 'id'}: {reason}", EXAMPLE) from None
    for key in ("cpus", "memory_bytes", "gpus", "gpu_memory_bytes"):
        if getattr(node, key) < 0:
            raise Refused(f"{where}: {key} must be at least 0: {getattr(node, key)}", f"{key}: 0")
    return node


def _size(value: Any, key: str, where: str) -> Any:
    """A size written as text in bytes; any other value as it is."""
    if not key.endswith("_bytes") or not isinstance(value, str):
        return value
    try:
        return parse_bytes(value)
    except ValueError:
        raise Refused(
            f"{where}: {key} must be a size such as 64GiB: {value!r}", f"{key}: 64GiB"
        ) from None


def _reason(error: yaml.YAMLError) -> str:
    return getattr(error, "problem", None) or str(error).partition("\n")[0]
