"""What an actor is told; known without ray."""

from pathlib import Path

import msgspec

from engine.entrypoint import Launch


class EngineLaunch(msgspec.Struct, frozen=True, kw_only=True):
    """What an actor is told; as msgpack, so that what arrives is a value of ours or an error."""

    launch: Launch
    node_names: dict[str, str]
    """What the plan calls the nodes, by Ray's ids."""
    environment: dict[str, str]
    """Other tools' variables that travel."""
    log_file: str
    """Written where the machine is the launcher's; elsewhere Ray keeps the log."""
    boot_id: str
    """Of the launcher's machine."""


def boot_id() -> str:
    """Differs between machines, and is the same in all containers of one."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
