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
        self._members: dict[str, Member] = {}
        self.membership: Membership | None = None

    def take(self, membership: Membership) -> None:
        self.membership = membership
        self._members = {member.name: member for member in membership.members}
        for member in membership.members:
            news, before = _news(member), self._told.get(member.name, "")
            was_suspect = before.startswith(ProcessState.suspect.value)
            is_still = was_suspect and member.state is ProcessState.suspect  # its reason grows
            if news == before or is_still:
                continue
            self._told[member.name] = news
            if member.state is ProcessState.lost:  # as was told when it ended
                continue
            is_ready = member.state is ProcessState.ready
            self._tell(member.name, "ready again" if was_suspect and is_ready else news)

    @property
    def drift(self) -> list[str]:
        """Differences between the plan and who registered."""
        return self.membership.drift if self.membership is not None else []

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
        if self.membership is None or self.membership.state is not DeploymentState.draining:
            return False
        return all(member.state in _GONE for member in self._frontends())

    @property
    def num_requests(self) -> int:
        """Requests in flight at the front ends that live, as of their last heartbeats."""
        return sum(each.num_requests for each in self._frontends() if each.state not in _GONE)

    def _frontends(self) -> list[Member]:
        return [member for member in self._members.values() if member.role is Role.frontend]


def _news(member: Member) -> str:
    if member.state in (ProcessState.starting, ProcessState.ready):
        again = f"start {member.incarnation}" if member.incarnation > 1 else ""
        remarks = "; ".join(filter(None, (again, member.remark)))
        return f"{member.phase.value} ({remarks})" if remarks else member.phase.value
    return f"{member.state.value}: {member.reason}" if member.reason else member.state.value
