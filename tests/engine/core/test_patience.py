from engine.core.patience import Patience


def test_it_is_twice_the_longest_pause_so_far():
    patience = Patience(limit_s=60.0)
    assert patience.value_s == 0.0
    patience.note(100.0)
    assert patience.value_s == 0.0
    patience.note(103.0)
    patience.note(103.1)
    assert patience.value_s == 6.0


def test_it_has_a_limit():
    patience = Patience(limit_s=60.0)
    patience.note(100.0)
    patience.note(150.0)
    assert patience.value_s == 60.0
