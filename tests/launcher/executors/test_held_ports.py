"""Ports that are kept for processes that come and go."""

import contextlib
import socket
from collections.abc import Iterator

import pytest
import zmq

from launcher.errors import Refused
from launcher.executors.held_ports import HeldPorts

HOST = "127.0.0.1"


@pytest.fixture
def held() -> Iterator[HeldPorts]:
    ports = HeldPorts(HOST)
    yield ports
    ports.release()


def adjacent_free_ports(number: int) -> int:
    """The first of so many ports that nobody has, below those that the kernel gives away."""
    for first in range(20000, 32000 - number, number):
        with contextlib.ExitStack() as taken:
            try:
                for port in range(first, first + number):
                    taken.enter_context(socket.create_server((HOST, port)))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")


def listen_as_zmq(port: int) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind(f"tcp://{HOST}:{port}")


def test_any_free_ports_are_found(held: HeldPorts):
    held.hold(4, None)
    assert len(set(held.numbers)) == 4
    assert held.endpoint(0) == f"tcp://{HOST}:{held.numbers[0]}"


def test_zmq_can_listen_on_a_held_port_again_and_again(held: HeldPorts):
    held.hold(1, None)
    for _ in range(3):
        listen_as_zmq(held.numbers[0])


def test_ports_of_a_range_are_taken_in_order_and_those_in_use_are_skipped(held: HeldPorts):
    first = adjacent_free_ports(5)
    with socket.create_server((HOST, first + 1)):
        held.hold(3, (first, first + 4))
    assert held.numbers == [first, first + 2, first + 3]


def test_two_who_hold_ports_of_one_range_get_different_ones(held: HeldPorts):
    first = adjacent_free_ports(4)
    others = HeldPorts(HOST)
    held.hold(2, (first, first + 3))
    others.hold(2, (first, first + 3))
    numbers = others.numbers.copy()
    others.release()
    assert not set(numbers) & set(held.numbers)


def test_too_few_ports_are_refused_and_all_let_go(held: HeldPorts):
    first = adjacent_free_ports(3)
    with socket.create_server((HOST, first + 1)), pytest.raises(Refused) as refusal:
        held.hold(3, (first, first + 2))
    assert str(refusal.value) == f"ports must have 3 free ports on {HOST}: {first}-{first + 2}"
    assert refusal.value.hint == "ports=ephemeral, or another range"
    assert held.numbers == []
    socket.create_server((HOST, first)).close()


def test_released_ports_are_anybodys(held: HeldPorts):
    held.hold(1, None)
    [port] = held.numbers
    held.release()
    socket.create_server((HOST, port)).close()


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(Refused, match="the head cannot listen on 192.0.2.77") as refusal:
        HeldPorts("192.0.2.77").hold(1, None)
    assert "head.interface" in refusal.value.hint


def test_ipv6_ports_are_held_and_written_with_brackets():
    ports = HeldPorts("::1")
    try:
        ports.hold(1, None)
    except Refused:
        pytest.skip("no IPv6 here")
    assert ports.endpoint(0) == f"tcp://[::1]:{ports.numbers[0]}"
    ports.release()
