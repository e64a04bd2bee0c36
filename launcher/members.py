"""What the coordinator last said of the processes."""

from collections.abc import Callable, Iterable

from engine.config import Role
from engine.protocol import DeploymentState, Member, Membership, ProcessState

_GONE = (ProcessState.drained, ProcessState.lost)


class Members:
    """The last membership; each change of a process is told.

    Args:
        tell: Called with (process, what it does now) at every phase and state that it enters.
    """

    def __init__(self, tell: Callable[[str, str], None]) -> None:
        self._tell = tell
        self._told: dict[str, str] = {}
        self._state = DeploymentState.serving
        self._members: dict[str, Member] = {}
        self.drift: list[str] = []
        """Differences between the plan and who registered."""

    def take(self, membership: Membership) -> None:
        self._state, self.drift = membership.state, membership.drift
        self._members = {member.name: member for member in membership.members}
        for member in membership.members:
            news, before = _news(member), self._told.get(member.name, "")
            if news == before:
                continue
            self._told[member.name] = news
            if member.state is ProcessState.lost:  # as was told when it ended
                continue
            is_back = before.startswith(ProcessState.suspect.value)
            is_ready = member.state is ProcessState.ready
            self._tell(member.name, "ready again" if is_back and is_ready else news)

    def unready(self, names: Iterable[str]) -> dict[str, str]:
        """Who of these is not ready, and what they do."""
        late = {}
        for name in names:
            member = self._members.get(name)
            if member is None:
                late[name] = "has not registered"
            elif member.state is not ProcessState.ready:
                late[name] = f"is {_news(member)}"
        return late

    @property
    def is_drained(self) -> bool:
        """Whether no front end has requests any more, nor takes new ones."""
        is_draining = self._state is DeploymentState.draining
        return is_draining and all(member.state in _GONE for member in self._frontends())

    @property
    def num_in_flight(self) -> int:
        """Requests that the front ends have not answered, as far as they have told."""
        return sum(each.num_requests for each in self._frontends() if each.state not in _GONE)

    def _frontends(self) -> list[Member]:
        return [member for member in self._members.values() if member.role is Role.frontend]


def _news(member: Member) -> str:
    if member.state in (ProcessState.starting, ProcessState.ready):
        again = f"start {member.incarnation}" if member.incarnation > 1 else ""
        remarks = "; ".join(filter(None, (again, member.remark)))
        return f"{member.phase.value} ({remarks})" if remarks else member.phase.value
    return f"{member.state.value}: {member.reason}" if member.reason else member.state.value
