"""One cluster for all tests of a process that do not harm it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx2 as httpx
import pytest

from tests.launcher.ray.clusters import TOKEN, HandStarted, Onlooker, hand_started

CPUS = {"head": 4, "left": 4, "right": 4}
"""Of the nodes of the shared cluster; on `right` others hold one."""


@pytest.fixture(scope="session", autouse=True)
def _token() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in TOKEN.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def shared(_token: None) -> Iterator[HandStarted]:
    with hand_started(CPUS["head"]) as cluster:
        for name in ("left", "right"):
            cluster.add_node(name, CPUS[name])
        yield cluster


@pytest.fixture(scope="module")
def onlooker(shared: HandStarted) -> Iterator[Onlooker]:
    """Of one module, since a process has one connection to Ray, and others have other clusters."""
    found = Onlooker(shared.address, neighbour_on="right")
    yield found
    found.close()


@pytest.fixture
def client_of() -> Iterator[Callable[[str], httpx.Client]]:
    """Clients of deployments whose ends they see."""
    with ExitStack() as clients:
        yield lambda url: clients.enter_context(httpx.Client(base_url=url, timeout=30))
