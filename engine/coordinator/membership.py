"""Who is there, in which state, and since when: pure, the clock is an argument."""

from dataclasses import dataclass, field

from engine import __version__
from engine.config import ProcessSpec, Role
from engine.protocol import (
    LAUNCHER,
    ApplyPlan,
    DeploymentState,
    Heartbeat,
    Member,
    Membership,
    Phase,
    ProcessState,
    Register,
    first_epoch,
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
    patience_s: float = 0.0
    num_requests: int = 0
    reason: str = ""
    remark: str = ""
    is_unheard: bool = False
    """The launcher says that it is there; it has not registered with this coordinator yet."""


@dataclass(slots=True)
class Registry:
    """Processes of one deployment. Every change of a state makes a new membership epoch.

    A restarted coordinator knows nobody: its registry is not settled, and worth nothing to others,
    before the launcher has told the plan and every process that is there has registered again,
    which each does when its next heartbeat is answered. It is settled without those that have not
    when nobody has registered for two heartbeats, or `silence_s` after the plan: they are suspect.

    Args:
        silence_s: A process is suspect after so long without a heartbeat, or without progress of
            its main loop if it has not told that this may take longer.
        heartbeat_s: Between two heartbeats of a process.
        interval_s: Between two calls of `tick` in a coordinator that is not late.
        incarnation: Of the coordinator.
    """

    silence_s: float
    heartbeat_s: float
    interval_s: float
    incarnation: int = 1
    epoch: int = 0
    state: DeploymentState = DeploymentState.serving
    is_settled: bool = False
    _planned: dict[str, ProcessSpec] = field(default_factory=dict)
    _incarnations: dict[str, int] = field(default_factory=dict)
    _told_at: float | None = None
    _registered_at: float = 0.0
    _processes: dict[str, _Process] = field(default_factory=dict)
    _looked_at: float | None = None

    def __post_init__(self) -> None:
        self.epoch = first_epoch(self.incarnation)
        self.is_settled = self.incarnation == 1

    def apply_plan(self, told: ApplyPlan, now: float) -> None:
        """Takes the launcher's word for what shall be and who is there."""
        self._planned = {process.name: process for process in told.processes}
        self._incarnations = told.incarnations
        self.state = told.state
        if self._told_at is None:
            self._told_at = now
        self.epoch += 1

    def register(self, hello: Register, now: float) -> bool:
        """Takes a process in. False if it is lost, or a newer incarnation of it is there."""
        known = self._processes.get(hello.name)
        if known is not None and not (known.is_unheard and self._is_alive(known)):
            if hello.incarnation == known.hello.incarnation:
                return self._is_alive(known)
            if hello.incarnation < known.hello.incarnation:
                return False
        is_ready = hello.phase is Phase.ready
        state = ProcessState.ready if is_ready else ProcessState.starting
        self._processes[hello.name] = _Process(
            hello, state, hello.phase, now, now, now, remark=hello.remark
        )
        self._registered_at = now
        self.epoch += 1
        return True

    def knows(self, name: str, incarnation: int) -> bool:
        """False: it has to register again."""
        if name == LAUNCHER:
            return bool(self._planned)
        known = self._processes.get(name)
        if known is None or (known.is_unheard and self._is_alive(known)):
            return False
        return known.hello.incarnation >= incarnation

    def is_current(self, name: str, incarnation: int) -> bool:
        """Whether this incarnation is there, and no newer one."""
        return self._current(name, incarnation) is not None

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
        process.num_requests, process.patience_s = beat.num_requests, beat.patience_s
        if beat.progress != process.progress:
            process.progress, process.progressed = beat.progress, now
        if process.state is ProcessState.suspect and not self._complaint(process, now):
            self._enter(process, ProcessState.ready, now)

    def tick(self, now: float) -> None:
        """Makes ranks and front ends suspect that are silent or stuck.

        What the coordinator itself has slept through is not held against them: their messages are
        still on the way to it.
        """
        looked_at = self._looked_at if self._looked_at is not None else now
        late_s = now - looked_at - self.interval_s
        self._looked_at = now
        if not self.is_settled:
            self._settle(now)
        for process in self._processes.values():
            if late_s > self.silence_s / 2:
                process.heard = min(now, process.heard + late_s)
                process.progressed = min(now, process.progressed + late_s)
            if process.state is ProcessState.ready:
                complaint = self._complaint(process, now)
                if complaint:
                    self._enter(process, ProcessState.suspect, now, complaint)

    def drained(self, name: str, incarnation: int, now: float) -> None:
        process = self._current(name, incarnation)
        if process is not None and self.state is DeploymentState.draining:
            self._enter(process, ProcessState.drained, now)

    def lose(self, name: str, incarnation: int, reason: str, now: float) -> None:
        """That incarnation is gone, or fenced: it never comes back."""
        process = self._current(name, incarnation)
        if process is not None:
            self._enter(process, ProcessState.lost, now, reason)

    def members(self, now: float) -> list[Member]:
        return [
            _member(process, self._reason(process, now), now)
            for process in self._processes.values()
        ]

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
            if not self._planned or process.is_unheard:
                continue
            if spec is None:
                found.append(f"{name} registered, but is not in the plan")
                continue
            hello = process.hello
            devices = [device for worker in spec.workers for device in worker.devices]
            num_devices = sum(worker.num_gpus for worker in spec.workers)
            for word, planned, actual in (
                ("role", spec.role.value, hello.role.value),
                ("rank", spec.rank, hello.rank),
                ("node", spec.node, hello.node),
                # where the plan has no ids, their number
                (
                    "devices",
                    devices or num_devices,
                    hello.devices if devices else len(hello.devices),
                ),
                ("flotilla", __version__, hello.versions.get("flotilla", __version__)),
            ):
                if planned != actual:
                    found.append(f"{name}: {word} {actual}, planned {planned}")
        return found

    def _settle(self, now: float) -> None:
        if self._told_at is None:
            return
        quiet_at = max(self._told_at, self._registered_at) + 2 * self.heartbeat_s
        settle_at = min(quiet_at, self._told_at + self.silence_s)
        unheard = [
            (spec, self._incarnations[spec.name])
            for spec in self._planned.values()
            if spec.name in self._incarnations
            and not self.knows(spec.name, self._incarnations[spec.name])
        ]
        if unheard and now < settle_at:
            return
        for spec, incarnation in unheard:
            self._processes[spec.name] = _unheard(spec, incarnation, now)
        self.is_settled = True
        self.epoch += 1

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

    def _reason(self, process: _Process, now: float) -> str:
        """Why it is in its state; of a suspect one, with the time that it has been so until now."""
        if process.state is ProcessState.suspect and not process.is_unheard:
            return self._complaint(process, now) or process.reason
        return process.reason

    def _complaint(self, process: _Process, now: float) -> str:
        silent_s = now - process.heard
        must_step = process.hello.role is not Role.coordinator
        patience_s = max(self.silence_s, process.patience_s)
        is_stuck = must_step and now - process.progressed > patience_s
        # One that is stopped makes no progress either, and did so last before its last heartbeat.
        if silent_s > self.silence_s or (is_stuck and silent_s > self.silence_s / 2):
            return f"silent for {silent_s:.1f} s"
        if is_stuck:
            has_work = process.num_requests > 0
            fault = "has work but makes no progress" if has_work else "has no work but is stuck"
            return f"{fault} for {now - process.progressed:.1f} s"
        return ""

    def _enter(self, process: _Process, state: ProcessState, now: float, reason: str = "") -> None:
        process.state, process.since, process.reason = state, now, reason
        self.epoch += 1


def _unheard(spec: ProcessSpec, incarnation: int, now: float) -> _Process:
    """A process that the launcher says is there."""
    devices = [device for worker in spec.workers for device in worker.devices]
    hello = Register(spec.name, incarnation, spec.role, spec.rank, spec.node, 0, devices, {}, {})
    reason = "not heard of since the coordinator was started again"
    return _Process(
        hello, ProcessState.suspect, Phase.ready, now, now, now, reason=reason, is_unheard=True
    )


def _member(process: _Process, reason: str, now: float) -> Member:
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
        reason=reason,
        endpoints=hello.endpoints,
        versions=hello.versions,
        num_requests=process.num_requests,
        remark=process.remark,
    )
