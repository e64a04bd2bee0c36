"""Who is there, in which state, and since when: pure, the clock is an argument."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from engine.config import ProcessSpec, Role
from engine.protocol import (
    DeploymentState,
    Heartbeat,
    Member,
    Membership,
    Phase,
    ProcessState,
    Register,
)


@dataclass(slots=True)
class _Process:
    """What is known of one incarnation. Times are the coordinator's clock, in seconds."""

    hello: Register
    state: ProcessState
    phase: Phase
    since: float
    heard: float
    progressed: float
    progress: int = 0
    num_requests: int = 0
    reason: str = ""
    remark: str = ""


@dataclass(slots=True)
class Registry:
    """Processes of one deployment. Every change of a state makes a new membership epoch.

    Args:
        silence_s: A process is suspect after so long without a heartbeat.
        progress_s: A rank is suspect after so long without progress while it has work.
    """

    silence_s: float
    progress_s: float
    epoch: int = 0
    state: DeploymentState = DeploymentState.serving
    _planned: dict[str, ProcessSpec] = field(default_factory=dict)
    _processes: dict[str, _Process] = field(default_factory=dict)

    def apply_plan(self, processes: Iterable[ProcessSpec]) -> None:
        self._planned = {process.name: process for process in processes}
        self.epoch += 1

    def register(self, hello: Register, now: float) -> bool:
        """Takes a process in. False if it is lost, or a newer incarnation of it is there."""
        known = self._processes.get(hello.name)
        if known is not None and hello.incarnation <= known.hello.incarnation:
            return hello.incarnation == known.hello.incarnation and self._is_alive(known)
        self._processes[hello.name] = _Process(
            hello, ProcessState.starting, Phase.importing, now, now, now
        )
        self.epoch += 1
        return True

    def knows(self, name: str, incarnation: int) -> bool:
        known = self._processes.get(name)
        return known is not None and known.hello.incarnation >= incarnation

    def enter_phase(
        self, name: str, incarnation: int, phase: Phase, now: float, remark: str = ""
    ) -> None:
        process = self._current(name, incarnation)
        if process is None or process.phase is phase:
            return
        process.phase, process.remark = phase, remark
        process.heard = process.progressed = now
        if phase is Phase.ready:
            self._enter(process, ProcessState.ready, now)
        self.epoch += 1

    def heartbeat(self, beat: Heartbeat, now: float) -> None:
        process = self._current(beat.name, beat.incarnation)
        if process is None:
            return
        process.heard = now
        process.num_requests = beat.num_requests
        if beat.progress != process.progress or not beat.num_requests:
            process.progress = beat.progress
            process.progressed = now
        if process.state is ProcessState.suspect and not self._complaint(process, now):
            self._enter(process, ProcessState.ready, now)

    def tick(self, now: float) -> None:
        """Makes ranks and front ends suspect that are silent or stuck."""
        for process in self._processes.values():
            if process.state is ProcessState.ready:
                complaint = self._complaint(process, now)
                if complaint:
                    self._enter(process, ProcessState.suspect, now, complaint)

    def drained(self, name: str, incarnation: int, now: float) -> None:
        process = self._current(name, incarnation)
        if process is not None and self.state is DeploymentState.draining:
            self._enter(process, ProcessState.drained, now)

    def begin_drain(self) -> None:
        self.state = DeploymentState.draining
        self.epoch += 1

    def lose(self, name: str, incarnation: int, reason: str, now: float) -> None:
        """That incarnation is gone, or fenced: it never comes back."""
        process = self._current(name, incarnation)
        if process is not None:
            self._enter(process, ProcessState.lost, now, reason)

    def members(self, now: float) -> list[Member]:
        return [_member(process, now) for process in self._processes.values()]

    def membership(self, now: float) -> Membership:
        return Membership(
            epoch=self.epoch,
            state=self.state,
            members=self.members(now),
            missing=[name for name in self._planned if name not in self._processes],
            drift=self.drift(),
        )

    def drift(self) -> list[str]:
        """Differences between the plan and who registered, one sentence each."""
        found = []
        for name, process in self._processes.items():
            spec = self._planned.get(name)
            if not self._planned:
                continue
            if spec is None:
                found.append(f"{name} registered, but is not in the plan")
                continue
            devices = [device for worker in spec.workers for device in worker.devices]
            for word, planned, actual in (
                ("role", spec.role.value, process.hello.role.value),
                ("rank", spec.rank, process.hello.rank),
                ("node", spec.node, process.hello.node),
                ("devices", devices, process.hello.devices),
            ):
                if planned != actual:
                    found.append(f"{name}: {word} {actual}, planned {planned}")
        return found

    def _current(self, name: str, incarnation: int) -> _Process | None:
        process = self._processes.get(name)
        if (
            process is None
            or process.hello.incarnation != incarnation
            or not self._is_alive(process)
        ):
            return None
        return process

    def _is_alive(self, process: _Process) -> bool:
        return process.state is not ProcessState.lost

    def _complaint(self, process: _Process, now: float) -> str:
        if now - process.heard > self.silence_s:
            return f"silent for {now - process.heard:.1f} s"
        must_step = process.hello.role is Role.engine
        if must_step and now - process.progressed > self.progress_s:
            return f"has work but makes no progress for {now - process.progressed:.1f} s"
        return ""

    def _enter(self, process: _Process, state: ProcessState, now: float, reason: str = "") -> None:
        process.state, process.since, process.reason = state, now, reason
        self.epoch += 1


def _member(process: _Process, now: float) -> Member:
    hello = process.hello
    return Member(
        name=hello.name,
        role=hello.role,
        rank=hello.rank,
        incarnation=hello.incarnation,
        node=hello.node,
        pid=hello.pid,
        devices=hello.devices,
        state=process.state,
        phase=process.phase,
        since_s=round(now - process.since, 3),
        reason=process.reason,
        endpoints=hello.endpoints,
        versions=hello.versions,
        num_requests=process.num_requests,
        remark=process.remark,
    )
