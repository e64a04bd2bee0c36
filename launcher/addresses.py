"""What means the head, and under which address other nodes reach it: pure."""

import difflib
import ipaddress

import msgspec

from launcher.cluster import Cluster
from launcher.config import HeadOptions
from launcher.errors import Refused


def with_head_address(cluster: Cluster, options: HeadOptions) -> Cluster:
    """The cluster whose head has the address that the user wants.

    Nothing, `localhost`, a loopback address and the head's host names all mean the head: then it
    keeps the address that it was found under.

    Raises:
        Refused: The address or the interface is not one of the head's.
    """
    head = cluster.head
    address = _of_interface(cluster, options.interface) or head.address
    if options.address is not None:
        wanted = _of_address(cluster, options.address) or address
        if options.interface is not None and not _same(wanted, address):
            raise Refused(
                f"head.address must be that of head.interface={options.interface} ({address}):"
                f" {options.address}",
                "head.address=null",
            )
        address = wanted
    moved = msgspec.structs.replace(head, address=address)
    nodes = tuple(moved if node.head else node for node in cluster.nodes)
    return msgspec.structs.replace(cluster, nodes=nodes)


def means_head(cluster: Cluster, name: str) -> bool:
    """Whether a host name or an address is the head's."""
    head = cluster.head
    own = (head.id, head.address, *cluster.head_names, *cluster.head_interfaces.values())
    return is_loopback(name) or any(_same(name, other) for other in own)


def is_loopback(name: str) -> bool:
    """Whether only this machine reaches what listens there; other names are not looked up."""
    ip = _ip(name)
    return _plain(name) == "localhost" if ip is None else ip.is_loopback


def _of_interface(cluster: Cluster, interface: str | None) -> str | None:
    known = cluster.head_interfaces
    others = [node.address for node in cluster.nodes if not node.head]
    if cluster.can_add or not all(map(is_loopback, others)):  # who do not reach a loopback address
        known = {name: address for name, address in known.items() if not is_loopback(address)}
    if interface is None or interface in known:
        return known[interface] if interface else None
    close = difflib.get_close_matches(interface, known, n=1) or list(known)[:1] or ["null"]
    names = ", ".join(known) or "null, none is known"
    raise Refused(
        f"head.interface must be one of {names}: {interface}", f"head.interface={close[0]}"
    )


def _of_address(cluster: Cluster, address: str) -> str | None:
    """The address itself if other nodes can use it, None if it only says "the head"."""
    head = cluster.head
    if not means_head(cluster, address):
        raise Refused(
            f"head.address must mean the head ({head.id}, {head.address}): {address}",
            f"head.address={head.address}",
        )
    ip = _ip(address)
    return None if ip is None or ip.is_loopback else str(ip)


def _same(one: str, other: str) -> bool:
    """Names are compared without case, addresses by their value."""
    first, second = _ip(one), _ip(other)
    if first is None or second is None:
        return _plain(one) == _plain(other)
    return first == second


def _plain(name: str) -> str:
    return name.rstrip(".").lower()


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a text is, brackets and zone aside."""
    try:
        return ipaddress.ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return None
