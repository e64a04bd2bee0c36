"""The one connection that this process has to Ray, shared by all sessions.

What has to be changed in the process for it, environment and output, is put back at its end.
"""

import functools
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

from launcher.errors import Refused
from launcher.this_machine import is_address_of_this_machine

logger = logging.getLogger(__name__)

NAMESPACE = "flotilla"

_lock = threading.Lock()
_num_sessions = 0
_put_back: list[Callable[[], None]] = []


def own_address() -> str | None:
    """Address of the cluster that this process is connected to, whoever has connected it."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    address: str = ray.get_runtime_context().gcs_address
    return address


def join(address: str, environment: Mapping[str, str]) -> bool:
    """Connects, or shares the connection that is there.

    Args:
        environment: What Ray needs for this cluster; it reads it when it is imported.

    Returns:
        Whether `leave` has to be called: False where somebody else has connected this process.

    Raises:
        Refused: The process is connected to another cluster.
    """
    global _num_sessions
    with _lock:
        own = own_address()
        if own is not None:
            if not _is_same(own, address):
                raise Refused(
                    f"this process is connected to the Ray cluster at {own}, and can have no other:"
                    f" {address}",
                    f"backend.address={own}, or a process of its own",
                )
            _num_sessions += bool(_num_sessions)
            return _num_sessions > 0
        _connect(address, {"RAY_USAGE_STATS_ENABLED": "0", **environment})
        _num_sessions = 1
        return True


def leave() -> None:
    """Disconnects if nobody else uses the connection; actors and groups of this process end."""
    global _num_sessions
    with _lock:
        _num_sessions -= 1
        if _num_sessions:
            return
        import ray

        ray.shutdown()
        while _put_back:
            _put_back.pop()()


def _connect(address: str, environment: Mapping[str, str]) -> None:
    for name, value in environment.items():
        _set_variable(name, value)
    import ray

    # It would say that it leaves signals alone, as it should.
    log = logging.getLogger("ray")
    _put_back.append(functools.partial(log.setLevel, log.level))
    log.setLevel(logging.ERROR)
    # It would write messages of raylets to stdout, which is for what a program could read.
    worker: Any = ray._private.worker
    name = "print_to_stdstream"
    _put_back.append(functools.partial(setattr, worker, name, getattr(worker, name)))
    setattr(worker, name, _log_message)
    _show_token(address)
    ray.init(
        address=address,
        namespace=NAMESPACE,
        log_to_driver=False,
        configure_logging=False,
        logging_level=logging.ERROR,
    )


def _set_variable(name: str, value: str) -> None:
    before = os.environ.get(name)

    def put_back() -> None:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before

    _put_back.append(put_back)
    os.environ[name] = value


def _show_token(address: str) -> None:
    """Uses the user's token if there is one and the cluster asks for it.

    `ray start` uses a token that is there, `ray.init` with an address does not. With a token that
    the cluster does not know of, this process would not answer it.

    Raises:
        ray.exceptions.AuthenticationError: There is no token, or another one.
    """
    from ray import _raylet
    from ray._private.authentication import authentication_token_setup as token
    from ray.exceptions import AuthenticationError, RpcError

    untyped: Any = _raylet
    token.ensure_token_if_auth_enabled(create_token_if_missing=False)
    try:
        untyped.GcsClient(address=address)
    except AuthenticationError:
        is_told = "RAY_AUTH_MODE" in os.environ
        if is_told or not token.maybe_enable_token_auth_if_token_available(warn_if_disabled=False):
            raise
        untyped.GcsClient(address=address)
    except RpcError:  # it may have just begun to start: `ray.init` tries for longer
        return


def _is_same(one: str, other: str) -> bool:
    """Whether two addresses mean the same cluster."""
    (host, _, port), (other_host, _, other_port) = one.rpartition(":"), other.rpartition(":")
    if port != other_port:
        return False
    hosts = {host.strip("[]"), other_host.strip("[]")}
    return len(hosts) == 1 or all(map(is_address_of_this_machine, hosts))


def _log_message(data: Mapping[str, Any], ignore_prefix: bool) -> None:
    for line in data["lines"]:
        logger.info("%s: %s", data["pid"], line)
