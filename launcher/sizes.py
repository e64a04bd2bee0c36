"""Sizes as people write and read them."""

import re

MIB = 2**20
UNITS = {"B": 1, "KiB": 2**10, "MiB": MIB, "GiB": 2**30, "TiB": 2**40}
UNITS |= {"kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
SIZE = re.compile(rf"(\d+(?:\.\d+)?)\s*({'|'.join(UNITS)})?")


def parse_bytes(text: str) -> int:
    """Bytes of `1073741824`, `512MiB` or `1.5 GB`.

    Raises:
        ValueError: It is no size.
    """
    match = SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"not a size: {text}")
    return int(float(match[1]) * UNITS[match[2]]) if match[2] else int(float(match[1]))


def format_bytes(size: int) -> str:
    """A size with one digit after the point: `1.5 GiB`."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size >= UNITS[unit]:
            return f"{size / UNITS[unit]:.1f} {unit}"
    return f"{size} B"
