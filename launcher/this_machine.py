"""What this machine has: CPUs and memory that we may use, GPUs that CUDA would show us."""

import ipaddress
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pynvml

from launcher.cluster import Cluster, Node

LOOPBACK = "127.0.0.1"
INTERNET = (socket.AF_INET, socket.AF_INET6)
CPU_QUOTA_FILES = ("cpu.max", "cpu.cfs_quota_us")
MEMORY_LIMIT_FILES = ("memory.max", "memory.limit_in_bytes")
"""Of cgroup version 2 and 1."""


def local_cluster(address: str = LOOPBACK) -> Cluster:
    """This machine as the only node, with all its names."""
    gpus = visible_gpus(os.environ)
    head = Node(
        id="head",
        address=address,
        head=True,
        cpus=min(len(os.sched_getaffinity(0)), *cgroup_cpus()),
        memory_bytes=min(psutil.virtual_memory().total, *cgroup_memory()),
        gpus=len(gpus),
        gpu_memory_bytes=min(gpus, default=0),
    )
    return Cluster(
        nodes=(head,),
        head_names=(socket.gethostname(), *own_addresses()),
        head_interfaces=interface_addresses(),
    )


def visible_gpus(environment: Mapping[str, str], nvml: Any = pynvml) -> list[int]:
    """Memory in bytes of each GPU that a process sees, in the order of its CUDA ids.

    Args:
        environment: Its CUDA_VISIBLE_DEVICES counts: ids or UUIDs, up to the first invalid one
            (Source: CUDA programming guide, environment variables).
        nvml: The driver's library.
    """
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []  # no driver, so no GPU that CUDA could use
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    memory: list[int] = []
    try:
        everything = ",".join(str(index) for index in range(nvml.nvmlDeviceGetCount()))
        for name in (everything if visible is None else visible).split(","):
            by_uuid, by_index = nvml.nvmlDeviceGetHandleByUUID, nvml.nvmlDeviceGetHandleByIndex
            name = name.strip()
            handle = by_index(int(name)) if name.isdigit() else by_uuid(name)
            memory.append(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except nvml.NVMLError:
        pass
    finally:
        nvml.nvmlShutdown()
    return memory


def visible_gpu_ids(environment: Mapping[str, str]) -> list[str]:
    """What CUDA calls each GPU that a process with this environment sees."""
    count = len(visible_gpus(environment))
    told = environment.get("CUDA_VISIBLE_DEVICES")
    ids = [str(index) for index in range(count)] if told is None else told.split(",")
    return [id.strip() for id in ids[:count]]


def cgroup_cpus(root: Path = Path("/")) -> Iterator[int]:
    """CPUs' worth of time that control groups allow; a part of a CPU counts as one."""
    yield 2**31
    for text, directory in _cgroup_values(root, CPU_QUOTA_FILES):
        quota, _, period = text.partition(" ")
        if not period:
            period = (directory / "cpu.cfs_period_us").read_text()
        if quota.isdigit():
            yield max(1, int(quota) // int(period))


def cgroup_memory(root: Path = Path("/")) -> Iterator[int]:
    """Bytes that control groups allow."""
    yield 2**63
    for text, _ in _cgroup_values(root, MEMORY_LIMIT_FILES):
        if text.isdigit():
            yield int(text)


def own_addresses() -> list[str]:
    """Every address of this machine, zones aside."""
    return [
        entry.address.partition("%")[0]
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family in INTERNET
    ]


def interface_addresses() -> dict[str, str]:
    """The address of each network interface: the first that is not link-local, IPv4 before IPv6."""
    found = {}
    for name, entries in psutil.net_if_addrs().items():
        addresses = sorted(
            (entry.family == socket.AF_INET6, entry.address)
            for entry in entries
            if entry.family in INTERNET and "%" not in entry.address
        )
        if addresses:
            found[name] = addresses[0][1]
    return found


def is_address_of_this_machine(address: str) -> bool:
    """Whether a name or address means this machine, asking the resolver."""
    own = set(own_addresses())
    if address == socket.gethostname():
        return True
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(address, None)}
    except (OSError, UnicodeError):  # the latter: it cannot be a name at all
        return False
    return all(ip in own or ipaddress.ip_address(ip).is_loopback for ip in found)


def _cgroup_values(root: Path, names: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    """Contents of the files so named in this process's control groups and the groups around them.

    Inside a container the paths may be the host's; the mounted root then is the container's own.
    """
    mounts = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for mount in (mounts, mounts / "unified", mounts / controllers):
            group = mount / path.lstrip("/")
            for directory in (group, *group.parents):
                for name in names:
                    if mount in (directory, *directory.parents) and (directory / name).is_file():
                        yield (directory / name).read_text().strip(), directory
