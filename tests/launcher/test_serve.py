"""`python -m launcher` as a user meets it: what a deployment of real processes answers."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.running import complete, random_model, serving, stream, until_plan

pytestmark = pytest.mark.timeout(120)

METRICS_S = 30


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


def test_it_says_what_the_start_took(runtime):
    with serving("model=tiny", "dp=2", runtime_directory=runtime) as (launcher, client):
        launcher.wait_for(r"planned after \d\.\d s; engine-\d was last: starting \d")
        wanted = {'frontend="frontend-0",', 'rank="0",', 'rank="1",', ""}
        deadline = time.monotonic() + METRICS_S
        while time.monotonic() < deadline:  # each process reports at its own pace
            page = client.get("/metrics").text
            found = re.findall(r'startup_phase_seconds{[^,]+,(.*)phase="starting",} (\S+)', page)
            if {process for process, _ in found} == wanted:
                break
        assert {process for process, _ in found} == wanted
        assert all(float(seconds) > 0 for _, seconds in found)


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


def test_without_a_compiler_it_serves_and_says_what_it_has_to_do_without(
    runtime, tmp_path, monkeypatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    with serving("model=tiny", runtime_directory=runtime) as (launcher, client):
        assert complete(client, model="tiny").status_code == 200
        members = client.get("/plan").json()["actual"]
        [remark] = [member["remark"] for member in members if member["remark"]]
    assert remark.startswith("torch's slower operators: no C compiler")
    assert launcher.output.count(f"engine-0     ready ({remark})") == 1


def test_a_request_has_the_clients_id_in_the_logs_of_every_process_that_sees_it(runtime):
    overrides = ("model=dummy", "log.level=debug")
    with serving(*overrides, runtime_directory=runtime) as (launcher, client):
        client.headers["X-Request-Id"] = "my-request"
        assert complete(client).headers["x-request-id"] == "my-request"
        for process in ("frontend-0", "engine-0"):
            log = (launcher.directory / "logs" / f"{process}.log").read_text()
            assert re.search(r"request my-request: ", log), process
