"""What is said of a start that is over."""

from engine.config import Role
from engine.protocol import Member, Phase, ProcessState
from launcher.waterfall import Waterfall


def member(name: str, phase: Phase) -> Member:
    return Member(
        name=name,
        role=Role.frontend if name.startswith("frontend") else Role.engine,
        rank=None,
        incarnation=1,
        node="head",
        pid=1,
        devices=[],
        state=ProcessState.ready if phase is Phase.ready else ProcessState.starting,
        phase=phase,
        since_s=0.0,
    )


def test_the_last_rank_is_named_with_what_took_it_so_long():
    waterfall = Waterfall(began_s=100.0)
    waterfall.take([member("engine-0", Phase.importing)], 101.0)
    waterfall.take([member("engine-0", Phase.loading_weights)], 101.01)
    both = [member("engine-0", Phase.ready), member("engine-1", Phase.loading_weights)]
    waterfall.take(both, 101.5)
    waterfall.take([*both[:1], member("engine-1", Phase.warming_up)], 103.1)
    waterfall.take([both[0], member("engine-1", Phase.ready)], 103.4)
    waterfall.take([member("frontend-0", Phase.ready)], 109.0)
    said = "starting 1.5 s, loading weights 1.6 s, warming up 0.3 s"
    assert waterfall.summary() == f"engine-1 was last: {said}"


def test_a_start_that_took_no_time_is_not_commented():
    waterfall = Waterfall(began_s=100.0)
    waterfall.take([member("frontend-0", Phase.ready)], 101.0)
    assert waterfall.summary() == ""
    waterfall.take([member("engine-0", Phase.ready)], 100.01)
    assert waterfall.summary() == ""
