"""What the fork server starts, and what becomes of it."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from launcher.executors import fork_server
from launcher.executors.fork_server import ForkedProcess, ForkServer

pytestmark = pytest.mark.timeout(60)

WITH_TORCH = ("engine.core.process", "engine.model.torch_runner")
WITHIN_S = 30


@asynccontextmanager
async def server_in(directory: Path, *modules: str) -> AsyncIterator[ForkServer]:
    server = ForkServer("flotilla test fork-server", modules, 2, str(directory / "server.log"))
    try:
        yield server
    finally:
        await server.stop()


async def forked(server: ForkServer, log: Path) -> tuple[ForkedProcess, int]:
    """A process, and the launcher's end of its lifeline."""
    theirs, ours = os.pipe()
    fd = os.open(log, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        return await server.fork(theirs, fd), ours
    finally:
        os.close(theirs)
        os.close(fd)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():  # noqa: ASYNC110  (what other processes do sets no event here)
            await asyncio.sleep(0.01)


async def until_forked(process: ForkedProcess) -> psutil.Process:
    await until(lambda: process.pid is not None)
    return psutil.Process(process.pid)


def run(test: Coroutine[None, None, None]) -> None:
    asyncio.run(asyncio.wait_for(test, WITHIN_S))


def test_a_process_without_a_launcher_ends_with_exit_code_1(tmp_path: Path):
    async def test() -> None:
        async with server_in(tmp_path) as server:
            process, ours = await forked(server, tmp_path / "log")
            os.close(ours)
            assert await process.wait() == 1

    run(test())


def test_it_says_which_signal_ended_a_process(tmp_path: Path):
    async def test() -> None:
        async with server_in(tmp_path) as server:
            processes = [await forked(server, tmp_path / "log") for _ in range(3)]
            for process, ours in processes:
                (await until_forked(process)).send_signal(signal.SIGABRT)
                assert await process.wait() == -signal.SIGABRT
                os.close(ours)

    run(test())


def test_a_process_that_is_killed_before_it_is_forked_ends(tmp_path: Path):
    async def test() -> None:
        async with server_in(tmp_path) as server:
            process, ours = await forked(server, tmp_path / "log")
            process.kill()
            assert await process.wait() == -signal.SIGKILL
            os.close(ours)

    run(test())


def test_what_is_forked_survives_the_server_and_another_is_started(tmp_path: Path):
    async def test() -> None:
        async with server_in(tmp_path) as server:
            process, ours = await forked(server, tmp_path / "log")
            child = await until_forked(process)
            parent = child.parent()
            assert parent is not None
            parent.kill()
            await until(lambda: child.ppid() != parent.pid)
            await server._gone.wait()  # until then it would be asked of the one that has ended
            later, later_ours = await forked(server, tmp_path / "log")
            await until_forked(later)
            assert child.is_running()
            os.close(ours)
            assert "nobody knows how" in str(await process.wait())
            os.close(later_ours)
            assert await later.wait() == 1

    run(test())


def test_forks_at_one_time_start_one_server(tmp_path: Path):
    async def test() -> None:
        async with server_in(tmp_path) as server:
            both = await asyncio.gather(*(forked(server, tmp_path / "log") for _ in range(2)))
            children = [await until_forked(process) for process, _ in both]
            assert len({child.ppid() for child in children}) == 1
            for process, ours in both:
                os.close(ours)
                assert await process.wait() == 1

    run(test())


def test_a_server_that_does_not_start_in_time_is_said(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(fork_server, "_START_S", 0.0)

    async def test() -> None:
        async with server_in(tmp_path) as server:
            with pytest.raises(OSError, match="the fork server has not started within 0 s"):
                await forked(server, tmp_path / "log")

    run(test())


def test_what_is_not_forked_when_the_server_ends_never_is(tmp_path: Path):
    before = psutil.Process().children()

    async def test() -> None:
        async with server_in(tmp_path) as server:
            process, ours = await forked(server, tmp_path / "log")
            await server.stop()
            assert "before it was forked" in str(await process.wait())
            os.close(ours)
        assert set(psutil.Process().children()) <= set(before)

    run(test())


def test_it_forks_from_a_single_thread_that_has_imported_torch(tmp_path: Path):
    async def test() -> None:
        async with server_in(tmp_path, *WITH_TORCH) as server:
            process, ours = await forked(server, tmp_path / "log")
            child = await until_forked(process)
            assert child.num_threads() == 1
            assert any("libtorch" in each.path for each in child.memory_maps())
            os.close(ours)
        assert (tmp_path / "server.log").read_text() == ""

    run(test())


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise RuntimeError('not on this machine')", "not on this machine"),
        (
            "import threading as t\nt.Thread(target=t.Event().wait, daemon=True).start()",
            "2 threads after imports",
        ),
    ],
)
def test_processes_import_for_themselves_where_the_server_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, said: str
):
    (tmp_path / "unusual.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")

    async def test() -> None:
        async with server_in(tmp_path, "unusual") as server:
            process, ours = await forked(server, tmp_path / "log")
            child = await until_forked(process)
            await until(lambda: "engine.entrypoint" in child.cmdline())
            os.close(ours)
            assert await process.wait() == 1
        assert said in (tmp_path / "server.log").read_text()

    run(test())
