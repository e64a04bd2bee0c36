"""What runs beside what was planned, process by process: pure, from what the launcher tells."""

from collections.abc import Iterator, Sequence

import msgspec
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from engine.config import ProcessSpec, Role
from engine.protocol import Member, ProcessState, RankLoad
from engine.wording import counted
from launcher.control import Stage, State
from launcher.plan import DeploymentPlan

MISSING = "missing"
"""State of a planned process that has not registered."""
STALE_S = 5.0
"""The coordinator speaks twice a second; after so long what it said last is no longer believed."""
HEADINGS = (
    *("process", "rank", "node", "state", "since", "pid", "devices", "starts", "requests"),
    *("waiting", "cache", "reason"),
)


class ProcessStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One process; what is planned of it is null if it is in no plan, the rest if it is missing."""

    name: str
    role: Role
    rank: int | None
    state: str
    """`starting`, `ready`, `suspect`, `drained`, `lost`, `missing`."""
    phase: str | None
    """What it does while it starts."""
    since_s: float | None
    """Seconds in this state."""
    reason: str
    """Why it is suspect or lost, or what the user should know."""
    planned_node: str | None
    node: str | None
    planned_devices: list[int] | None
    """Empty where only their number is known before the start, or there are none."""
    planned_num_gpus: int
    devices: list[int] | None
    pid: int | None
    incarnation: int
    """How many times it has been started."""
    num_requests: int | None
    """In flight, as of its last heartbeat."""
    num_waiting: int | None
    """Of these, those that a rank does not run yet."""
    kv_usage: float | None
    """Part of a rank's cache in use, 0 to 1."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """One deployment."""

    name: str
    is_ready: bool
    """It serves, and every process is there, as planned, and ready."""
    stage: Stage
    uptime_s: float
    pid: int
    """Of the launcher."""
    version: str
    """Of Flotilla."""
    backend: str
    topology: str
    dp: int
    tp: int
    digest: str
    """Of the plan."""
    addresses: list[str]
    """Of the front ends."""
    coordinator_age_s: float | None
    """How old the coordinator's word is, on which the rest rests; null: it has not spoken yet."""
    drift: list[str]
    """Differences between plan and processes, one sentence each."""
    processes: list[ProcessStatus]


def status_of(state: State) -> Status:
    """Plan and membership, joined by the names of processes."""
    plan, membership = state.plan, state.membership
    age_s = None if membership is None else state.membership_age_s
    members = {member.name: member for member in membership.members} if membership else {}
    processes = list(_processes(state, members))
    drift = membership.drift if membership else []
    is_ready = (
        state.stage is Stage.serving
        and age_s is not None
        and age_s < _stale_s(plan)
        and not drift
        and all(process.state == ProcessState.ready.value for process in processes)
    )
    return Status(
        name=plan.name,
        is_ready=is_ready,
        stage=state.stage,
        uptime_s=round(state.uptime_s, 3),
        pid=state.pid,
        version=state.version,
        backend=plan.backend,
        topology=plan.topology,
        dp=plan.dp,
        tp=plan.tp,
        digest=plan.digest,
        addresses=state.addresses,
        coordinator_age_s=None if age_s is None else round(age_s, 3),
        drift=drift,
        processes=processes,
    )


def _stale_s(plan: DeploymentPlan) -> float:
    return max(STALE_S, plan.settings.health.silence_s)


def _processes(state: State, members: dict[str, Member]) -> Iterator[ProcessStatus]:
    specs = {process.name: process for process in state.plan.processes}
    gpus = {
        group.name: [bundle.resources.get("GPU", 0) for bundle in group.bundles]
        for group in state.plan.groups
    }
    loads: dict[tuple[int | None, int], RankLoad] = {
        (load.rank, load.incarnation): load for load in state.loads
    }
    for name in dict.fromkeys((*specs, *members)):
        spec, member = specs.get(name), members.get(name)
        known = spec or member
        assert known is not None
        workers = spec.workers if spec else ()
        load = loads.get((known.rank, member.incarnation)) if member else None
        is_starting = member is not None and member.state is ProcessState.starting
        yield ProcessStatus(
            name=name,
            role=known.role,
            rank=known.rank,
            state=member.state.value if member else MISSING,
            phase=member.phase.value if member and is_starting else None,
            since_s=round(member.since_s + state.membership_age_s, 3) if member else None,
            reason=(member.reason or member.remark) if member else "",
            planned_node=spec.node if spec else None,
            node=member.node if member else None,
            planned_devices=_devices(spec) if spec else None,
            planned_num_gpus=sum(gpus[worker.group][worker.bundle] for worker in workers),
            devices=member.devices if member else None,
            pid=member.pid if member else None,
            incarnation=member.incarnation if member else state.incarnations.get(name, 0),
            num_requests=member.num_requests if member else None,
            num_waiting=load.num_waiting if load else None,
            kv_usage=load.kv_usage if load else None,
        )


def _devices(spec: ProcessSpec) -> list[int]:
    return [device for worker in spec.workers for device in worker.devices]


def status_table(status: Status) -> RenderableType:
    """Title, a line per process, what is not as it should be."""
    title = (
        f"{status.name}: {status.stage.value} at {', '.join(status.addresses)}"
        f", up {duration(status.uptime_s)}, launcher pid {status.pid}"
    )
    plan = f"backend={status.backend} topology={status.topology} dp={status.dp} tp={status.tp}"
    table = Table(box=box.SIMPLE, padding=(0, 2, 0, 0))
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold")
    for process in status.processes:
        style = None if process.state == ProcessState.ready.value else "yellow"
        table.add_row(*map(Text, _cells(process)), style=style)
    return Group(
        Text(title, style="bold"),
        Text(plan),
        table,
        *(Text(f"drift: {line}", style="yellow") for line in status.drift),
        Text(_freshness(status)),
        Text(f"digest {status.digest}", style="dim"),
    )


def _cells(process: ProcessStatus) -> Sequence[str]:
    state = f"{process.state}: {process.phase}" if process.phase else process.state
    return (
        process.name,
        "" if process.rank is None else str(process.rank),
        _beside(process.planned_node, process.node),
        state,
        "" if process.since_s is None else duration(process.since_s),
        "" if process.pid is None else str(process.pid),
        _device_cell(process),
        str(process.incarnation),
        "" if process.num_requests is None else str(process.num_requests),
        "" if process.num_waiting is None else str(process.num_waiting),
        "" if process.kv_usage is None else f"{process.kv_usage:.0%}",
        process.reason,
    )


def _device_cell(process: ProcessStatus) -> str:
    """Of ranks: the planned ones, or how many, and which they are if that is something else."""
    if process.role is not Role.engine:
        return ""
    actual = None if process.devices is None else _ids(process.devices)
    if process.planned_devices is None:
        return _beside(None, actual)
    if process.planned_devices or not process.planned_num_gpus:
        return _beside(_ids(process.planned_devices), actual)
    planned = counted(process.planned_num_gpus, "GPU")
    has_as_many = process.devices and len(process.devices) == process.planned_num_gpus
    return f"{planned}: {actual}" if has_as_many else _beside(planned, actual)


def _ids(devices: Sequence[int]) -> str:
    return "cuda " + ",".join(map(str, devices)) if devices else "cpu"


def _beside(planned: str | None, actual: str | None) -> str:
    if actual is None or planned == actual:
        return planned or ""
    return f"{planned or 'not planned'}, is {actual}"


def _freshness(status: Status) -> str:
    if status.coordinator_age_s is None:
        return "the coordinator has not said anything yet"
    return f"as the coordinator said {duration(status.coordinator_age_s)} ago"


def duration(seconds: float) -> str:
    """`0.4 s`, `42 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    for large, small, size, part in (
        ("d", "h", 86400, 3600),
        ("h", "min", 3600, 60),
        ("min", "s", 60, 1),
    ):
        if whole >= size:
            return f"{whole // size} {large} {whole % size // part} {small}"
    return f"{whole} s"
