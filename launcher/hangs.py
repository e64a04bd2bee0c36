"""Which of the processes that can be started again hang: pure, the clock is an argument."""

from dataclasses import dataclass

from engine.config import HealthOptions, Role
from engine.protocol import Membership, ProcessState

_WELL = (ProcessState.ready, ProcessState.drained)
_MAX_STEP_S = 1.0
"""Longest time between two looks that counts: beyond it the launcher itself was stopped or busy."""


@dataclass(slots=True)
class _Watched:
    incarnation: int
    limit_s: float
    complaint: str
    is_well: bool = False
    unwell_s: float = 0.0


class Hangs:
    """Coordinator and front ends that live, and do nothing.

    The coordinator hangs if it publishes nothing for `silence_s` and `hang_s`, a front end if the
    coordinator finds it suspect for `hang_s`; either does if it is not ready within the deadline of
    its start. While the coordinator is silent, nothing is known of front ends, and nothing held
    against them.
    """

    def __init__(self, options: HealthOptions) -> None:
        self._options = options
        self._watched: dict[str, _Watched] = {}
        self._looked_at: float | None = None

    def started(self, name: str, incarnation: int, deadline_s: float) -> None:
        """The process was started, and is to be ready before the deadline."""
        complaint = f"not ready after {deadline_s:g} s (backend.start_deadline_s)"
        self._watched[name] = _Watched(incarnation, deadline_s, complaint)

    def ended(self, name: str) -> None:
        """The process is gone: it is not looked at before it is started again."""
        self._watched.pop(name, None)

    def take(self, membership: Membership) -> None:
        """Takes what the coordinator says, and that it says anything."""
        hang_s, silence_s = self._options.hang_s, self._options.silence_s
        for member in membership.members:
            watched = self._watched.get(member.name)
            if watched is None or watched.incarnation != member.incarnation:
                continue
            watched.is_well = member.state in _WELL
            if not watched.is_well:
                continue
            watched.unwell_s = 0.0
            if member.role is Role.coordinator:
                watched.limit_s = silence_s + hang_s
                watched.complaint = f"silent for {watched.limit_s:g} s"
            else:
                watched.limit_s = hang_s
                watched.complaint = f"suspect for {hang_s:g} s"

    def look(self, now: float) -> list[tuple[str, str]]:
        """Name of each process that hangs, and what it fails to do; each is named once."""
        passed_s = now - self._looked_at if self._looked_at is not None else 0.0
        self._looked_at = now
        found = []
        for name in self._in_doubt():
            watched = self._watched[name]
            watched.unwell_s += min(passed_s, _MAX_STEP_S)
            if watched.unwell_s > watched.limit_s:
                self.ended(name)
                found.append((name, watched.complaint))
        return found

    def _in_doubt(self) -> list[str]:
        """Whose time runs: the coordinator's until it is heard, others' if it calls them unwell."""
        name = Role.coordinator.value
        coordinator = self._watched.get(name)
        if coordinator is None:
            return []
        if not coordinator.is_well or coordinator.unwell_s > self._options.silence_s:
            return [name]
        return [name, *(each for each, watched in self._watched.items() if not watched.is_well)]
