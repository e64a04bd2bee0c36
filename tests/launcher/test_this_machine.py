"""What is found on this machine, with made-up control groups and drivers."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from launcher.this_machine import cgroup_cpus, cgroup_memory, local_cluster, visible_gpus

GIB = 2**30


def test_this_machine_is_the_head():
    head = local_cluster().head
    assert (head.id, head.address) == ("head", "127.0.0.1")
    assert 1 <= head.cpus <= len(os.sched_getaffinity(0))
    assert head.memory_bytes > 0
    assert (head.gpus > 0) == (head.gpu_memory_bytes > 0)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_limits_of_control_groups_version_2_count_whichever_group_has_them(tmp_path: Path):
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/box\n",
            "sys/fs/cgroup/cpu.max": "max 100000\n",
            "sys/fs/cgroup/pod/cpu.max": "350000 100000\n",
            "sys/fs/cgroup/pod/box/cpu.max": "max 100000\n",
            "sys/fs/cgroup/pod/memory.max": "max\n",
            "sys/fs/cgroup/pod/box/memory.max": f"{3 * GIB}\n",
        },
    )
    assert min(cgroup_cpus(root)) == 3
    assert min(cgroup_memory(root)) == 3 * GIB


def test_limits_of_control_groups_version_1(tmp_path: Path):
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/box\n2:cpu,cpuacct:/box\n0::/\n",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": f"{GIB}\n",
        },
    )
    assert min(cgroup_cpus(root)) == 1  # half a CPU still runs one thread
    assert min(cgroup_memory(root)) == GIB


def test_inside_a_container_the_mounted_root_is_its_own_group(tmp_path: Path):
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/docker/0123\n",
            "sys/fs/cgroup/cpu.max": "200000 100000\n",
        },
    )
    assert min(cgroup_cpus(root)) == 2


def test_no_control_groups_mean_no_limit(tmp_path: Path):
    assert min(cgroup_cpus(tmp_path)) >= 2**31
    assert min(cgroup_memory(tmp_path)) >= 2**63


class NvmlError(Exception):
    pass


@dataclass
class FakeMemory:
    total: int


class FakeNvml:
    """A driver with GPUs of these sizes in GiB, or no driver."""

    NVMLError = NvmlError

    def __init__(self, *sizes: int, driver: bool = True) -> None:
        self.sizes, self.driver, self.open = sizes, driver, False

    def nvmlInit(self) -> None:
        if not self.driver:
            raise NvmlError("library not found")
        self.open = True

    def nvmlShutdown(self) -> None:
        self.open = False

    def nvmlDeviceGetCount(self) -> int:
        return len(self.sizes)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index >= len(self.sizes):
            raise NvmlError("invalid argument")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        if not uuid.startswith("GPU-"):
            raise NvmlError("not found")
        return self.nvmlDeviceGetHandleByIndex(int(uuid[4:]))

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> FakeMemory:
        return FakeMemory(self.sizes[handle] * GIB)


@pytest.mark.parametrize(
    ("visible", "sizes"),
    [
        (None, [40, 80, 24]),
        ("", []),
        ("-1", []),
        ("2,0", [24, 40]),
        ("1, 7, 0", [80]),  # CUDA stops at the first that is not there
        ("GPU-1", [80]),
        ("NoDevFiles", []),
    ],
)
def test_the_gpus_are_those_that_cuda_shows(visible: str | None, sizes: list[int]):
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    nvml: Any = FakeNvml(40, 80, 24)
    assert visible_gpus(environment, nvml) == [size * GIB for size in sizes]
    assert not nvml.open


def test_without_a_driver_there_are_no_gpus():
    assert visible_gpus({}, FakeNvml(driver=False)) == []
