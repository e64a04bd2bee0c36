"""Which cluster would be used, before Ray is asked anything."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.errors import Refused
from launcher.executors.ray.session import Session, running_cluster


@pytest.fixture
def listening() -> Iterator[str]:
    """The address of somebody who accepts connections, and is no Ray cluster."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def written(tmp_path: Path, address: str) -> dict[str, str]:
    """An environment whose temporary directory says that a cluster runs there."""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(f"{address}\n")
    return {"RAY_TMPDIR": str(tmp_path)}


def test_the_address_that_was_told_comes_before_the_environments(tmp_path, listening):
    environment = {"RAY_ADDRESS": "10.0.0.2:6379", **written(tmp_path, listening)}
    assert running_cluster("10.0.0.1:6379", environment) == "10.0.0.1:6379"
    assert running_cluster(None, environment) == "10.0.0.2:6379"


@pytest.mark.parametrize("told", [None, "auto"])
def test_without_an_address_the_cluster_of_this_machine_is_found(tmp_path, listening, told):
    assert running_cluster(told, written(tmp_path, listening)) == listening
    assert running_cluster(told, {"RAY_ADDRESS": "auto", "RAY_TMPDIR": str(tmp_path)}) == listening


def test_a_cluster_that_has_ended_is_not_found(tmp_path, listening):
    assert running_cluster(None, {"RAY_TMPDIR": str(tmp_path)}) is None
    with socket.create_server(("127.0.0.1", 0)) as server:
        gone = f"127.0.0.1:{server.getsockname()[1]}"
    assert running_cluster(None, written(tmp_path, gone)) is None


def test_a_local_cluster_is_none_that_runs(tmp_path, listening):
    environment = {"RAY_ADDRESS": "local", **written(tmp_path, listening)}
    assert running_cluster(None, environment) is None


def test_ray_clients_addresses_are_refused():
    with pytest.raises(Refused, match="must be host:port") as refusal:
        running_cluster("ray://10.0.0.1:10001", {})
    assert "ray start --address=HOST:PORT" in refusal.value.hint


@pytest.mark.parametrize("address", ["10.0.0.1", "10.0.0.1:", ":6379", "10.0.0.1:ray", "[::1]"])
def test_what_is_no_address_is_refused(address):
    session = Session(address)
    with pytest.raises(Refused, match="must be host:port"):
        session.connect()
    session.close()
