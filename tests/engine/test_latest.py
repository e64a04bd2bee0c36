import math

import pytest

from engine.latest import Latest


@pytest.fixture
def latest() -> Latest[str]:
    return Latest(interval_s=1.0)


def test_there_is_nothing_to_send_at_first(latest):
    assert latest.due == math.inf
    assert latest.take(100.0) is None
    assert latest.age_s(100.0) is None
    latest.repeat()
    assert latest.due == math.inf


def test_the_first_value_is_sent_at_once_and_once(latest):
    assert latest.put("a", 5.0)
    assert latest.due <= 5.0
    assert latest.take(5.0) == "a"
    assert latest.due == math.inf
    assert latest.take(9.0) is None


def test_the_next_value_waits_for_the_interval_and_the_newest_is_sent(latest):
    latest.put("a", 5.0)
    latest.take(5.0)
    assert latest.put("b", 5.1)
    assert not latest.put("c", 5.2)  # the sender knows
    assert latest.due == 6.0
    assert latest.take(5.9) is None
    assert latest.take(6.0) == "c"


def test_a_value_long_after_the_last_is_sent_at_once(latest):
    latest.put("a", 5.0)
    latest.take(5.0)
    latest.put("b", 60.0)
    assert latest.due <= 60.0


def test_an_equal_value_is_not_sent_but_is_found_unchanged(latest):
    latest.put("a", 5.0)
    latest.take(5.0)
    assert latest.age_s(7.0) == 2.0
    assert not latest.put("a", 7.5)
    assert latest.due == math.inf
    assert latest.age_s(8.0) == 0.5


def test_what_was_sent_has_no_age_while_another_value_waits(latest):
    latest.put("a", 5.0)
    latest.take(5.0)
    latest.put("b", 5.5)
    assert latest.age_s(5.6) is None
    latest.take(6.0)
    assert latest.age_s(6.5) == 1.0  # it has been the value since 5.5


def test_the_last_value_is_repeated_within_the_pace(latest):
    latest.put("a", 5.0)
    latest.take(5.0)
    latest.repeat()
    assert latest.due == 6.0
    assert latest.take(6.0) == "a"
