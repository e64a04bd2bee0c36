"""An engine core that speaks the real protocol over real sockets, and does what it is told."""

from collections.abc import Callable
from dataclasses import dataclass

import zmq

from engine import transport
from engine.checkpoints.tiny import END_TURN
from engine.config import Role
from engine.protocol import (
    TO_ENGINE,
    AbortRequests,
    AddRequest,
    EngineOutputs,
    FinishReason,
    Member,
    Phase,
    ProcessState,
    Register,
    RequestOutput,
    engine_identity,
)


@dataclass
class FakeEngine:
    """One incarnation of a rank."""

    rank: int
    incarnation: int = 0
    state: ProcessState = ProcessState.ready
    phase: Phase = Phase.ready
    reason: str = ""
    is_connecting: bool = True
    """Connects to front ends when it learns of them."""
    is_heard: bool = True
    """What it sends arrives."""
    num_sent: int = 0
    last_received: int = -1
    is_deaf_to: Callable[[AddRequest | AbortRequests], bool] | None = None
    """The next such message never arrives."""
    requests: "zmq.Socket[bytes] | None" = None
    outputs: "zmq.Socket[bytes] | None" = None

    def member(self) -> Member:
        return Member(
            name=f"engine-{self.rank}",
            role=Role.engine,
            rank=self.rank,
            incarnation=self.incarnation,
            node="head",
            pid=1000 + self.rank,
            devices=[],
            state=self.state,
            phase=self.phase,
            since_s=0.0,
            reason=self.reason,
        )

    def connect(self, context: "zmq.Context[zmq.Socket[bytes]]", hello: Register) -> None:
        """To a front end, if it shall and has not yet."""
        if self.requests is None and self.is_connecting:
            identity = engine_identity(self.rank, self.incarnation)
            requests, outputs = hello.endpoints["requests"], hello.endpoints["outputs"]
            self.requests = transport.connect(context, zmq.DEALER, requests, identity)
            self.outputs = transport.connect(context, zmq.PUSH, outputs)

    def disconnect(self) -> None:
        for socket in (self.requests, self.outputs):
            if socket is not None:
                socket.close()
        self.requests = self.outputs = None

    def receive(self) -> AddRequest | AbortRequests | None:
        """The next message, None if it never arrives; a gap before it is told."""
        assert self.requests is not None
        message = TO_ENGINE.decode(self.requests.recv())
        if self.is_deaf_to is not None and self.is_deaf_to(message):
            self.is_deaf_to = None
            return None
        expected, self.last_received = self.last_received + 1, message.sequence
        if message.sequence != expected:
            self.send([], lost=(expected, message.sequence - 1))
        return message

    def answer(self, request: AddRequest, text: bytes) -> None:
        """A token per step: the text's bytes, then the end of the turn."""
        tokens = [*text, END_TURN]
        tokens = tokens[: request.sampling.max_tokens]
        for position, token in enumerate(tokens, start=1):
            reason = None
            if token == END_TURN:
                reason = FinishReason.stop
            elif position == request.sampling.max_tokens:
                reason = FinishReason.length
            self.send([RequestOutput(request.request_id, [token], reason, 2)])

    def send(self, outputs: list[RequestOutput], lost: tuple[int, int] | None = None) -> None:
        """One step's outputs."""
        message = EngineOutputs(
            self.rank, self.incarnation, self.num_sent, self.last_received, outputs, lost
        )
        self.num_sent += 1
        self.send_message(message)

    def send_message(self, message: EngineOutputs) -> None:
        assert self.outputs is not None
        if self.is_heard:
            transport.send(self.outputs, message)
