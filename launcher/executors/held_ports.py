"""TCP ports that coordinator and front ends listen on for other machines."""

import contextlib
import ipaddress
import socket
from collections.abc import Iterable

from launcher.errors import Refused


class HeldPorts:
    """Free ports of one address, kept free until `release`.

    Each is bound here and not listened on. Whoever binds it with SO_REUSEADDR, as libzmq does, can
    listen there, again after a restart too, while the kernel gives it to nobody who wants any port
    (socket(7); seen with Linux 6). That would let two launchers hold the same port of a range, so
    each claims it too, by the name of an abstract socket of the network namespace (unix(7)).

    Attributes:
        numbers: The ports, in the order in which they were found.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._sockets: list[socket.socket] = []
        self.numbers: list[int] = []

    def hold(self, wanted: int, within: tuple[int, int] | None) -> None:
        """Finds and holds so many ports.

        Args:
            within: First and last port that may be taken; None: any.

        Raises:
            Refused: There are not so many, or the address is not this machine's.
        """
        candidates: Iterable[int] = [0] * wanted
        if within is not None:
            candidates = range(within[0], within[1] + 1)
        for port in candidates:
            if len(self.numbers) == wanted:
                return
            self._try(port)
        if len(self.numbers) < wanted:
            self.release()
            assert within is not None
            first, last = within
            raise Refused(
                f"ports must have {wanted} free ports on {self._host}: {first}-{last}",
                "ports=ephemeral, or another range",
            )

    def release(self) -> None:
        """Lets go of all of them."""
        for held in self._sockets:
            held.close()
        self._sockets.clear()
        self.numbers.clear()

    def endpoint(self, index: int) -> str:
        """Where a process listens: `tcp://10.0.0.1:40000`."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"tcp://{host}:{self.numbers[index]}"

    def _try(self, port: int) -> None:
        is_v6 = ipaddress.ip_address(self._host).version == 6
        bound = socket.socket(socket.AF_INET6 if is_v6 else socket.AF_INET)
        claim = None
        with contextlib.ExitStack() as closing:
            closing.callback(bound.close)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                if port:
                    claim = closing.enter_context(socket.socket(socket.AF_UNIX))
                    claim.bind(f"\0flotilla {self._host}:{port}")
                bound.bind((self._host, port))
                _check_unheard(bound)
            except OSError as problem:
                if port:
                    return
                raise Refused(
                    f"the head cannot listen on {self._host}: {problem.strerror}",
                    "head.address or head.interface of this machine",
                ) from None
            closing.pop_all()
        self._sockets += [bound] if claim is None else [bound, claim]
        self.numbers.append(bound.getsockname()[1])


def _check_unheard(bound: socket.socket) -> None:
    """Raises OSError if somebody else listens on the port of a socket bound with SO_REUSEADDR."""
    with contextlib.closing(socket.socket(bound.family)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(bound.getsockname())
        probe.listen(0)
