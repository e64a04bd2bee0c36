"""A front end that really serves, between a fake deployment and real HTTP clients."""

import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from engine.access import Access
from engine.checkpoints.tiny import TINY_FACTS, write_random_checkpoint
from engine.config import (
    BalancerOptions,
    BalancerPolicy,
    CoordinatorOptions,
    FrontendOptions,
    HealthOptions,
    ProcessSpec,
    Role,
    Settings,
)
from engine.frontend import process
from engine.frontend.process import OPEN
from engine.frontend.tokenizer import Tokenizer
from engine.protocol import Phase
from tests.engine.frontend.chat_request import CHAT
from tests.engine.frontend.fake_deployment import DEADLINE_S, FakeDeployment, FakeLifeline
from tests.engine.settings import make_settings


class RunningFrontEnd:
    """A front end in a thread, and everything around it.

    Attributes:
        http: Sends requests to it.
        openai: Does the same.
        unix_socket: Where it listens too.
    """

    def __init__(
        self,
        settings: Settings,
        deployment: FakeDeployment,
        directory: Path,
        access: Access = OPEN,
    ) -> None:
        self.settings = settings
        self._access = access
        self.deployment = deployment
        self.lifeline = FakeLifeline()
        self.problem: BaseException | None = None
        self.unix_socket = directory / "http"
        listener = socket.create_server(("127.0.0.1", 0))
        private = socket.socket(socket.AF_UNIX)
        private.bind(str(self.unix_socket))
        private.listen()
        self._fds = (listener.detach(), private.detach())
        with socket.socket(fileno=self._fds[0]) as peek:
            self.port = peek.getsockname()[1]
            peek.detach()
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx2.Client(base_url=self.url, timeout=DEADLINE_S)
        self.openai = openai.OpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=DEADLINE_S
        )
        self._thread = threading.Thread(target=self._run, name="front-end")

    def __enter__(self) -> "RunningFrontEnd":
        self._thread.start()
        self.deployment.wait(lambda seen: Phase.connecting in seen.phases)
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.openai.close()
        self.lifeline.end()
        self.join()

    def join(self) -> None:
        """Waits until it has ended."""
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    def wait_until_ready(self) -> None:
        """Waits until every rank takes requests, and the deployment knows it."""
        self.wait_for_readiness(lambda body: body["ready"])
        self.deployment.wait(lambda seen: Phase.ready in seen.phases)

    def wait_for_readiness(self, found: Callable[[dict[str, Any]], bool]) -> None:
        """Asks /ready until the body is as it should be."""
        deadline_s = time.monotonic() + DEADLINE_S
        while not found(body := self.http.get("/ready").json()):
            assert time.monotonic() < deadline_s, body

    def _run(self) -> None:
        spec = ProcessSpec(name="frontend-0", role=Role.frontend, node="head")
        try:
            process.run(
                spec,
                self.settings,
                self.deployment.endpoint,
                3,
                self.lifeline,  # type: ignore[arg-type]
                self._fds,
                access=self._access,
            )
        except BaseException as problem:
            self.problem = problem


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model: token ids below 256 are bytes."""
    directory = tmp_path_factory.mktemp("tiny")
    write_random_checkpoint(directory, TINY_FACTS)
    return directory


@pytest.fixture(scope="session")
def tokenizer(model_directory: Path) -> Tokenizer:
    return Tokenizer(model_directory)


@contextmanager
def started(
    model_directory: Path,
    dp: int = 1,
    silence_s: float = DEADLINE_S,
    suspect_s: float = 10 * DEADLINE_S,
    prepare: Callable[[FakeDeployment], None] = lambda deployment: None,
    policy: BalancerPolicy = BalancerPolicy.least_loaded,
    api_keys: Sequence[str] = (),
    **options: Any,
) -> Iterator[RunningFrontEnd]:
    """A front end that serves, in a deployment of ready ranks.

    Args:
        prepare: Changes the deployment before the front end starts.
        options: Of the front end.
    """
    health = HealthOptions(silence_s=silence_s, suspect_s=suspect_s, stop_s=10.0)
    settings = make_settings(
        model_directory,
        dp=dp,
        health=health,
        balancer=BalancerOptions(policy=policy),
        frontend=FrontendOptions(port=0, **options),
        coordinator=CoordinatorOptions(metrics_interval_s=0.05),
    )
    with tempfile.TemporaryDirectory(prefix="flotilla-") as directory:  # short, for ipc paths
        deployment = FakeDeployment(Path(directory), dp)
        prepare(deployment)
        with (
            deployment,
            RunningFrontEnd(
                settings, deployment, Path(directory), Access(tuple(api_keys))
            ) as front_end,
        ):
            yield front_end


Start = Callable[..., RunningFrontEnd]


@pytest.fixture
def start(model_directory: Path) -> Iterator[Start]:
    """Starts a front end of the test's own, ended after the test."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(started(model_directory, **options))


@pytest.fixture(scope="module")
def shared(model_directory: Path) -> Iterator[RunningFrontEnd]:
    """A front end with one rank that says "Hello world", for tests that leave it as it is."""
    with started(model_directory) as front_end:
        front_end.wait_until_ready()
        yield front_end


Post = Callable[[dict[str, Any]], "Future[httpx2.Response]"]


@pytest.fixture
def front_end(start: Start) -> RunningFrontEnd:
    """Two ranks that answer only when told."""
    front_end = start(dp=2)
    front_end.deployment.answer = None
    front_end.wait_until_ready()
    return front_end


@pytest.fixture
def deployment(front_end: RunningFrontEnd) -> FakeDeployment:
    return front_end.deployment


@pytest.fixture
def post(front_end: RunningFrontEnd) -> Iterator[Post]:
    """Posts in a thread of its own; the future gives the response."""
    with ThreadPoolExecutor(8) as pool:
        yield lambda body: pool.submit(front_end.http.post, CHAT, json=body)
