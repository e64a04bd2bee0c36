import os
import socket
from typing import Any

import pytest

from engine.config import FrontendOptions
from launcher.errors import Refused
from launcher.executors.listening import listen, url


def test_any_free_port_is_found():
    [bound] = listen(FrontendOptions(port=0))
    with bound:
        assert url(bound) == f"http://127.0.0.1:{bound.getsockname()[1]}"
        with socket.create_connection(bound.getsockname()):
            pass


def test_several_front_ends_have_a_socket_each_on_one_port():
    sockets = listen(FrontendOptions(port=0, count=3))
    ports = {each.getsockname()[1] for each in sockets}
    for each in sockets:
        each.close()
    assert len(sockets) == 3
    assert len(ports) == 1


@pytest.mark.parametrize("count", [1, 2])
def test_a_port_that_another_deployment_shares_out_is_taken(count: int):
    sockets = listen(FrontendOptions(port=0, count=2))
    port = sockets[0].getsockname()[1]
    try:
        with pytest.raises(Refused) as refusal:
            listen(FrontendOptions(port=port, count=count))
    finally:
        for each in sockets:
            each.close()
    assert f"frontend.port is taken: {port} (by pid {os.getpid()}" in str(refusal.value)
    assert refusal.value.hint.startswith("frontend.port=")


@pytest.mark.parametrize("count", [1, 2])
def test_of_two_that_have_bound_the_port_one_listens(count: int):
    """Each with SO_REUSEADDR can bind while the other does not listen yet."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        sockets = listen(FrontendOptions(port=port, count=count))
        try:
            with pytest.raises(OSError, match="in use"):
                other.listen()
            with pytest.raises(Refused, match=f"frontend.port is taken: {port}"):
                listen(FrontendOptions(port=port, count=count))
        finally:
            for each in sockets:
                each.close()


def test_the_port_is_never_free_while_the_sockets_of_several_front_ends_are_made(monkeypatch):
    port = free_port()
    created: list[socket.socket] = []
    refusals: list[str] = []

    class Observed(socket.socket):
        """Another launcher tries whenever a further socket is made."""

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            if created:
                with monkeypatch.context() as plain:
                    plain.setattr(socket, "socket", original)
                    refusal = pytest.raises(Refused, listen, FrontendOptions(port=port, count=2))
                refusals.append(str(refusal.value))
            created.append(self)

    original = socket.socket
    with monkeypatch.context() as observed:
        observed.setattr(socket, "socket", Observed)
        sockets = listen(FrontendOptions(port=port, count=3))
    for each in sockets:
        each.close()
    assert len(refusals) == 2
    assert all(f"frontend.port is taken: {port}" in refusal for refusal in refusals)


def test_no_socket_stays_open_when_the_port_is_taken():
    num_open = len(os.listdir("/proc/self/fd"))
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(Refused):
        listen(FrontendOptions(port=taken.getsockname()[1]))
    assert len(os.listdir("/proc/self/fd")) == num_open


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def test_a_host_that_is_elsewhere_is_refused():
    with pytest.raises(Refused, match="frontend.host is no address of this machine: 192.0.2.1"):
        listen(FrontendOptions(host="192.0.2.1", port=0))


@pytest.mark.parametrize("host", ["no.such.host.invalid", "é..é"])
def test_a_host_that_nobody_knows_is_refused(host: str):
    with pytest.raises(Refused, match=f"frontend.host is no address of this machine: {host}"):
        listen(FrontendOptions(host=host, port=0))


def test_an_ipv6_address_is_written_in_brackets():
    try:
        [bound] = listen(FrontendOptions(host="::1", port=0))
    except Refused:
        pytest.skip("this machine has no IPv6 loopback")
    with bound:
        assert url(bound).startswith("http://[::1]:")
