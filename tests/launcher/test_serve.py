"""`python -m launcher` from start to end, with real processes, as a user meets it."""

import os
import re
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import psutil
import pytest

from engine.checkpoints.sources import model_directory
from engine.config import ModelKind, ModelOptions
from tests.running import assert_nothing_left, launched, random_model, serving

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A runtime directory of the test's own; short, since socket paths are."""
    with tempfile.TemporaryDirectory(prefix="fl") as path:
        yield Path(path)


def complete(client: httpx.Client, num_tokens: int = 8, **more) -> httpx.Response:
    body = {"model": "dummy", "prompt": "hi", "max_tokens": num_tokens, "ignore_eos": True, **more}
    return client.post("/v1/completions", json=body)


def stream(client: httpx.Client, num_tokens: int, **more):
    """A context in which a streamed completion runs, `iter_lines` being its events."""
    body = {"model": "dummy", "prompt": "hi", "max_tokens": num_tokens, "stream": True, **more}
    return client.stream("POST", "/v1/completions", json=body)


def until_plan(client: httpx.Client, holds: Callable[[dict[str, int]], bool]) -> None:
    """Asks for the plan until the numbers of requests by process, as told by heartbeats, fit."""
    deadline = time.monotonic() + 20
    while True:
        members = client.get("/plan").json()["actual"]
        counts = {member["name"]: member["num_requests"] for member in members}
        if holds(counts):
            return
        assert time.monotonic() < deadline, counts


def test_it_serves_two_ranks_and_leaves_nothing_behind(runtime):
    with serving("model=dummy", "dp=2", runtime_directory=runtime) as (launcher, client):
        assert client.get("/health").status_code == 200
        assert client.get("/ready").json()["ready_ranks"] == [0, 1]
        assert set(launcher.children()) == {"coordinator", "frontend-0", "engine-0", "engine-1"}
        assert complete(client).json()["choices"][0]["text"] == "abcdefgh"
        answer = client.get("/plan").json()
        assert answer["plan"]["dp"] == 2
        assert {process["name"] for process in answer["actual"]} == set(launcher.children())
        assert answer["drift"] == []
        assert {p["name"]: p["pid"] for p in answer["actual"]} == {
            name: child.pid for name, child in launcher.children().items()
        }


def test_the_openai_client_talks_to_a_model_that_computes(runtime):
    with serving("model=tiny", "dp=2", runtime_directory=runtime) as (_, client):
        api = openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0)
        messages = [{"role": "user", "content": "Tell me something."}]
        options: Any = {"model": "tiny", "messages": messages, "max_tokens": 24, "temperature": 0}
        whole = api.chat.completions.create(**options)
        streamed = api.chat.completions.create(**options, stream=True)
        parts = [chunk.choices[0].delta.content or "" for chunk in streamed]
        assert "".join(parts) == whole.choices[0].message.content
        assert whole.usage.completion_tokens == 24


def test_greedy_output_is_the_same_for_any_number_of_ranks(runtime):
    prompts = [[index, index + 1, 3 * index % 200] for index in range(1, 13)]
    texts = []
    for dp in (1, 3):
        with serving("model=tiny", f"dp={dp}", runtime_directory=runtime) as (_, client):

            def answer(prompt: list[int], client=client) -> str:
                response = complete(client, 20, model="tiny", prompt=prompt, temperature=0)
                return response.json()["choices"][0]["text"]

            with ThreadPoolExecutor(6) as pool:
                texts.append(list(pool.map(answer, prompts)))
    assert texts[0] == texts[1]


def test_work_is_spread_over_the_ranks(runtime):
    with serving("model=dummy", "dp=2", runtime_directory=runtime) as (launcher, client):
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: complete(client, 200).status_code, range(32)))
        log = (launcher.directory / "logs" / "frontend-0.log").read_text()
    assert answers == [200] * 32
    ranks = re.findall(r"request \S+: rank (\d+), ", log)
    assert len(ranks) == 32
    assert set(ranks) == {"0", "1"}


def test_ctrl_c_lets_requests_in_flight_finish_and_refuses_new_ones(runtime):
    with launched("model=tiny", "drain_s=100", runtime_directory=runtime) as launcher:
        url = launcher.ready()
        family = psutil.Process(launcher.process.pid).children()
        with httpx.Client(base_url=url, timeout=30) as client:
            with stream(client, 1900, model="tiny", ignore_eos=True) as response:
                events = response.iter_lines()
                next(events)
                launcher.signal(signal.SIGINT)
                launcher.wait_for("draining")
                refused = until_refused(url)
                assert refused.status_code == 503
                assert int(refused.headers["retry-after"]) > 0
                rest = [line for line in events if line]
            assert rest[-1] == "data: [DONE]"
            assert '"finish_reason":"length"' in rest[-2]
        assert launcher.end() == 0
        assert_nothing_left(launcher, family)


def until_refused(url: str) -> httpx.Response:
    """The first answer that is no success: the drain takes a moment to reach the front end."""
    while True:
        with httpx.Client(base_url=url) as client:
            answer = complete(client, 1, model="tiny")
        if answer.status_code != 200:
            return answer


def test_a_second_signal_forces_the_end(runtime):
    with launched("model=tiny", "drain_s=60", runtime_directory=runtime) as launcher:
        url = launcher.ready()
        family = psutil.Process(launcher.process.pid).children()
        with (
            httpx.Client(base_url=url, timeout=30) as client,
            stream(client, 1900, model="tiny", ignore_eos=True) as response,
        ):
            events = response.iter_lines()
            next(events)
            os.kill(launcher.children()["engine-0"].pid, signal.SIGSTOP)  # it never ends
            launcher.signal(signal.SIGTERM)
            launcher.wait_for("draining")
            launcher.signal(signal.SIGTERM)
            assert launcher.end(10) == 143
        assert_nothing_left(launcher, family)


def test_the_drain_limit_cuts_off_what_does_not_finish(runtime):
    with launched("model=tiny", "drain_s=0.5", runtime_directory=runtime) as launcher:
        url = launcher.ready()
        with (
            httpx.Client(base_url=url, timeout=30) as client,
            stream(client, 1900, model="tiny", ignore_eos=True) as response,
        ):
            events = response.iter_lines()
            next(events)
            os.kill(launcher.children()["engine-0"].pid, signal.SIGSTOP)
            launcher.signal(signal.SIGINT)
            launcher.wait_for(r"drain limit passed \(drain_s=0.5\): 1 requests cut off")
        assert launcher.end() == 0


def test_every_process_ends_by_itself_when_the_launcher_is_killed(runtime):
    with launched("model=tiny", "dp=2", runtime_directory=runtime) as launcher:
        launcher.ready()
        family = list(launcher.children().values())
        assert len(family) == 4
        launcher.process.kill()
        _, alive = psutil.wait_procs(family, timeout=5)
        assert not alive
        assert not launcher.directory.exists(), sorted(launcher.directory.rglob("*"))


def test_an_engine_that_is_killed_fails_its_requests_at_once_and_ends_the_deployment(runtime):
    with launched("model=tiny", runtime_directory=runtime) as launcher:
        url = launcher.ready()
        family = psutil.Process(launcher.process.pid).children()
        engine = launcher.children()["engine-0"]
        with httpx.Client(base_url=url, timeout=30) as client:
            with stream(client, 1900, model="tiny", ignore_eos=True) as response:
                events = response.iter_lines()
                next(events)
                engine.suspend()
                engine.kill()
                rest = [line for line in events if line]
            assert '"error"' in rest[-2]
            assert rest[-1] == "data: [DONE]"
        assert launcher.end() == 1
        assert "engine-0 ended: killed by SIGKILL" in launcher.output
        psutil.wait_procs(family, timeout=5)
        assert not any(process.is_running() for process in family)
        assert (launcher.directory / "logs" / "engine-0.log").exists()


def test_requests_on_other_ranks_finish_when_one_rank_dies(runtime):
    with launched("model=tiny", "dp=2", runtime_directory=runtime) as launcher:
        url = launcher.ready()
        with (
            httpx.Client(base_url=url, timeout=30) as client,
            stream(client, 1900, model="tiny", ignore_eos=True) as first,
            stream(client, 1900, model="tiny", ignore_eos=True) as second,
        ):
            lines = [first.iter_lines(), second.iter_lines()]
            for each in lines:
                next(each)
            launcher.children()["engine-0"].kill()
            ends = [[line for line in each if line] for each in lines]
        failed = [end for end in ends if '"error"' in end[-2]]
        finished = [end for end in ends if '"finish_reason":"length"' in end[-2]]
        assert len(failed) == 1
        assert len(finished) == 1
        assert launcher.end() == 1


def test_a_client_that_disconnects_has_its_request_aborted(runtime, tmp_path):
    num_tokens = 90_000  # minutes of steps, far more than any deadline here
    model = random_model(tmp_path, max_position_embeddings=100_000)
    places = ("profile.max_num_seqs=1", "profile.max_model_len=100000")
    with serving(*model, *places, runtime_directory=runtime) as (_, client):
        with stream(client, num_tokens, model="random", ignore_eos=True) as response:
            lines = response.iter_lines()  # held: an iterator let go closes the connection
            next(lines)
            until_plan(client, lambda counts: counts["engine-0"] == 1)
        until_plan(client, lambda counts: counts["engine-0"] == 0)
        assert complete(client, 4, model="random").status_code == 200  # the only place is free


def test_a_taken_port_is_refused_and_its_holder_named(runtime):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with launched(
            "model=dummy", f"frontend.port={port}", runtime_directory=runtime
        ) as launcher:
            assert launcher.end() == 2
    assert f"frontend.port is taken: {port} (by pid {os.getpid()}" in launcher.output
    assert "hint: frontend.port=" in launcher.output
    assert not launcher.directory.exists()


def test_a_name_in_use_is_refused_and_the_running_deployment_is_not_touched(runtime):
    with serving("model=dummy", runtime_directory=runtime) as (first, client):
        with launched("model=dummy", runtime_directory=runtime, name=first.name) as second:
            assert second.end() == 2
        assert f"name is in use by a running deployment: {first.name}" in second.output
        assert f"(launcher pid {first.process.pid})" in second.output
        assert complete(client).status_code == 200


def test_a_name_is_free_again_after_its_launcher_was_killed(runtime):
    with launched("model=dummy", runtime_directory=runtime) as first:
        first.ready()
        children = list(first.children().values())
        for child in children:  # so that nobody tidies up
            child.kill()
        first.process.kill()
        first.process.wait()
        assert first.directory.exists()
        with launched("model=dummy", runtime_directory=runtime, name=first.name) as second:
            second.ready()


def test_a_model_directory_that_is_missing_is_refused_before_anything_starts(runtime):
    with launched("model=path", "model.path=/nowhere/model", runtime_directory=runtime) as launcher:
        assert launcher.end() == 2
    assert "/nowhere/model" in launcher.output
    assert "hint:" in launcher.output
    assert "engine-0" not in launcher.output
    assert not launcher.directory.exists()


def test_a_deployment_that_is_late_says_who_is_late(runtime):
    with launched(
        "model=dummy", "backend.start_deadline_s=0.05", runtime_directory=runtime
    ) as launcher:
        assert launcher.end() == 1
    assert "not ready after 0.05 s (backend.start_deadline_s)" in launcher.output
    assert "frontend-0" in launcher.output


def test_a_signal_while_starting_ends_everything(runtime):
    with launched("model=tiny", "dp=2", runtime_directory=runtime) as launcher:
        launcher.wait_for("engine-1 +importing")
        family = psutil.Process(launcher.process.pid).children()
        launcher.signal(signal.SIGINT)
        assert launcher.end(10) == 130
        assert_nothing_left(launcher, family)


def test_a_process_that_ends_while_starting_ends_the_start_and_its_log_is_kept(runtime):
    with launched("model=tiny", "dp=2", runtime_directory=runtime) as launcher:
        launcher.wait_for("engine-1 +importing")
        family = psutil.Process(launcher.process.pid).children()
        launcher.children()["engine-1"].kill()
        assert launcher.end() == 1
        _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive
    assert "engine-1 ended: killed by SIGKILL" in launcher.output
    assert (launcher.directory / "logs" / "engine-1.log").exists()


def test_a_process_that_fails_while_starting_is_shown_with_its_last_lines(runtime, tmp_path):
    path = shutil.copytree(model_directory(ModelOptions(kind=ModelKind.tiny)), tmp_path / "model")
    with launched("model=path", f"model.path={path}", runtime_directory=runtime) as launcher:
        launcher.wait_for("engine-0 +importing")
        (path / "model.safetensors").unlink()  # after the launcher has looked, before the engine
        assert launcher.end() == 1
    assert re.search(r"-0 ended: exit code 1\n    .+", launcher.output)
    assert "model.safetensors" in launcher.output
    assert "hint: see" in launcher.output


def test_a_coordinator_that_is_killed_and_not_to_be_restarted_ends_the_deployment(runtime):
    never = ("drain_s=60", "restart.limit=0")
    with launched("model=dummy", *never, runtime_directory=runtime) as launcher:
        launcher.ready()
        family = psutil.Process(launcher.process.pid).children()
        launcher.children()["coordinator"].kill()
        assert launcher.end(20) == 1
        _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive
    assert "requests cut off: there is no coordinator" in launcher.output


def test_a_front_end_that_is_killed_and_not_to_be_restarted_ends_the_deployment(runtime):
    never = ("drain_s=60", "restart.limit=0")
    with launched("model=dummy", *never, runtime_directory=runtime) as launcher:
        launcher.ready()
        family = psutil.Process(launcher.process.pid).children()
        launcher.children()["frontend-0"].kill()
        assert launcher.end(20) == 1
        _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive
    assert "frontend-0 ended: killed by SIGKILL" in launcher.output


def test_a_smoke_test_starts_asks_every_front_end_and_ends(runtime):
    overrides = ("action=smoke", "model=tiny", "dp=2", "frontend.count=2")
    with launched(*overrides, runtime_directory=runtime) as launcher:
        assert launcher.end(60) == 0, launcher.output
    assert "drained" in launcher.output
    assert not launcher.directory.exists()


def test_an_interrupted_smoke_test_is_no_success(runtime, tmp_path):
    model = random_model(tmp_path, num_hidden_layers=200)  # not done before the engine is stopped
    limits = ("drain_s=0.5", "health.stop_s=1")
    with launched("action=smoke", *model, *limits, runtime_directory=runtime) as launcher:
        launcher.wait_for("engine-0 +ready")
        engine = launcher.children()["engine-0"]
        url = launcher.ready()
        engine.suspend()
        with httpx.Client(base_url=url) as client:
            until_plan(client, lambda counts: counts["frontend-0"] == 1)
        launcher.signal(signal.SIGINT)
        launcher.wait_for(r"drain limit passed \(drain_s=0.5\): 1 requests cut off")
        assert launcher.end() == 130, launcher.output


def test_without_a_compiler_it_serves_and_says_what_it_has_to_do_without(
    runtime, tmp_path, monkeypatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    with serving("model=tiny", runtime_directory=runtime) as (launcher, client):
        assert complete(client, model="tiny").status_code == 200
        [remark] = [
            member["remark"] for member in client.get("/plan").json()["actual"] if member["remark"]
        ]
    assert remark.startswith("torch's slower operators: no C compiler")
    assert launcher.output.count(f"engine-0     ready ({remark})") == 1
