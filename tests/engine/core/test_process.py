"""An engine core's process over real sockets: with the real coordinator, the test as front end."""

import logging
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from engine import transport
from engine.config import CoordinatorOptions, ProcessSpec, Role, Settings, WorkerSpec
from engine.coordinator.process import Coordinator
from engine.core.process import CoreProcess
from engine.link import CoordinatorLink
from engine.metrics import LOST_MESSAGES, REQUEST_SUCCESS, Metric
from engine.model.dummy_runner import DummyRunner
from engine.model.runner import Runner
from engine.protocol import (
    ENGINE_OUTPUTS,
    AbortRequests,
    AddRequest,
    EngineOutputs,
    FinishReason,
    Member,
    Membership,
    MetricsSnapshot,
    Phase,
    ProcessExited,
    ProcessState,
    Register,
    engine_identity,
)
from engine.sampling import SamplingParams
from tests.engine.settings import dummy_settings

DEADLINE_MS = 10_000
MAX_LEN = 1_000_000
"""A request of so many tokens does not end by itself within any deadline here."""
ENGINE = ProcessSpec(
    name="engine-0",
    role=Role.engine,
    node="head",
    rank=0,
    local_rank=0,
    workers=(
        WorkerSpec(index=0, node="head", group="rank-0", bundle=0, devices=(), num_threads=1),
    ),
)


class FrontEnd:
    """A front end by hand: two bound sockets, and a link to the coordinator."""

    def __init__(self, endpoint: str) -> None:
        self.context = zmq.Context()
        directory = Path(endpoint.removeprefix("ipc://")).parent
        self.requests, requests = transport.bind(
            self.context, zmq.ROUTER, f"ipc://{directory}/requests"
        )
        self.outputs, outputs = transport.bind(self.context, zmq.PULL, f"ipc://{directory}/outputs")
        endpoints = {"requests": requests, "outputs": outputs}
        hello = Register("frontend-0", 1, Role.frontend, None, "head", 1, [], endpoints, {})
        self.connections = self.requests.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self.is_connected = False
        self.changed = threading.Condition()
        self.membership: Membership | None = None
        self.reasons: list[str] = []
        """Of states that the engine has been in."""
        self.counted: set[tuple[str, tuple[str, ...], float]] = set()
        self.link = CoordinatorLink(endpoint, hello, 0.05, self._take, on_metrics=self._count)
        self.link.start()
        self.next_sequence = 0

    def _take(self, membership: Membership) -> None:
        with self.changed:
            self.membership = membership
            self.reasons += [each.reason for each in membership.members if each.rank == 0]
            self.changed.notify_all()

    def _count(self, snapshot: MetricsSnapshot) -> None:
        values = [value for report in snapshot.processes for value in report.values]
        with self.changed:
            self.counted.update((value.name, value.labels, value.value) for value in values)
            self.changed.notify_all()

    def wait_for_count(self, metric: Metric, label: str, value: float) -> None:
        """Waits until the engine has reported this."""
        key = (metric.name, (label,), value)
        with self.changed:
            is_told = self.changed.wait_for(lambda: key in self.counted, DEADLINE_MS / 1000)
            assert is_told, self.counted

    def wait_for_engine(self, holds: Callable[[Member], bool]) -> None:
        self.wait(lambda m: any(each.name == "engine-0" and holds(each) for each in m.members))

    def wait(self, holds: Callable[[Membership], bool]) -> Membership:
        with self.changed:
            assert self.changed.wait_for(
                lambda: self.membership is not None and holds(self.membership), DEADLINE_MS / 1000
            ), self.membership
            assert self.membership is not None
            return self.membership

    def send(self, make: Callable[[int], AddRequest | AbortRequests], skip: int = 0) -> None:
        """Sends the message that `make` gives for its number, after `skip` numbers unused."""
        if not self.is_connected:
            assert self.connections.poll(DEADLINE_MS), "the engine has not connected"
            self.is_connected = True
        self.next_sequence += skip
        transport.send(self.requests, make(self.next_sequence), engine_identity(0, 1))
        self.next_sequence += 1

    def receive(self) -> EngineOutputs:
        assert self.outputs.poll(DEADLINE_MS), "no outputs"
        return ENGINE_OUTPUTS.decode(self.outputs.recv())

    def close(self) -> None:
        self.link.close()
        self.requests.disable_monitor()
        self.connections.close()
        self.requests.close()
        self.outputs.close()
        self.context.term()


class Running:
    """Coordinator and engine core in threads of the test's process.

    Attributes:
        may_turn: The engine core's main loop begins when this is set.
    """

    def __init__(self, settings: Settings, endpoint: str, core: type[CoreProcess]) -> None:
        head = ProcessSpec(name="coordinator", role=Role.coordinator, node="head")
        self.may_turn = threading.Event()
        self.coordinator = Coordinator(head, settings, endpoint, 1)
        self.core = core(ENGINE, settings, endpoint, 1)
        self.frontend = FrontEnd(endpoint)
        self.threads = [
            threading.Thread(target=self.coordinator.main_loop),
            threading.Thread(target=self._run_core),
        ]
        for thread in self.threads:
            thread.start()

    def _run_core(self) -> None:
        self.core.start_up()
        assert self.may_turn.wait(DEADLINE_MS / 1000)
        self.core.main_loop()

    def close(self) -> None:
        self.may_turn.set()
        self.core.stop()
        self.threads[1].join(10)
        self.core.shut_down()
        self.frontend.close()
        self.coordinator.stop()
        self.threads[0].join(10)
        self.coordinator.close()


@contextmanager
def started(core: type[CoreProcess] = CoreProcess, step_s: float = 0.0) -> Iterator[Running]:
    with tempfile.TemporaryDirectory(prefix="fl") as directory:
        settings = dummy_settings(
            max_model_len=MAX_LEN,
            cache={"num_blocks": MAX_LEN // 16 + 1},
            coordinator=CoordinatorOptions(metrics_interval_s=0.05),
        )
        settings.model.step_s = step_s
        made = Running(settings, f"ipc://{directory}/coordinator", core)
        try:
            yield made
        finally:
            made.close()


@pytest.fixture
def running() -> Iterator[Running]:
    with started() as made:
        made.may_turn.set()
        yield made


def add(request_id: int, num_tokens: int, prompt: list[int] | None = None):
    sampling = SamplingParams(num_tokens, temperature=0.0, ignore_eos=True)
    return lambda sequence: AddRequest(sequence, request_id, prompt or [1, 2, 3], sampling)


def test_outputs_are_numbered_and_acknowledge_what_was_received(running: Running):
    running.frontend.send(add(7, 3))
    outputs = [running.frontend.receive() for _ in range(3)]
    assert [each.sequence for each in outputs] == [0, 1, 2]
    assert [each.acknowledged for each in outputs] == [0, 0, 0]
    assert [each.outputs[0].token_ids for each in outputs] == [[97], [98], [99]]
    assert [each.outputs[0].finish_reason for each in outputs] == [None, None, FinishReason.length]


def test_a_gap_in_the_numbers_is_told_at_once(running: Running):
    running.frontend.send(add(0, 1))
    running.frontend.receive()
    running.frontend.send(add(3, 1), skip=2)
    told = running.frontend.receive()
    assert told.lost == (1, 2)
    assert running.frontend.receive().outputs[0].request_id == 3
    running.frontend.wait_for_count(LOST_MESSAGES, "frontend-0", 2)


def test_a_probe_is_answered_so_that_lost_outputs_show(running: Running):
    running.frontend.send(lambda sequence: AbortRequests(sequence, []))
    assert running.frontend.receive() == EngineOutputs(0, 1, 0, 0, [])
    running.frontend.send(lambda sequence: AbortRequests(sequence, []), skip=1)
    assert running.frontend.receive() == EngineOutputs(0, 1, 1, 2, [], lost=(1, 1))
    assert running.frontend.receive() == EngineOutputs(0, 1, 2, 2, [])


def test_an_aborted_request_gives_no_more_outputs(running: Running):
    running.frontend.send(add(0, MAX_LEN - 100))
    running.frontend.receive()
    running.frontend.send(lambda sequence: AbortRequests(sequence, [0]))
    running.frontend.send(add(1, 1))
    while (outputs := running.frontend.receive().outputs)[-1].request_id != 1:
        assert outputs[0].finish_reason is None
    running.frontend.send(add(2, 1))
    later = running.frontend.receive().outputs
    assert [each.request_id for each in outputs + later] == [1, 2]


def test_requests_that_a_stop_string_ended_are_counted_apart(running: Running):
    for request_id in range(3):
        running.frontend.send(add(request_id, MAX_LEN - 100))
    running.frontend.send(lambda sequence: AbortRequests(sequence, [0, 1, 2], stopped=[0, 2]))
    running.frontend.wait_for_count(REQUEST_SUCCESS, "stop", 2)
    running.frontend.wait_for_count(REQUEST_SUCCESS, "abort", 1)


@pytest.mark.parametrize("prompt", [[-1], [100_000], [5] * MAX_LEN])
def test_a_request_that_cannot_be_run_is_answered_with_an_error(running: Running, prompt):
    running.frontend.send(add(0, 4, prompt))
    [refusal] = running.frontend.receive().outputs
    assert refusal.finish_reason is FinishReason.error
    assert refusal.error
    running.frontend.send(add(1, 1))
    assert running.frontend.receive().outputs[0].finish_reason is FinishReason.length


def test_a_message_that_makes_no_sense_is_ignored(running: Running):
    running.frontend.send(add(0, 1))
    running.frontend.receive()
    running.frontend.requests.send_multipart([engine_identity(0, 1), b"nonsense"])
    running.frontend.send(add(1, 1))
    assert running.frontend.receive().outputs[0].request_id == 1


def test_a_rank_whose_steps_are_long_is_suspect_in_the_first_one_alone():
    with started(step_s=1.6) as running:
        running.may_turn.set()
        running.frontend.send(add(0, 4))
        running.frontend.wait_for_engine(lambda engine: engine.state is ProcessState.suspect)
        running.frontend.receive()
        running.frontend.wait_for_engine(lambda engine: engine.state is ProcessState.ready)
        running.frontend.reasons.clear()
        for _ in range(3):
            running.frontend.receive()
        assert not [each for each in running.frontend.reasons if "no progress" in each]


def test_an_incarnation_that_is_given_up_ends(running: Running):
    running.frontend.wait_for_engine(lambda engine: engine.state is ProcessState.ready)
    running.frontend.link.send(ProcessExited("engine-0", 1, "fenced"))
    running.threads[1].join(10)
    assert not running.threads[1].is_alive()


class FencedWhileLoading(CoreProcess):
    """Its weights take until the coordinator gives it up."""

    def _make_runner(self) -> Runner:
        given_up = threading.Event()
        handler = logging.Handler()
        handler.emit = lambda record: given_up.set()  # type: ignore[method-assign]
        logging.getLogger("engine.core.process").addHandler(handler)

        class Slow(DummyRunner):
            def load_weights(self) -> None:
                assert given_up.wait(DEADLINE_MS / 1000)
                logging.getLogger("engine.core.process").removeHandler(handler)

            def allocate_cache(self) -> None:
                raise AssertionError("it was given up before")

        return Slow()


def test_an_incarnation_that_is_given_up_while_it_starts_ends():
    with started(FencedWhileLoading) as running:
        running.may_turn.set()
        running.frontend.wait_for_engine(lambda engine: engine.phase is Phase.loading_weights)
        running.frontend.link.send(ProcessExited("engine-0", 1, "fenced"))
        running.threads[1].join(10)
        assert not running.threads[1].is_alive()


def test_a_main_loop_that_is_stuck_without_work_is_suspect_until_it_turns():
    with started() as running:
        suspect, ready = ProcessState.suspect, ProcessState.ready
        running.frontend.wait_for_engine(
            lambda engine: engine.state is suspect and "no work but is stuck" in engine.reason
        )
        running.may_turn.set()
        running.frontend.wait_for_engine(lambda engine: engine.state is ready)


def test_requests_of_a_front_end_that_is_lost_are_forgotten(running: Running):
    running.frontend.send(add(0, MAX_LEN - 100))
    running.frontend.wait_for_engine(lambda engine: engine.num_requests == 1)
    running.frontend.link.send(ProcessExited("frontend-0", 1, "gone"))
    running.frontend.wait_for_engine(lambda engine: engine.num_requests == 0)


def test_the_plan_is_asked_for_and_answered(running: Running):
    answer = running.frontend.link.get_plan().result(10)
    assert {member.name for member in answer.actual} >= {"coordinator", "frontend-0"}
