"""Whether requests can be answered, and who is to blame if not: functions of the membership."""

from collections.abc import Collection, Iterable

import msgspec

from engine.config import Role
from engine.protocol import DeploymentState, Member, Membership, ProcessState
from engine.wording import counted


class Absentee(msgspec.Struct, frozen=True):
    """An engine core that takes no requests."""

    name: str
    state: str
    phase: str = ""
    """What it does while it is starting."""
    reason: str = ""


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `GET /ready`."""

    ready: bool
    reason: str
    """Why not, in one sentence."""
    ready_ranks: list[int]
    missing: list[Absentee]
    """Not heard of yet, or still starting."""
    suspect: list[Absentee]
    lost: list[Absentee]
    coordinator_age_s: float | None
    """Seconds since the coordinator, who tells all this, last said something; null: not yet."""


def readiness(
    membership: Membership | None,
    dp: int,
    connected_ranks: Collection[int],
    was_ready: bool,
    min_ranks: int,
    coordinator_age_s: float | None = None,
) -> Readiness:
    """What `GET /ready` answers.

    Args:
        connected_ranks: Those that this front end can send requests to.
        was_ready: It has said so before: from then on nobody who is missing is waited for.
        min_ranks: Needed in any case.
    """
    engines = engines_of(membership.members if membership else ())
    absent = [_absentee(rank, engines.get(rank), connected_ranks) for rank in range(dp)]
    ready_ranks = [rank for rank in range(dp) if absent[rank] is None]
    suspect = _in_state(absent, ProcessState.suspect)
    lost = _in_state(absent, ProcessState.lost)
    missing = [each for each in absent if each and each not in suspect and each not in lost]
    num_wanted = dp if missing and not was_ready else min(min_ranks, dp)
    reason = _reason(membership, len(ready_ranks), dp, num_wanted)
    return Readiness(
        ready=not reason,
        reason=reason,
        ready_ranks=ready_ranks,
        missing=missing,
        suspect=suspect,
        lost=lost,
        coordinator_age_s=coordinator_age_s,
    )


def reaches_all_ready(membership: Membership | None, connected_ranks: Collection[int]) -> bool:
    """Whether every rank that the coordinator calls ready can be sent requests."""
    if membership is None:
        return False
    engines = engines_of(membership.members).items()
    return {rank for rank, engine in engines if engine.state is ProcessState.ready} <= set(
        connected_ranks
    )


def engines_of(members: Iterable[Member]) -> dict[int, Member]:
    """The engine core of each rank; of every process the coordinator tells one incarnation."""
    return {
        member.rank: member
        for member in members
        if member.role is Role.engine and member.rank is not None
    }


def _absentee(rank: int, member: Member | None, connected: Collection[int]) -> Absentee | None:
    """What keeps a rank from taking requests; None: nothing."""
    if member is None:
        return Absentee(f"engine-{rank}", "unknown", reason="has not registered")
    if member.state is not ProcessState.ready:
        return Absentee(member.name, member.state.value, member.phase.value, member.reason)
    if rank not in connected:
        return Absentee(member.name, "unconnected", reason="not connected to this front end")
    return None


def _in_state(absent: Iterable[Absentee | None], state: ProcessState) -> list[Absentee]:
    return [each for each in absent if each and each.state == state.value]


def _reason(membership: Membership | None, num_ready: int, dp: int, num_wanted: int) -> str:
    if membership is None:
        return "the coordinator has not answered yet"
    if membership.state is DeploymentState.draining:
        return "draining: no new requests are taken"
    if num_ready < num_wanted:
        wanted = "" if num_wanted == dp else f", {num_wanted} are needed (health.min_ranks)"
        return f"{num_ready} of {counted(dp, 'rank')} ready{wanted}"
    return ""
