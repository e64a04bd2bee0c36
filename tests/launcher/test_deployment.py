"""A deployment whose executor cannot start a process again."""

import asyncio
from typing import Any

import pytest

from launcher.deployment import Deployment
from launcher.errors import DeploymentFailed, StartFailed
from launcher.executors.base import Exit
from tests.launcher.samples import config_of, plan_for


class BrokenExecutor:
    """One process ends, and nothing can be started."""

    coordinator_endpoint = "ipc:///nowhere"

    def __init__(self, ending: str) -> None:
        self._exits: asyncio.Queue[Exit] = asyncio.Queue()
        self._exits.put_nowait(Exit(ending, 1, "exit code 1"))

    async def next_exit(self) -> Exit:
        return await self._exits.get()

    async def restart(self, name: str) -> int:
        raise StartFailed(f"{name} could not be started: no memory")

    def log_tail(self, name: str, num_lines: int) -> list[str]:
        return []

    def log_path(self, name: str) -> str:
        return f"{name}.log"


async def watched(ending: str) -> Deployment:
    """The deployment after that process has ended."""
    executor: Any = BrokenExecutor(ending)
    deployment = Deployment(plan_for(config_of()), executor, lambda name, news: None)
    with pytest.raises(StartFailed, match=f"{ending} could not be started"):
        await deployment.watch()
    return deployment


def test_it_drains_without_a_front_end_that_could_not_be_started_again():
    async def drain() -> None:
        deployment = await watched("frontend-0")
        assert await deployment.drain(0.01) == 0
        assert isinstance(deployment.failure, StartFailed)

    asyncio.run(drain())


def test_it_cannot_drain_without_a_coordinator():
    async def drain() -> None:
        deployment = await watched("coordinator")
        with pytest.raises(DeploymentFailed, match="there is no coordinator"):
            await deployment.drain(60)

    asyncio.run(drain())
