from engine.config import Role
from engine.frontend.readiness import Absentee, readiness
from engine.protocol import DeploymentState, Member, Membership, Phase, ProcessState

READY = ProcessState.ready


def member(
    rank: int,
    state: ProcessState = READY,
    incarnation: int = 0,
    phase: Phase = Phase.ready,
    reason: str = "",
) -> Member:
    return Member(
        name=f"engine-{rank}",
        role=Role.engine,
        rank=rank,
        incarnation=incarnation,
        node="head",
        pid=1,
        devices=[],
        state=state,
        phase=phase,
        since_s=0.0,
        reason=reason,
    )


def membership(*members: Member, state: DeploymentState = DeploymentState.serving) -> Membership:
    return Membership(1, state, list(members), [], [])


def test_nothing_is_known_before_the_coordinator_answers():
    now = readiness(None, dp=1, connected_ranks=set(), was_ready=False, min_ranks=1)
    assert not now.ready
    assert now.reason == "the coordinator has not answered yet"
    assert now.missing == [Absentee("engine-0", "unknown", reason="has not registered")]
    assert now.coordinator_age_s is None


def test_at_the_start_every_rank_is_waited_for():
    loading = member(1, ProcessState.starting, phase=Phase.loading_weights)
    now = readiness(membership(member(0), loading), 3, {0}, was_ready=False, min_ranks=1)
    assert not now.ready
    assert now.reason == "1 of 3 ranks ready"
    assert now.ready_ranks == [0]
    assert now.missing == [
        Absentee("engine-1", "starting", phase="loading weights"),
        Absentee("engine-2", "unknown", reason="has not registered"),
    ]


def test_a_rank_that_has_not_connected_is_missing():
    now = readiness(membership(member(0), member(1)), 2, {0}, was_ready=False, min_ranks=1)
    assert not now.ready
    assert [each.state for each in now.missing] == ["unconnected"]


def test_all_ready():
    now = readiness(membership(member(0), member(1)), 2, {0, 1}, was_ready=False, min_ranks=1)
    assert now.ready
    assert not now.reason
    assert now.missing == now.suspect == now.lost == []


def test_a_rank_that_is_suspect_at_the_start_is_not_waited_for():
    # as a front end sees it that is started again
    suspect = member(1, ProcessState.suspect, reason="silent for 1.2 s")
    now = readiness(membership(member(0), suspect), 2, {0}, was_ready=False, min_ranks=1)
    assert now.ready
    now = readiness(membership(member(0), suspect), 2, {0}, was_ready=False, min_ranks=2)
    assert now.reason == "1 of 2 ranks ready"
    now = readiness(membership(member(0), suspect), 2, set(), was_ready=False, min_ranks=1)
    assert now.reason == "0 of 2 ranks ready"


def test_later_one_rank_is_enough_and_the_others_are_named():
    lost = member(1, ProcessState.lost, reason="killed by signal 9")
    suspect = member(2, ProcessState.suspect, reason="silent for 1.2 s")
    now = readiness(membership(member(0), lost, suspect), 3, {0, 1, 2}, was_ready=True, min_ranks=1)
    assert now.ready
    assert now.lost == [Absentee("engine-1", "lost", "ready", "killed by signal 9")]
    assert now.suspect == [Absentee("engine-2", "suspect", "ready", "silent for 1.2 s")]
    assert now.missing == []


def test_no_rank_left():
    now = readiness(membership(member(0, ProcessState.lost)), 1, {0}, was_ready=True, min_ranks=1)
    assert not now.ready
    assert now.reason == "0 of 1 rank ready"


def test_as_many_ranks_as_the_user_wants_are_needed():
    lost = member(2, ProcessState.lost, reason="killed by signal 9")
    now = readiness(membership(member(0), member(1), lost), 3, {0, 1, 2}, True, min_ranks=2)
    assert now.ready
    suspect = member(1, ProcessState.suspect, reason="silent for 1.2 s")
    now = readiness(membership(member(0), suspect, lost), 3, {0, 1, 2}, True, min_ranks=2)
    assert not now.ready
    assert now.reason == "1 of 3 ranks ready, 2 are needed (health.min_ranks)"
    assert [each.name for each in (*now.suspect, *now.lost)] == ["engine-1", "engine-2"]


def test_no_more_ranks_than_there_are_can_be_needed():
    now = readiness(membership(member(0)), 1, {0}, was_ready=True, min_ranks=5)
    assert now.ready


def test_a_draining_deployment_is_not_ready():
    drains = membership(member(0), state=DeploymentState.draining)
    now = readiness(drains, 1, {0}, was_ready=True, min_ranks=1)
    assert not now.ready
    assert now.reason == "draining: no new requests are taken"
