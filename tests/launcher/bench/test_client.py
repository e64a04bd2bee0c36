"""The client against servers that answer well and badly, over real sockets."""

import socket
import time
from array import array

import pytest

from launcher.bench import content
from launcher.bench.client import Driver
from launcher.bench.messages import Job, Outcome, Piece, Session, Target, Turn
from launcher.bench.server import Server
from tests.launcher.bench import fake_server as fakes
from tests.launcher.bench.fake_server import fake_server


def target_at(url: str, is_chat: bool = False, **changes) -> Target:
    server = Server.at(url)
    given = {
        "path": "/v1/chat/completions" if is_chat else "/v1/completions",
        "model": "m",
        "vocab_size": None if is_chat else 1000,
        "answer_s": 20.0,
    }
    return Target(host=server.host, port=server.port, is_chat=is_chat, **(given | changes))


def sessions_of(number: int, turns: int = 1, num_input: int = 6) -> list[Session]:
    return [
        Session([Turn([Piece(f"{session}/{turn}", num_input)], 4) for turn in range(turns)])
        for session in range(number)
    ]


async def drive(target: Target, sessions: list[Session], concurrency: int | None = 2) -> Outcome:
    job = Job(target=target, sessions=sessions, begin_s=time.monotonic(), concurrency=concurrency)
    return await Driver(job).run()


async def test_a_whole_answer_has_times_and_the_servers_count():
    with fake_server(fakes.whole) as server:
        outcome = await drive(target_at(server.url, api_key="secret"), sessions_of(5))
    assert len(outcome.records) == 5
    assert outcome.num_not_sent == 0
    for record in outcome.records:
        assert (record.cause, record.is_counted) == ("", True)
        assert (record.num_prompt_tokens, record.num_output_tokens) == (6, 4)
        assert record.first_s is not None
        assert record.last_s is not None
        assert record.start_s < record.first_s <= record.last_s <= record.end_s
        gaps = array("f", record.gaps)
        assert len(gaps) == 3
        assert sum(gaps) == pytest.approx(record.last_s - record.first_s, abs=1e-4)
    body = server.bodies[0]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 4, 0)
    assert body["stream"] is body["ignore_eos"] is True
    assert len({str(each["prompt"]) for each in server.bodies}) == 5
    assert set(server.keys) == {"Bearer secret"}


async def test_a_session_tells_its_history_in_each_turn():
    with fake_server(fakes.chat) as server:
        outcome = await drive(target_at(server.url, is_chat=True), sessions_of(1, turns=3))
    assert [record.cause for record in outcome.records] == ["", "", ""]
    roles = [[each["role"] for each in body["messages"]] for body in server.bodies]
    assert roles == [
        ["user"],
        ["user", "assistant", "user"],
        ["user", "assistant", "user", "assistant", "user"],
    ]
    last = server.bodies[-1]["messages"]
    assert last[1]["content"] == "bbbb"
    assert last[:1] == server.bodies[0]["messages"]
    # The event with the role alone, and the one with the reason of the end, hold no token.
    assert all(len(record.gaps) // 4 == 3 for record in outcome.records)


async def test_sessions_by_the_clock_start_when_they_should():
    sessions = [Session(each.turns, 0.1 * i) for i, each in enumerate(sessions_of(3))]
    with fake_server(fakes.whole) as server:
        outcome = await drive(target_at(server.url), sessions, concurrency=None)
    starts = sorted(record.start_s for record in outcome.records)
    assert starts[1] - starts[0] >= 0.09
    assert starts[2] - starts[0] >= 0.19


async def test_a_client_that_is_late_counts_from_when_it_should_have_asked(
    monkeypatch: pytest.MonkeyPatch,
):
    make = content.token_ids

    def make_slowly(pieces, *of):
        if pieces[0].key.startswith("0/"):
            time.sleep(0.3)  # the event loop stands still
        return make(pieces, *of)

    monkeypatch.setattr(content, "token_ids", make_slowly)
    sessions = [Session(each.turns, 0.05 * i) for i, each in enumerate(sessions_of(3))]
    with fake_server(fakes.whole) as server:
        outcome = await drive(target_at(server.url), sessions, concurrency=None)
    starts = sorted(record.start_s for record in outcome.records)
    assert starts[2] - starts[0] == pytest.approx(0.1, abs=0.02)
    assert all((record.first_s or 0) - record.start_s > 0.15 for record in outcome.records)
    assert len([lag for lag in outcome.lags_s if lag > 0.15]) >= 3


@pytest.mark.parametrize(
    ("answer", "cause", "message"),
    [
        (fakes.ends_early, "ended early", "after 1 parts, without [DONE]"),
        (fakes.stops_short, "answer of another length", "1 of 4 tokens"),
        (fakes.fails_in_the_middle, "error event", "rank_failed"),
        (fakes.refuses, "HTTP 503", "overloaded"),
        (fakes.writes_nonsense, "malformed answer", "malformed"),
        (fakes.hangs_up, "connection lost", "closed by the server"),
    ],
)
async def test_a_bad_answer_is_a_failure_with_its_cause(answer, cause: str, message: str):
    with fake_server(answer) as server:
        (record,) = (await drive(target_at(server.url), sessions_of(1))).records
    assert record.cause == cause
    assert message in record.message


async def test_a_server_that_is_not_there_is_given_up():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        outcome = await drive(target_at(url), sessions_of(100), concurrency=1)
    assert {record.cause for record in outcome.records} == {"no connection"}
    assert len(outcome.records) + outcome.num_not_sent == 100
    assert outcome.num_not_sent > 0


async def test_an_answer_has_a_deadline():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        outcome = await drive(target_at(url, answer_s=0.1), sessions_of(1))
    (record,) = outcome.records
    assert (record.cause, record.message) == ("no whole answer in time", "bench.answer_s=0.1")


async def test_a_failed_turn_ends_its_session_alone():
    def fails_the_second(handler, body):
        (fakes.refuses if len(body["messages"]) == 3 else fakes.chat)(handler, body)

    with fake_server(fails_the_second) as server:
        outcome = await drive(target_at(server.url, is_chat=True), sessions_of(2, turns=3))
    assert [record.cause for record in outcome.records].count("HTTP 503") == 2
    assert (len(outcome.records), outcome.num_not_sent) == (4, 2)


async def test_without_usage_the_parts_of_the_answer_are_counted():
    with fake_server(fakes.whole) as server:
        target = target_at(server.url, includes_usage=False, ignore_eos=False)
        (record,) = (await drive(target, sessions_of(1))).records
    assert (record.num_prompt_tokens, record.num_output_tokens, record.is_counted) == (6, 4, False)
    assert "stream_options" not in server.bodies[0]
    assert "ignore_eos" not in server.bodies[0]
