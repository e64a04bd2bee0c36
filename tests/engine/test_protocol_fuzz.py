"""Whatever arrives on a socket, a decoder gives a message or raises ProtocolError."""

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine import protocol, transport
from engine.config import Role
from engine.errors import ProtocolError
from engine.metrics import HTTP_REQUESTS, Metrics
from engine.protocol import FinishReason, Phase, ProcessState
from engine.sampling import SamplingParams

DECODERS: dict[str, "msgspec.msgpack.Decoder[Any]"] = {
    name: value
    for name, value in vars(protocol).items()
    if isinstance(value, msgspec.msgpack.Decoder)
}


def metric_values() -> Any:
    metrics = Metrics(Role.frontend)
    metrics.add(HTTP_REQUESTS, labels=("/v1", "200", ""))
    return metrics.values()


MEMBER = protocol.Member(
    name="engine-0",
    role=Role.engine,
    rank=0,
    incarnation=1,
    node="head",
    pid=7,
    devices=[0],
    state=ProcessState.ready,
    phase=Phase.ready,
    since_s=1.5,
)
REPORT = protocol.MetricsReport("frontend-0", 1, Role.frontend, None, metric_values())
LOAD = protocol.RankLoad(0, 1, 2, 3, 4, 5, 0.5, 0.01)
MESSAGES = [
    protocol.AddRequest(0, 1, [1, 2, 3], SamplingParams(max_tokens=5), "req-1"),
    protocol.AbortRequests(1, [1, 2], [2]),
    protocol.EngineOutputs(
        *(0, 1, 2, 3),
        [protocol.RequestOutput(1, [5], FinishReason.stop, 16, "")],
        (4, 5),
    ),
    protocol.PhaseEntered("engine-0", 1, Phase.loading_weights),
    protocol.Heartbeat("engine-0", 1, 2, 3, 0.5),
    protocol.LoadReport("engine-0", LOAD),
    REPORT,
    protocol.Drained("frontend-0", 1),
    protocol.ApplyPlan([], msgspec.Raw(msgspec.msgpack.encode({"dp": 1}))),
    protocol.ProcessExited("engine-0", 1, "killed"),
    protocol.GetPlan(1),
    protocol.Registered("ipc:///tmp/x"),
    protocol.RegisterAgain(),
    protocol.PlanAnswer(1, {"dp": 1}, [MEMBER], ["it differs"]),
    protocol.Membership(1, protocol.DeploymentState.serving, [MEMBER], [], []),
    protocol.Loads(1, [LOAD]),
    protocol.MetricsSnapshot([REPORT]),
]
FRAMES = [protocol.ENCODER.encode(message) for message in MESSAGES]


def decode(decoder: "msgspec.msgpack.Decoder[Any]", frame: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        transport.decode(decoder, frame, "a test")


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: str(frame[:20]))
def test_every_sample_is_a_message_of_one_direction(frame: bytes):
    def is_taken(decoder: "msgspec.msgpack.Decoder[Any]") -> bool:
        try:
            transport.decode(decoder, frame, "a test")
        except ProtocolError:
            return False
        return True

    assert any(map(is_taken, DECODERS.values()))


@pytest.mark.parametrize("name", DECODERS)
@given(frame=st.binary(max_size=200))
@example(frame=b"\x91" * 100_000)  # arrays in arrays
@example(frame=b"\xdd\xff\xff\xff\xff")  # an array that is said to be as long as can be
@example(frame=b"\xc6\xff\xff\xff\xff")
def test_any_bytes_are_a_message_or_a_protocol_error(name: str, frame: bytes):
    decode(DECODERS[name], frame)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A valid frame in which some bytes were changed, lost or added."""
    frame = bytearray(draw(st.sampled_from(FRAMES)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(frame)))
        end = min(len(frame), start + draw(st.integers(0, 4)))
        frame[start:end] = draw(st.binary(max_size=5))
    return bytes(frame)


@pytest.mark.parametrize("name", DECODERS)
@given(frame=damaged())
def test_damaged_messages_are_messages_or_protocol_errors(name: str, frame: bytes):
    decode(DECODERS[name], frame)


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda each: st.lists(each, max_size=4) | st.dictionaries(st.text(max_size=5), each),
    max_leaves=8,
)


@pytest.mark.parametrize("name", DECODERS)
@given(message=st.sampled_from(MESSAGES), data=st.data())
def test_fields_of_other_types_are_protocol_errors(name: str, message: Any, data: st.DataObject):
    fields = msgspec.msgpack.decode(protocol.ENCODER.encode(message))
    index = data.draw(st.integers(0, len(fields) - 1))
    fields[index] = data.draw(JSON_LIKE)
    decode(DECODERS[name], msgspec.msgpack.encode(fields))
