"""The range of TCP ports that a firewall lets through."""

import re

EPHEMERAL = "ephemeral"
RANGE = re.compile(r"(\d{1,5})-(\d{1,5})", re.ASCII)
MOST = 65535
OF_COORDINATOR = 2
"""What it listens on: registrations and commands, membership."""
OF_FRONTEND = 2
"""What each listens on for engine cores: requests, outputs."""


def parse_ports(text: str) -> tuple[int, int] | None:
    """First and last port of `40000-40031`; None of `ephemeral`.

    Raises:
        ValueError: It is no range.
    """
    if text == EPHEMERAL:
        return None
    match = RANGE.fullmatch(text)
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= first <= last <= MOST:
        raise ValueError(f"no range of ports: {text}")
    return first, last


def num_ports_needed(num_frontends: int) -> int:
    """How many ports a deployment listens on besides HTTP; engine cores listen on none."""
    return OF_COORDINATOR + OF_FRONTEND * num_frontends
