"""Where the time of a start went: which process was last, and what took it so long."""

from collections.abc import Iterable

from engine.config import Role
from engine.metrics import STARTING
from engine.protocol import Member, Phase

_SHOWN_S = 0.05
"""Shorter phases are not worth a word."""


class Waterfall:
    """The phases of every process as the coordinator tells of them.

    `startup_phase_seconds` of `/metrics` has each process's own figures.

    Args:
        began_s: When the first process was asked for.
    """

    def __init__(self, began_s: float) -> None:
        self._began_s = began_s
        self._entered_s: dict[str, dict[Phase, float]] = {}
        self._roles: dict[str, Role] = {}

    def take(self, members: Iterable[Member], now_s: float) -> None:
        for member in members:
            self._roles[member.name] = member.role
            self._entered_s.setdefault(member.name, {}).setdefault(member.phase, now_s)

    def summary(self) -> str:
        """The last process and its phases; front ends wait for the ranks, so they do not count."""
        ready_s = {
            name: entered_s[Phase.ready]
            for name, entered_s in self._entered_s.items()
            if Phase.ready in entered_s and self._roles[name] is Role.engine
        }
        if not ready_s:
            return ""
        last = max(ready_s, key=lambda name: ready_s[name])
        said, phase, since_s = [], STARTING, self._began_s
        for following, entered_s in self._entered_s[last].items():
            if entered_s - since_s >= _SHOWN_S:
                said.append(f"{phase} {entered_s - since_s:.1f} s")
            phase, since_s = following.value, entered_s
        return f"{last} was last: {', '.join(said)}" if said else ""
