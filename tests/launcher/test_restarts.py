"""How often a process may be started again."""

from hypothesis import given
from hypothesis import strategies as st

from engine.config import RestartOptions
from launcher.restarts import Restarts


def test_so_many_restarts_are_allowed_and_no_more():
    restarts = Restarts(RestartOptions(limit=2, window_s=60))
    assert [restarts.allow("a", now) for now in (0.0, 1.0, 2.0)] == [True, True, False]
    assert restarts.allow("b", 2.0)
    assert restarts.recent("a", 2.0) == 2


def test_an_old_restart_is_forgotten():
    restarts = Restarts(RestartOptions(limit=1, window_s=60))
    assert restarts.allow("a", 0.0)
    assert not restarts.allow("a", 59.9)
    assert restarts.recent("a", 60.0) == 0
    assert restarts.allow("a", 60.0)


@given(st.lists(st.floats(0, 10), max_size=50), st.integers(0, 4))
def test_no_window_holds_more_restarts_than_the_limit(gaps, limit):
    window_s = 12.0
    restarts = Restarts(RestartOptions(limit=limit, window_s=window_s))
    now, allowed = 0.0, []
    for gap in gaps:
        now += gap
        if restarts.allow("a", now):
            allowed.append(now)
        else:
            assert sum(now - window_s < time <= now for time in allowed) == limit
    for end in allowed:
        assert sum(end - window_s < time <= end for time in allowed) <= limit
