"""How old what front ends know of a thousand ranks is, and what the coordinator costs.

    python benchmarks/coordinator_scale.py [--ranks 1000] [--rate 20] [--seconds 20] [--senders 2]

The coordinator is the real process. The ranks are simulated, many to a process, but each has its
own sockets and does what a real one's link does: registers, listens to what engine cores are told,
sends heartbeats, loads (`--rate` a second) and metrics. One front end's link, in this process,
takes the snapshots. Each load carries the time of its sending.

Prints one JSON object. Ages are in milliseconds: `age` is that of each rank's load when a snapshot
has been decoded in the front end, `oldest` just before the next one replaces it. `cores` is
processor time of the coordinator (all its threads) per second, `sender_cores` of the simulation,
which needs a machine that has so many to spare: else the ages show its waiting.
"""

import argparse
import gc
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing.synchronize import Event

import msgspec
import numpy as np
import psutil
import zmq

from engine import transport
from engine.checkpoints.tiny import TINY_FACTS
from engine.config import (
    BalancerOptions,
    CacheSettings,
    CoordinatorOptions,
    Device,
    DType,
    FrontendOptions,
    HealthOptions,
    Kernels,
    LogLevel,
    LogOptions,
    ModelKind,
    ModelOptions,
    ProcessSpec,
    Quantization,
    RestartOptions,
    Role,
    Settings,
)
from engine.entrypoint import Launch
from engine.lifeline import frame
from engine.link import CoordinatorLink
from engine.metrics import Metrics, MetricValue
from engine.protocol import (
    FROM_COORDINATOR,
    FRONTENDS_TOPIC,
    Heartbeat,
    LoadReport,
    Loads,
    Membership,
    MetricsReport,
    MetricsSnapshot,
    Phase,
    ProcessState,
    RankLoad,
    Register,
    Registered,
)

HEARTBEAT_S = HealthOptions().heartbeat_s
METRICS_S = CoordinatorOptions().metrics_interval_s
DEADLINE_S = 120.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=20.0, help="load reports a second and rank")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--senders", type=int, default=2, help="processes that simulate the ranks")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fl") as directory:
        print(json.dumps(measure(args, f"ipc://{directory}/coordinator")))  # noqa: T201


def measure(args: argparse.Namespace, endpoint: str) -> dict[str, object]:
    """Starts everything, waits until all ranks are known, and measures for a while."""
    coordinator, lifeline = start_coordinator(args.ranks, endpoint)
    watching = Watching(args.ranks)
    hello = Register("frontend-0", 1, Role.frontend, None, "head", os.getpid(), [], {}, {})
    link = CoordinatorLink(
        *(endpoint, hello, HEARTBEAT_S, watching.take_membership),
        on_loads=watching.take_loads,
        on_metrics=watching.take_metrics,
    )
    link.start()
    link.enter_phase(Phase.ready)
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    shares = np.array_split(range(args.ranks), args.senders)
    senders = [
        context.Process(target=simulate, args=(endpoint, share.tolist(), args.rate, stop))
        for share in shares
    ]
    for sender in senders:
        sender.start()
    assert watching.all_ready.wait(DEADLINE_S), "not all ranks became ready"
    process = psutil.Process(coordinator.pid)
    watching.begin()
    sending = [psutil.Process(sender.pid) for sender in senders]
    cpu_s, sending_s, began = cpu_of(process), sum(map(cpu_of, sending)), time.monotonic()
    threading.Event().wait(args.seconds)
    elapsed_s = time.monotonic() - began
    cores = (cpu_of(process) - cpu_s) / elapsed_s
    sender_cores = (sum(map(cpu_of, sending)) - sending_s) / elapsed_s
    figures = watching.figures(elapsed_s)
    memory_mib = process.memory_info().rss / 2**20
    stop.set()
    for sender in senders:
        sender.join(DEADLINE_S)
    link.close()
    os.close(lifeline)
    coordinator.wait(DEADLINE_S)
    return {
        "ranks": args.ranks,
        "wanted_reports_per_s": args.ranks * args.rate,
        **figures,
        "cores": round(cores, 3),
        "sender_cores": round(sender_cores, 3),
        "memory_mib": round(memory_mib),
    }


def start_coordinator(num_ranks: int, endpoint: str) -> tuple[subprocess.Popen[bytes], int]:
    """The coordinator's process, as the launcher starts it, and its lifeline."""
    launch = Launch(
        process=ProcessSpec(name="coordinator", role=Role.coordinator, node="head"),
        settings=make_settings(num_ranks),
        coordinator_endpoint=endpoint,
        incarnation=1,
    )
    theirs, ours = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "engine.entrypoint", str(theirs)],
        pass_fds=(theirs,),
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    os.write(ours, frame(msgspec.msgpack.encode(launch)))
    return process, ours


def make_settings(num_ranks: int) -> Settings:
    return Settings(
        name="benchmark",
        dp=num_ranks,
        tp=1,
        model=ModelOptions(kind=ModelKind.dummy),
        model_name="benchmark",
        facts=TINY_FACTS,
        dtype=DType.float32,
        device=Device.cpu,
        kernels=Kernels.auto,
        quantization=Quantization.none,
        seed=0,
        max_model_len=512,
        max_num_seqs=64,
        max_num_batched_tokens=1024,
        max_step_s=0.15,
        cache=CacheSettings(block_size=16, num_blocks=512, prefix_caching=True),
        frontend=FrontendOptions(),
        balancer=BalancerOptions(),
        health=HealthOptions(),
        coordinator=CoordinatorOptions(),
        restart=RestartOptions(),
        log=LogOptions(level=LogLevel.warning),
        drain_s=0,
    )


def cpu_of(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


class Watching:
    """What the front end's link is told."""

    def __init__(self, num_ranks: int) -> None:
        self.all_ready = threading.Event()
        self._num_ranks = num_ranks
        self._is_measuring = False
        self._sent_s: np.ndarray | None = None
        self._ages: list[np.ndarray] = []
        self._oldest: list[np.ndarray] = []
        self._max_suspect = 0
        self._num_reports: list[float] = []

    def begin(self) -> None:
        self._is_measuring = True

    def take_membership(self, membership: Membership) -> None:
        states = [m.state for m in membership.members if m.role is Role.engine]
        if not self._is_measuring and len(states) == self._num_ranks:
            if all(state is ProcessState.ready for state in states):
                self.all_ready.set()
        elif self._is_measuring:
            num_suspect = sum(state is not ProcessState.ready for state in states)
            self._max_suspect = max(self._max_suspect, num_suspect)

    def take_loads(self, loads: Loads) -> None:
        now = time.monotonic()
        if not self._is_measuring:
            return
        if self._sent_s is not None:
            self._oldest.append(now - self._sent_s)
        self._sent_s = np.array([load.step_s for load in loads.ranks])
        self._ages.append(now - self._sent_s)

    def take_metrics(self, snapshot: MetricsSnapshot) -> None:
        """Notes how many load reports the coordinator says it has taken."""
        own = next(report for report in snapshot.processes if report.role is Role.coordinator)
        numbers = {value.labels: value.value for value in own.values}
        if self._is_measuring:
            self._num_reports.append(numbers.get((LoadReport.__name__,), 0.0))

    def figures(self, elapsed_s: float) -> dict[str, object]:
        self._is_measuring = False
        return {
            "snapshots_per_s": round(len(self._ages) / elapsed_s, 1),
            "reports_per_s": round(self._reports_per_s()),
            "max_suspect": self._max_suspect,
            "age_ms": percentiles(self._ages),
            "oldest_ms": percentiles(self._oldest),
        }

    def _reports_per_s(self) -> float:
        numbers = self._num_reports
        return (numbers[-1] - numbers[0]) / (len(numbers) - 1) / METRICS_S if numbers[1:] else 0.0


def percentiles(ages_s: list[np.ndarray]) -> dict[str, float]:
    values = 1000 * np.concatenate(ages_s)
    p50, p99, most = np.percentile(values, (50, 99, 100))
    return {"p50": round(p50, 1), "p99": round(p99, 1), "max": round(most, 1)}


def simulate(endpoint: str, ranks: list[int], rate: float, stop: Event) -> None:
    """Is these ranks until told to stop."""
    with zmq.Context() as context:
        context.set(zmq.MAX_SOCKETS, 4 * len(ranks) + 16)
        simulated = [Simulated(context, endpoint, rank) for rank in ranks]
        gc.freeze()
        turn_s, turn = 1 / (rate * len(ranks)), 0
        began = time.monotonic()
        while not stop.is_set():
            simulated[turn % len(ranks)].take_turn()
            turn += 1
            early_s = began + turn * turn_s - time.monotonic()
            if early_s > 0.001:
                time.sleep(early_s)
        for each in simulated:
            each.close()


class Simulated:
    """The sockets of one rank and what its link does, a turn being one load report."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, rank: int) -> None:
        self._name, self._rank = f"engine-{rank}", rank
        self._dealer = transport.connect(context, zmq.DEALER, endpoint)
        self._published = context.socket(zmq.SUB)
        self._published.setsockopt(zmq.SUBSCRIBE, FRONTENDS_TOPIC)
        self._published.setsockopt(zmq.LINGER, 0)
        self._values = example_values()
        self._progress = 0
        # each at its own time, as real ones are
        self._beat_due_s = time.monotonic() + rank % 100 / 100 * HEARTBEAT_S
        self._metrics_due_s = time.monotonic() + rank % 100 / 100 * METRICS_S
        versions = {"flotilla": "0.1.0", "python": "3.11.2", "torch": "2.13.0"}
        hello = Register(
            self._name, 1, Role.engine, rank, "head", 1, [], {}, versions, phase=Phase.ready
        )
        transport.send(self._dealer, hello)

    def take_turn(self) -> None:
        now = time.monotonic()
        self._receive()
        load = RankLoad(self._rank, 1, 3, 64, 12345, 9876, 0.5, now)
        transport.send(self._dealer, LoadReport(self._name, load))
        if now >= self._beat_due_s:
            self._beat_due_s = now + HEARTBEAT_S
            self._progress += 1
            transport.send(self._dealer, Heartbeat(self._name, 1, self._progress, 64))
        if now >= self._metrics_due_s:
            self._metrics_due_s = now + METRICS_S
            report = MetricsReport(self._name, 1, Role.engine, self._rank, self._values)
            transport.send(self._dealer, report)

    def close(self) -> None:
        self._dealer.close()
        self._published.close()

    def _receive(self) -> None:
        while self._dealer.poll(0):
            answer = FROM_COORDINATOR.decode(self._dealer.recv())
            if isinstance(answer, Registered):
                self._published.connect(answer.publish_endpoint)
        while self._published.poll(0):
            self._published.recv_multipart()


def example_values() -> list[MetricValue]:
    """As many as a real engine core reports, with counts of several digits."""
    values = Metrics(Role.engine).values()
    return [
        MetricValue(v.name, v.labels, 1234.5678, tuple(range(1000, 1000 + len(v.counts))))
        for v in values
    ]


if __name__ == "__main__":
    main()
