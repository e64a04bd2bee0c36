"""Carries a plan out on a Ray cluster: engine cores as actors, the rest as children of the head."""

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from engine import __version__
from engine.config import ProcessSpec, Role
from engine.entrypoint import Launch
from engine.transport import Keys
from engine.wording import counted
from launcher.cluster import ClusterKind
from launcher.errors import Refused
from launcher.executors.base import Exit, Means, Tell
from launcher.executors.mp import MpExecutor
from launcher.executors.ray.causes import cause_of
from launcher.executors.ray.connection import own_address
from launcher.executors.ray.emulated import EmulatedNodes, sizes_for
from launcher.executors.ray.groups import Groups
from launcher.executors.ray.launch import EngineLaunch, boot_id
from launcher.executors.ray.session import CALL_S, Session
from launcher.executors.ray.watch import Address, NodeWatch
from launcher.plan import DeploymentPlan
from launcher.this_machine import local_cluster, visible_gpu_ids

logger = logging.getLogger(__name__)

_TAIL_BYTES = 64 << 10
_TAIL_S = 10.0
"""Deadline for the last log lines of an actor on another machine."""
_KILL_S = 10.0
"""Seconds that Ray gets to end an actor that was killed."""
_TOLD = "ray"
"""In place of a process, what the terminal shows beside news of the cluster."""
_GCS = "the Ray cluster"


@dataclass(slots=True)
class _Actor:
    spec: ProcessSpec
    handle: Any
    ended: asyncio.Task[None]


class _Made(NamedTuple):
    """An actor, as Ray's thread has made it."""

    spec: ProcessSpec
    handle: Any
    running: concurrent.futures.Future[None]
    log_path: concurrent.futures.Future[str]


class RayExecutor:
    """Actors hang on this process's connection to Ray, the other processes on a pipe each.

    Args:
        means: Without a session the plan is for an emulated cluster, which this executor starts
            and ends.
        tell: Called with what is going on while it starts.
    """

    def __init__(self, plan: DeploymentPlan, means: Means, tell: Tell) -> None:
        engines = [process for process in plan.processes if process.role is Role.engine]
        others = [process for process in plan.processes if process.role is not Role.engine]
        self._plan, self._engines = plan, engines
        self._local = MpExecutor(
            msgspec.structs.replace(plan, processes=tuple(others)), means.access, _host(plan)
        )
        self._session, self._tell = means.session, tell
        self._group_deadline_s = means.group_deadline_s
        self._emulated: EmulatedNodes | None = None
        prefix = f"flotilla-{plan.name}-{secrets.token_hex(4)}"
        self._groups = Groups(prefix, means.given_groups)
        self._actors: dict[str, _Actor] = {}
        self._exits: asyncio.Queue[Exit] = asyncio.Queue()
        self._watchers: list[asyncio.Task[None]] = []
        self._is_ending = False
        self._is_lost = False
        self._handles: list[Any] = []
        self._fetching: dict[str, asyncio.Task[None]] = {}
        self.left_behind: list[str] = []

    @property
    def coordinator_endpoint(self) -> str:
        return self._local.coordinator_endpoint

    @property
    def keys(self) -> Keys | None:
        return self._local.keys

    @property
    def addresses(self) -> list[str]:
        return self._local.addresses

    @property
    def private_addresses(self) -> list[str]:
        return self._local.private_addresses

    def reserve(self) -> None:
        own = own_address()
        if self._session is None and own is not None:
            raise Refused(
                f"this process is connected to the Ray cluster at {own}, no other can be emulated",
                "cluster=existing, or a process of its own",
            )
        self._local.reserve()

    async def start(self) -> None:
        both = [asyncio.create_task(start) for start in (self._local.start(), self._start_actors())]
        try:
            await asyncio.gather(*both)
        finally:
            for task in both:
                task.cancel()

    async def next_exit(self) -> Exit:
        return await self._exits.get()

    async def kill(self, name: str) -> None:
        actor, session = self._actors.get(name), self._session
        if actor is None:
            await self._local.kill(name)
        elif session is not None:
            await session.call_async(lambda: _kill(actor))

    def alive(self) -> list[str]:
        return [*self._local.alive(), *self._actors]

    async def restart(self, name: str) -> int:
        return await self._local.restart(name)

    async def collect_log(self, name: str) -> None:
        if name in self._fetching:
            await asyncio.wait([self._fetching[name]], timeout=_TAIL_S)

    def log_tail(self, name: str, num_lines: int) -> list[str]:
        return self._local.log_tail(name, num_lines)

    def log_path(self, name: str) -> str:
        return self._local.log_path(name)

    async def stop(self, grace_s: float) -> None:
        self._is_ending = self._groups.is_ending = True
        try:
            await asyncio.gather(self._local.stop(grace_s), self._stop_actors(grace_s))
        finally:
            for watcher in self._watchers:
                watcher.cancel()
            self._watchers.clear()
            await self._close_session()
            if self._emulated is not None:
                await self._emulated.stop()

    def release(self, keep_logs: bool) -> None:
        self._local.release(keep_logs)

    async def _start_actors(self) -> None:
        session = self._session or await self._emulate()
        self._watchers.append(asyncio.create_task(self._forward_exits()))
        groups = counted(len(self._plan.groups), "placement group")
        self._tell(_TOLD, f"using {groups}" if self._groups.given else f"making {groups}")
        await session.call_async(
            lambda: self._groups.make(self._plan.groups, session.nodes, self._group_deadline_s),
            self._group_deadline_s + CALL_S,
        )
        for made in await session.call_async(self._make_actors):
            ended = asyncio.create_task(self._watch_actor(made))
            self._actors[made.spec.name] = _Actor(made.spec, made.handle, ended)
        watch = NodeWatch(self._places(session), self._lose)
        self._watchers.append(asyncio.create_task(watch.run()))

    async def _emulate(self) -> Session:
        """Starts the nodes that the plan counts on."""
        sizes = sizes_for(self._plan, visible_gpu_ids(os.environ))
        self._tell(_TOLD, f"starting {counted(len(sizes), 'emulated node')}")
        self._emulated = EmulatedNodes(sizes)
        await self._emulated.start(lambda name: self._tell(_TOLD, f"node {name} runs"))
        self._watchers.append(asyncio.create_task(self._watch_emulated(self._emulated)))
        self._session = session = Session(self._emulated.address, self._emulated.environment)
        await asyncio.to_thread(session.connect)
        await asyncio.to_thread(session.discover, local_cluster())
        self._tell(_TOLD, f"connected to {session.address}")
        return session

    def _make_actors(self) -> list[_Made]:
        """In Ray's thread."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        from launcher.executors.ray.actor import EngineActor

        untyped: Any = ray
        actor_class = untyped.remote(concurrency_groups={"control": 1})(EngineActor)
        made: list[_Made] = []
        for spec in self._engines:
            if self._is_ending:
                break
            worker = spec.workers[0]
            group = self._groups[worker.group]
            bundle = group.bundle_specs[worker.bundle]
            handle = actor_class.options(
                name=f"{self._groups.prefix}-{spec.name}.1",
                num_cpus=bundle.get("CPU", 0),
                num_gpus=worker.num_gpus,
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, worker.bundle),
            ).remote(__version__, msgspec.msgpack.encode(self._launch(spec)))
            self._handles.append(handle)
            running, log_path = handle.run.remote().future(), handle.log_path.remote().future()
            made.append(_Made(spec, handle, running, log_path))
        return made

    def _launch(self, spec: ProcessSpec) -> EngineLaunch:
        assert self._session is not None
        passed = self._plan.passed_environment
        return EngineLaunch(
            launch=Launch(
                process=spec,
                settings=self._plan.settings,
                coordinator_endpoint=self.coordinator_endpoint,
                incarnation=1,
                keys=self.keys,
            ),
            node_names={node.id: name for name, node in self._session.nodes.items()},
            environment={name: os.environ[name] for name in passed if name in os.environ},
            log_file=self._local.log_path(spec.name),
            boot_id=boot_id(),
        )

    async def _watch_actor(self, made: _Made) -> None:
        spec = made.spec
        try:
            await asyncio.wrap_future(made.running)
            reason = "it ended without being told to"
        except Exception as problem:
            reason = cause_of(problem)
        if not self._is_ending and not self._local.log_tail(spec.name, 1):
            self._fetching[spec.name] = asyncio.create_task(self._fetch_log(made))
        self._note_end(spec.name, f"{reason} (on {spec.node})")

    async def _fetch_log(self, made: _Made) -> None:
        """Copies the end of the log of an actor on another machine, if that lives."""
        session = self._session
        assert session is not None
        node_id = session.nodes[made.spec.node].id
        copy = Path(self._local.log_path(made.spec.name))

        def fetch() -> None:
            import ray
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            from launcher.executors.ray.actor import log_tail

            there = NodeAffinitySchedulingStrategy(node_id, soft=False)
            task = ray.remote(log_tail).options(num_cpus=0, scheduling_strategy=there)
            tail = task.remote(made.log_path.result(0), _TAIL_BYTES)
            copy.write_text(ray.get(tail, timeout=_TAIL_S))

        with contextlib.suppress(Exception):  # the node has died too, or Ray is not well
            await session.call_async(fetch)

    def _note_end(self, name: str, reason: str) -> None:
        if self._actors.pop(name, None) is not None:
            self._exits.put_nowait(Exit(name, 1, reason))

    def _lose(self, place: str, reason: str) -> None:
        """A node, or Ray's own head, cannot be reached."""
        self._is_lost = self._is_lost or place == _GCS
        there = [a.spec for a in self._actors.values() if place in (_GCS, a.spec.node)]
        ranks = ", ".join(str(spec.rank) for spec in there)
        together = f", with ranks {ranks}" if len(there) > 1 else ""
        for spec in there:
            self._note_end(spec.name, f"{place} is lost{together}: {reason}")

    async def _watch_emulated(self, emulated: EmulatedNodes) -> None:
        await emulated.wait()
        for name in list(self._actors):
            self._note_end(name, "the supervisor of the emulated cluster was killed")

    async def _forward_exits(self) -> None:
        while True:
            self._exits.put_nowait(await self._local.next_exit())

    def _places(self, session: Session) -> dict[str, Address]:
        """What has to be reached: Ray's head, and every node that has a rank."""
        host, _, port = session.address.rpartition(":")
        used = {spec.node: session.nodes[spec.node] for spec in self._engines}
        nodes = {name: (node.address, node.port) for name, node in used.items()}
        return {_GCS: (host.strip("[]"), int(port)), **nodes}

    async def _stop_actors(self, grace_s: float) -> None:
        session = self._session
        if session is None or not session.is_connected or self._is_lost:
            return
        ended = [actor.ended for actor in self._actors.values()]
        try:
            if grace_s > 0 and ended:
                await session.call_async(self._tell_actors)
                await asyncio.wait(ended, timeout=grace_s)
            await session.call_async(self._kill_actors)
            if ended:  # in a group of somebody else's nothing but this shows that they are gone
                await asyncio.wait(ended, timeout=_KILL_S)
            left = await session.call_async(self._groups.remove)
            self.left_behind = [f"placement group {name}" for name in left]
            self.left_behind += [f"actor of {name}" for name in self._actors]
            if self.left_behind:
                logger.error("Ray has not removed %s", ", ".join(self.left_behind))
        except Exception:  # Ray has no one class for what can be wrong
            logger.exception("Ray will have to end what is left by itself")

    async def _close_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await asyncio.to_thread(session.close)

    def _tell_actors(self) -> None:
        for actor in list(self._actors.values()):
            actor.handle.stop.remote()

    def _kill_actors(self) -> None:
        """Those too that were made and not taken in, and those that were given up."""
        import ray

        for handle in self._handles:
            ray.kill(handle)


def _kill(actor: _Actor) -> None:
    """In Ray's thread."""
    import ray

    ray.kill(actor.handle)


def _host(plan: DeploymentPlan) -> str | None:
    """Where processes of other machines reach the head; nodes that are emulated use its files."""
    if plan.cluster is ClusterKind.emulated and plan.ports is None:
        return None
    return next(node.address for node in plan.nodes if node.id == plan.head)
