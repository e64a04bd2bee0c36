"""Deployments from Python: what `python -m launcher` does, in a thread of the calling process."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from launcher.actions.serve import Serving
from launcher.config import Action, LaunchConfig, register
from launcher.config_checks import check, without_effect
from launcher.config_errors import explain
from launcher.errors import DeploymentFailed, Interrupted, Refused, StartFailed, warn
from launcher.planning import Planned, planned

_composing = threading.Lock()
"""Hydra composes with state that is one for the whole process."""
_END_S = 30.0
"""Seconds beyond its own deadlines that a deployment gets to end."""


def serve(overrides: Sequence[str], placement_groups: Sequence[Any] | None = None) -> "Deployment":
    """Starts a deployment and waits until it is ready.

    May be called from any thread, and several times with different names: `name=a`. Signals are
    the caller's.

    Args:
        overrides: As on the command line: `["model=tiny", "dp=2", "frontend.port=0"]`.
        placement_groups: Ray's placement groups to put the ranks into, one rank per worker-sized
            bundle, in their order. The process has to be connected to Ray. They are never removed.

    Returns:
        The deployment. It ends with `stop`, at the end of a `with`, or with this process.

    Raises:
        Refused: Config, placement, port, name or model is not what it should be; nothing runs.
        StartFailed: It did not become ready; nothing is left of it.
    """
    given = tuple(placement_groups or ())
    typed = list(overrides)
    if given:
        typed = ["backend=ray", "topology=auto", "cluster=existing", *typed]
    return Deployment(composed(typed), given)


class Deployment:
    """A deployment that serves. Made by `serve`.

    Attributes:
        url: Base address of the OpenAI-compatible API: `http://127.0.0.1:8000/v1`.
        plan: What was planned.
    """

    def __init__(self, config: LaunchConfig, placement_groups: Sequence[Any] = ()) -> None:
        self._config = config
        self._groups = placement_groups
        self._is_told_to_end = False
        self._is_ready = threading.Event()
        self._ended = threading.Event()
        self._serving: Serving | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"flotilla-{config.name}")
        self._thread.daemon = True
        self._thread.start()
        try:
            self._is_ready.wait()  # the deadlines are the deployment's own
        except BaseException:
            self.stop(force=True)
            raise
        if self._problem is not None:
            self._thread.join()
            hint = getattr(self._problem, "hint", "")
            if hint:
                self._problem.add_note(f"hint: {hint}")
            raise self._problem

    def __enter__(self) -> "Deployment":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop(force=kind is not None)

    @property
    def is_serving(self) -> bool:
        return not self._ended.is_set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits until it ends; False: it has not, after `timeout_s`.

        Raises:
            DeploymentFailed: It has ended because a process of it did.
        """
        if not self._ended.wait(timeout_s):
            return False
        if self._problem is not None:
            raise self._problem
        return True

    def stop(self, force: bool = False) -> None:
        """Drains it, at most `drain_s`, and waits until nothing of it is left. May be called twice.

        Args:
            force: Requests in flight are cut off.

        Raises:
            DeploymentFailed: It has failed before or meanwhile.
            TimeoutError: It does not end.
        """
        self._is_told_to_end = True
        loop, serving = self._loop, self._serving
        if loop is not None and serving is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(serving.end, force)
        limit_s = self._config.drain_s + self._config.health.stop_s + _END_S
        if not self._ended.wait(limit_s):
            raise TimeoutError(f"deployment {self._config.name} has not ended after {limit_s:g} s")
        if isinstance(self._problem, DeploymentFailed):
            raise self._problem

    def _run(self) -> None:
        try:
            with planned(self._config, self._groups) as found:
                warn((*without_effect(self._config), *found.plan.warnings))
                asyncio.run(self._serve(found))
        except Interrupted:
            if not self._is_ready.is_set():
                self._problem = StartFailed("it was stopped before it was ready")
        except BaseException as problem:
            self._problem = problem
        finally:
            self._ended.set()
            self._is_ready.set()

    async def _serve(self, found: Planned) -> None:
        self.plan = found.plan
        if self._is_told_to_end:  # while it was planned, which cannot be interrupted
            raise Interrupted(signal.SIGINT)
        self._loop = asyncio.get_running_loop()
        self._serving = Serving(
            found.plan, found.means, on_ready=self._note_ready, takes_signals=False
        )
        await self._serving.run()

    def _note_ready(self, address: str) -> None:
        self.url = f"{address}/v1"
        self._is_ready.set()


def composed(overrides: Sequence[str]) -> LaunchConfig:
    """A valid config of `action=serve`.

    Raises:
        Refused: The overrides are not what they should be.
    """
    register()
    typed = list(overrides)
    with _composing:
        before = GlobalHydra.instance().hydra
        GlobalHydra.instance().clear()
        try:
            with hydra.initialize_config_module("conf", version_base="1.3"):
                config = OmegaConf.to_object(hydra.compose("config", typed))
        except Exception as problem:
            refused = explain(problem, typed, multirun=False)
            if refused is None:
                raise
            raise refused from None
        finally:
            GlobalHydra.instance().hydra = before
    assert isinstance(config, LaunchConfig)
    if config.action is not Action.serve:
        raise Refused(f"action must be serve: {config.action.name}", "action=serve")
    check(config)
    return config
