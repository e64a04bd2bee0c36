"""`action=bench`: a deployment that is measured and ends again; servers that run already."""

import json
import re
import signal
import socket
import threading
import time
from pathlib import Path

import httpx2 as httpx
import msgspec
import psutil
import pytest

from launcher.bench.results import Results, decode, encode
from tests.launcher.bench import fake_server as fakes
from tests.launcher.bench.fake_server import fake_server
from tests.running import ask, assert_ended, launched, serving

pytestmark = pytest.mark.timeout(180)

SHORT = (
    "bench.num_sessions=8",
    "bench.input.mean=40",
    "bench.output.mean=12",
    "bench.warm_up_sessions=2",
)
SOON = "coordinator.metrics_interval_s=0.1"


def results_in(directory: Path) -> Results:
    return decode((directory / "results.json").read_bytes())


def test_a_deployment_is_measured_and_ends(runtime, tmp_path: Path):
    where = f"bench.dir={tmp_path / 'new' / 'results'}"
    load = (*SHORT, "bench.concurrency=[1,4]", "bench.slo.ttft_ms=60000", "bench.clients=2")
    overrides = ("action=bench", "model=tiny", "dp=2", SOON, *load, where)
    with launched(*overrides, runtime_directory=runtime) as launcher:
        assert launcher.end(100) == 0, launcher.output
    assert not launcher.directory.exists()
    data = (tmp_path / "new" / "results" / "results.json").read_bytes()
    results = decode(data)
    assert encode(results) == data
    assert (results.is_valid, results.problems) == (True, [])
    assert results.name == launcher.name
    assert results.config["bench"]["input"]["mean"] == 40
    assert f"name={launcher.name}" in results.overrides
    assert re.fullmatch(r"[0-9a-f]{64}", results.plan_digest or "")
    assert results.environment.num_cpus > 0
    assert "torch" in results.environment.versions
    assert results.start_up is not None
    assert results.start_up.ready_s > 0
    assert results.start_up.phases_s["rank 1"]["importing"] > 0
    assert [stage.name for stage in results.stages] == ["concurrency 1", "concurrency 4"]
    for stage in results.stages:
        assert (stage.num_requests, stage.num_failed, stage.tokens_counted_by) == (8, 0, "usage")
        assert (stage.num_prompt_tokens, stage.num_output_tokens) == (8 * 40, 8 * 12)
        assert stage.output_tok_s > 0
        assert stage.goodput_req_s == stage.req_s
        assert stage.ttft_ms is not None
        assert stage.tpot_ms is not None
        assert sum(each.num_output_tokens for each in stage.ranks) == 8 * 12
        assert stage.rank_skew is not None
        assert 0 < (stage.mean_in_flight or 0) <= 4
        assert stage.prefix_hit_rate == 0
        names = [process.name for process in stage.processes]
        assert names == ["coordinator", "engine-0", "engine-1", "frontend-0"]
        assert all(process.pss_bytes > 2**20 for process in stage.processes)
    assert results.stages[1].client.num_processes == 2
    table = " ".join(launcher.output.split())
    assert "stage requests failed in flight out tok/s" in table
    assert launcher.lines[-1] == f"results: {tmp_path}/new/results/results.json\n"


def test_the_prefix_cache_is_seen_and_a_key_is_not(runtime, tmp_path: Path):
    prefix = ("bench.shared_prefix.tokens=160", "bench.concurrency=[1]")
    key = "frontend.api_keys=[a-secret]"
    overrides = ("action=bench", "model=tiny", key, *SHORT, *prefix, f"bench.dir={tmp_path}")
    with launched(*overrides, runtime_directory=runtime) as launcher:
        assert launcher.end(100) == 0, launcher.output
    (stage,) = results_in(tmp_path).stages
    # All but the first find the ten blocks of the prefix. The warm-up, right after the start, is
    # not part of it, nor of what the ranks did: what the server reports comes a second later.
    assert stage.prefix_hit_rate == 7 * 160 / (8 * 200)
    assert [each.num_output_tokens for each in stage.ranks] == [8 * 12]
    assert "a-secret" not in (tmp_path / "results.json").read_text()


def test_a_running_deployment_is_measured_and_stays(runtime, tmp_path: Path):
    trace = tmp_path / "trace.jsonl"
    lines = [
        {"timestamp": 40 * i, "input_length": 30, "output_length": 5, "hash_ids": [i % 2]}
        for i in range(6)
    ]
    trace.write_text("\n".join(map(json.dumps, lines)))
    loads = {
        "trace": ("bench=trace", f"bench.trace.path={trace}", "bench.trace.block_size=16"),
        "chat": ("bench=chat", "bench.think_s=0", "bench.input.max=20", "bench.num_sessions=3"),
        "rate": ("bench.rate=[40]", "bench.prompts=text", *SHORT),
    }
    with serving("model=tiny", SOON, runtime_directory=runtime) as (_, client):
        url = ("action=bench", f"bench.url={client.base_url}/v1", "bench.vocab_size=260")
        for name, load in loads.items():
            where = f"bench.dir={tmp_path / name}"
            done = ask(*url, *load, where, runtime_directory=runtime)
            assert done.returncode == 0, done.stderr
            assert done.stdout == ""
            assert "no effect" not in done.stderr
        assert client.get("/ready").status_code == 200
    found = {name: results_in(tmp_path / name) for name in loads}
    for results in found.values():
        assert (results.is_valid, results.model) == (True, "tiny")
        assert (results.plan_digest, results.start_up, list(results.config)) == (
            *(None, None),
            ["bench"],
        )
        assert len(results.stages[0].processes) == 3  # found by what the server says of itself
    replayed, talked, arrived = (found[name].stages[0] for name in loads)
    assert (replayed.name, replayed.num_prompt_tokens, replayed.num_requests) == ("trace", 180, 6)
    assert replayed.duration_s > 0.15
    assert talked.num_requests == 3 * 4
    assert talked.prefix_hit_rate is not None
    assert talked.prefix_hit_rate > 0.3  # each turn finds the ones before
    assert (arrived.name, arrived.rate) == ("rate 40/s", 40)
    assert arrived.num_prompt_tokens == pytest.approx(8 * 40, rel=0.4)  # texts are about as long


def test_a_server_of_another_kind_is_measured(runtime, tmp_path: Path):
    key = tmp_path / "key"
    key.write_text("secret\n")
    more = (f"bench.api_key_file={key}", f"bench.dir={tmp_path / 'results'}", *SHORT, "dp=2")
    with fake_server(fakes.knows_no_usage) as server:
        url = f"bench.url={server.url}"
        done = ask("action=bench", url, *more, runtime_directory=runtime)
        more = (more[0], f"bench.dir={tmp_path / 'again'}", *more[2:])
        again = ask("action=bench", url, *more, runtime_directory=runtime)
    assert done.returncode == 0, done.stderr
    assert again.returncode == 0, again.stderr
    prompts = [body["prompt"] for body in server.bodies]
    half = len(prompts) // 2
    # The same lengths, and nothing that the server may have cached.
    assert sorted(map(len, prompts[:half])) == sorted(map(len, prompts[half:]))
    assert not {tuple(each) for each in prompts[:half]} & {tuple(each) for each in prompts[half:]}
    results = results_in(tmp_path / "results")
    (stage,) = results.stages
    assert (results.model, stage.tokens_counted_by, stage.num_output_tokens) == (
        *("a-model", "parts"),
        8 * 12,
    )
    assert (stage.ranks, stage.prefix_hit_rate, stage.processes) == ([], None, [])
    assert any("does not count its tokens" in line for line in results.warnings)
    assert "warning: dp=2 has no effect with bench.url\n" in done.stderr
    assert set(server.keys) == {"Bearer secret"}
    assert "secret" not in (tmp_path / "results" / "results.json").read_text()


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (fakes.refuses, "8 of 8 requests failed: HTTP 503 (8)"),
        (fakes.ends_early, "8 of 8 requests failed: ended early (8)"),
        (fakes.stops_short, "8 of 8 requests failed: answer of another length (8)"),
    ],
)
def test_a_run_with_failures_is_invalid(runtime, tmp_path: Path, answer, problem: str):
    def well_at_first(handler, body):
        (fakes.whole if len(server.bodies) <= 3 else answer)(handler, body)

    with fake_server(well_at_first) as server:
        overrides = ("action=bench", f"bench.url={server.url}", *SHORT, f"bench.dir={tmp_path}")
        done = ask(*overrides, runtime_directory=runtime)
    assert done.returncode == 1, done.stderr
    results = results_in(tmp_path)
    assert not results.is_valid
    assert results.problems[0] == f"concurrency 4: {problem}"
    assert f"invalid: concurrency 4: {problem}\n" in done.stderr


def test_a_server_that_takes_nothing_is_told_with_what_may_help(runtime, tmp_path: Path):
    def wants_text(handler, body):
        handler.refuse(400, {"error": {"message": "prompt must be a text"}})

    with fake_server(wants_text) as server:
        overrides = ("action=bench", f"bench.url={server.url}", f"bench.dir={tmp_path}")
        done = ask(*overrides, runtime_directory=runtime)
    assert done.returncode == 1
    assert "does not take the load: HTTP 400: " in done.stderr
    assert "hint: bench.prompts=text" in done.stderr
    assert not results_in(tmp_path).is_valid


def test_a_server_that_is_not_there_is_told(runtime, tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"bench.url=http://127.0.0.1:{taken.getsockname()[1]}"
        done = ask("action=bench", url, f"bench.dir={tmp_path}", runtime_directory=runtime)
    assert done.returncode == 1
    assert "does not answer" in done.stderr
    assert results_in(tmp_path).stages == []


def until_in_flight(url: str) -> None:
    """Waits until a front end has a request."""
    deadline = time.monotonic() + 30
    while not re.search(r"requests_in_flight\{.*\} [1-9]", httpx.get(f"{url}/metrics").text):
        assert time.monotonic() < deadline


SLOW = ("action=bench", "model=dummy", "model.step_s=0.05", "bench.warm_up_sessions=1")
"""Sixteen requests of 3.2 s each."""


def test_an_engine_that_dies_under_load_makes_it_invalid(runtime, tmp_path: Path):
    with launched(*SLOW, f"bench.dir={tmp_path}", runtime_directory=runtime) as launcher:
        launcher.wait_for("warming up: 1 request")
        launcher.children()["engine-0"].kill()
        assert launcher.end(60) == 1, launcher.output
    results = results_in(tmp_path)
    assert results.problems[0].startswith("engine-0 ended: killed by SIGKILL")


def test_an_interrupted_benchmark_leaves_no_results_and_no_process(runtime, tmp_path: Path):
    overrides = (*SLOW, f"bench.dir={tmp_path / 'results'}", "bench.output.mean=1800")
    with launched(*overrides, runtime_directory=runtime) as launcher:
        url = launcher.ready()
        until_in_flight(url)
        family = psutil.Process(launcher.process.pid).children(recursive=True)
        assert any("launcher.bench.client" in each.cmdline() for each in family)
        launcher.signal(signal.SIGINT)
        assert launcher.end(60) == 130, launcher.output
    assert_ended(family)
    assert "interrupted\n" in launcher.lines
    # Whoever asks has left: there is nothing to wait for, and nothing has failed.
    assert "failed" not in launcher.output
    assert "cut off" not in launcher.output
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_measuring_a_running_server_can_be_interrupted(
    runtime, tmp_path: Path, number: signal.Signals, code: int
):
    asked, leave = threading.Event(), threading.Event()

    def hangs(handler, body):
        asked.set()
        leave.wait(60)

    with fake_server(hangs) as server:
        where = f"bench.dir={tmp_path / 'results'}"
        overrides = ("action=bench", f"bench.url={server.url}", where)
        with launched(*overrides, runtime_directory=runtime) as launcher:
            assert asked.wait(60), launcher.output
            family = launcher.family()
            launcher.signal(number)
            assert launcher.end(30) == code, launcher.output
        leave.set()
    assert_ended(family)
    assert launcher.lines[-1] == "interrupted\n"
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("overrides", "message", "hint"),
    [
        (["bench.input.mean=2000"], "2064 tokens in a session, the model takes", "bench.input.m"),
        (["bench=trace"], "bench.trace.path must be a file", "bench.trace.path=FILE"),
        (["bench.trace.path=none"], "bench.trace.path cannot be read: none (No", "bench.trace.pa"),
        (["bench.concurrency=[]"], "both are empty", "bench.concurrency=[4]"),
        (["bench.concurrency=[4,0]"], "each number of bench.concurrency must be at", "=[4]"),
        (["bench.concurrency=4"], "must be a list of whole numbers, such as [1,4]: 4", "=[4]"),
        (["bench.rate=2"], "must be a list of numbers, such as [0.5,2]: 2", "bench.rate=[2]"),
        (["bench.slo.ttft_ms=-3"], "bench.slo.ttft_ms must be more than 0", "ttft_ms=null"),
        (["bench.rate=[nan]"], "each number of bench.rate must be a finite", "bench.rate=[1]"),
        (["bench.turns=2"], "bench.api must be chat with bench.turns=2", "bench.api=chat"),
        (["bench.input.kind=uniform"], "bench.input.max must be a number", "bench.input.max=256"),
        (
            ["bench.output.kind=lognormal", "bench.output.min=9", "bench.output.max=3"],
            "bench.output.max must be at least bench.output.min (9): 3",
            "bench.output.max=9",
        ),
        (["bench.url=localhost:8000"], "bench.url must be http://HOST:PORT", "bench.url=http://"),
        (["bench.url=http://h", "bench.api_key_file=none"], "cannot be read: none", "=FILE"),
        (["bench.dir=/proc/results"], "bench.dir cannot be written: /proc", "bench.dir=DIR"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_starts(
    flotilla, overrides: list[str], message: str, hint: str
):
    code, _, said = flotilla("action=bench", "model=tiny", *overrides)
    assert code == 2
    told, _, hinted = said.partition("\nhint: ")
    assert message in told
    assert hint in hinted
    assert "ready" not in said


def test_other_results_are_not_overwritten(flotilla, tmp_path: Path):
    (tmp_path / "results.json").write_text("{}")
    code, _, said = flotilla("action=bench", "model=tiny", f"bench.dir={tmp_path}")
    assert code == 2
    assert said.startswith(f"bench.dir holds results already: {tmp_path}/results.json\n")
    assert (tmp_path / "results.json").read_text() == "{}"


def test_results_of_another_form_are_an_error():
    with pytest.raises(msgspec.DecodeError):
        decode(b'{"version": 1}')
