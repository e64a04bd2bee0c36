"""CPU and memory of the processes that serve, while they do."""

import contextlib
import threading
from collections.abc import Iterable, Mapping

import psutil

from engine.protocol import Member
from launcher.bench.results import ProcessUse

_SAMPLE_S = 2.0
"""Between two looks at memory: each walks through all pages of a process, and holds it up."""
_TITLE = "flotilla "
"""How the command line of a Flotilla's processes begins."""


def local_processes(members: Iterable[Member]) -> dict[str, psutil.Process]:
    """Those of a deployment that are on this machine, by name; a pid alone does not say that."""
    found = {}
    for member in members:
        try:
            process = psutil.Process(member.pid)
            words = " ".join(process.cmdline()).split()
        except psutil.Error:
            continue
        if member.name in words and words[0] == _TITLE.strip():
            found[member.name] = process
    return dict(sorted(found.items()))


def process_tree(pid: int) -> dict[str, psutil.Process]:
    """A process and all that come from it, by name and pid.

    Raises:
        psutil.NoSuchProcess: There is no such process.
    """
    root = psutil.Process(pid)
    processes = (root, *root.children(recursive=True))
    return {f"{process.name()} {process.pid}": process for process in processes}


class Usage:
    """Measures processes between `start` and `stop`, in a thread of its own."""

    def __init__(self, processes: Mapping[str, psutil.Process]) -> None:
        self._processes = processes
        self._first_cpu_s: dict[str, float] = {}
        self._last_cpu_s: dict[str, float] = {}
        self._pss: dict[str, int] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def start(self) -> None:
        self._look_at_cpus()
        self._first_cpu_s = dict(self._last_cpu_s)
        self._thread.start()

    def stop(self) -> None:
        self._look_at_cpus()
        self._stopping.set()
        self._thread.join()

    def of(self, duration_s: float) -> list[ProcessUse]:
        """What each took.

        Args:
            duration_s: For how long it was busy.
        """
        return [
            ProcessUse(
                name=name,
                pid=process.pid,
                cpu_s=(cpu_s := self._last_cpu_s[name] - self._first_cpu_s[name]),
                cpu_share=cpu_s / duration_s if duration_s > 0 else 0.0,
                pss_bytes=self._pss.get(name, 0),
            )
            for name, process in self._processes.items()
            if name in self._first_cpu_s
        ]

    def _look_at_cpus(self) -> None:
        """Of one that has ended what was seen last remains."""
        for name, process in self._processes.items():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                self._last_cpu_s[name] = float(times.user + times.system)

    def _sample(self) -> None:
        """Once more at the end: a short stage is seen at all."""
        while True:
            is_last = self._stopping.wait(_SAMPLE_S)
            for name, process in self._processes.items():
                self._pss[name] = max(self._pss.get(name, 0), _pss(process))
            if is_last:
                return
            self._look_at_cpus()


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:  # it has ended, or is somebody else's
        return 0
