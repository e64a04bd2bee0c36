"""An engine core's two sockets to one front end, with the numbers that find lost messages."""

import logging

import zmq

from engine import transport
from engine.protocol import EngineOutputs, RequestOutput, engine_identity

logger = logging.getLogger(__name__)


class FrontendLink:
    """Requests in, outputs out. Messages are numbered both ways.

    Args:
        process_name: Of the front end.
        name: The same with its incarnation.
        endpoints: What it binds: `requests` and `outputs`.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        process_name: str,
        name: str,
        endpoints: dict[str, str],
        rank: int,
        incarnation: int,
    ) -> None:
        self.process_name, self.name = process_name, name
        self._rank, self._incarnation = rank, incarnation
        identity = engine_identity(rank, incarnation)
        self.requests = transport.connect(context, zmq.DEALER, endpoints["requests"], identity)
        self._outputs = transport.connect(context, zmq.PUSH, endpoints["outputs"])
        self._num_sent = 0
        self._last_received = -1

    def note_received(self, sequence: int) -> int:
        """Takes a message's number; a gap is told at once, so that its requests fail.

        Returns:
            How many messages before it were lost.
        """
        expected = self._last_received + 1
        self._last_received = sequence
        if sequence > expected:
            logger.error("messages %d to %d from %s were lost", expected, sequence - 1, self.name)
            self.send([], lost=(expected, sequence - 1))
        return max(0, sequence - expected)

    def send(self, outputs: list[RequestOutput], lost: tuple[int, int] | None = None) -> None:
        """Sends one step's outputs. A full queue loses them, which the numbers then show."""
        message = EngineOutputs(
            rank=self._rank,
            incarnation=self._incarnation,
            sequence=self._num_sent,
            acknowledged=self._last_received,
            outputs=outputs,
            lost=lost,
        )
        self._num_sent += 1
        try:
            transport.send(self._outputs, message)
        except zmq.Again:
            logger.error(
                "outputs %d to %s were lost: it does not read", message.sequence, self.name
            )

    def close(self) -> None:
        self.requests.close()
        self._outputs.close()
