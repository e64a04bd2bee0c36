"""An engine core's process over real sockets: with the real coordinator, the test as front end."""

import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from engine import transport
from engine.config import ProcessSpec, Role, Settings, WorkerSpec
from engine.coordinator.process import Coordinator
from engine.core.process import CoreProcess
from engine.link import CoordinatorLink
from engine.protocol import (
    ENGINE_OUTPUTS,
    AbortRequests,
    AddRequest,
    EngineOutputs,
    FinishReason,
    Membership,
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
        self.link = CoordinatorLink(endpoint, hello, 0.05, self._take)
        self.link.start()
        self.next_sequence = 0

    def _take(self, membership: Membership) -> None:
        with self.changed:
            self.membership = membership
            self.changed.notify_all()

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
    """Coordinator and engine core in threads of the test's process."""

    def __init__(self, settings: Settings, endpoint: str) -> None:
        head = ProcessSpec(name="coordinator", role=Role.coordinator, node="head")
        self.coordinator = Coordinator(head, settings, endpoint, 1)
        self.core = CoreProcess(ENGINE, settings, endpoint, 1)
        self.frontend = FrontEnd(endpoint)
        self.threads = [
            threading.Thread(target=self.coordinator.main_loop),
            threading.Thread(target=self._run_core),
        ]
        for thread in self.threads:
            thread.start()

    def _run_core(self) -> None:
        self.core.start_up()
        self.core.main_loop()

    def close(self) -> None:
        self.core.stop()
        self.threads[1].join(10)
        self.core.shut_down()
        self.frontend.close()
        self.coordinator.stop()
        self.threads[0].join(10)
        self.coordinator.close()


@pytest.fixture
def running() -> Iterator[Running]:
    with tempfile.TemporaryDirectory(prefix="fl") as directory:
        settings = dummy_settings(max_model_len=MAX_LEN, cache={"num_blocks": MAX_LEN // 16 + 1})
        made = Running(settings, f"ipc://{directory}/coordinator")
        try:
            yield made
        finally:
            made.close()


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


def test_an_incarnation_that_is_given_up_ends(running: Running):
    ready = ProcessState.ready
    running.frontend.wait(
        lambda m: any(e.name == "engine-0" and e.state is ready for e in m.members)
    )
    running.frontend.link.send(ProcessExited("engine-0", 1, "fenced"))
    running.threads[1].join(10)
    assert not running.threads[1].is_alive()


def test_requests_of_a_front_end_that_is_lost_are_forgotten(running: Running):
    def has(num_requests: int) -> Callable[[Membership], bool]:
        return lambda m: any(
            e.name == "engine-0" and e.num_requests == num_requests for e in m.members
        )

    running.frontend.send(add(0, MAX_LEN - 100))
    running.frontend.wait(has(1))
    running.frontend.link.send(ProcessExited("frontend-0", 1, "gone"))
    running.frontend.wait(has(0))


def test_the_plan_is_asked_for_and_answered(running: Running):
    answer = running.frontend.link.get_plan().result(10)
    assert {member.name for member in answer.actual} >= {"coordinator", "frontend-0"}
