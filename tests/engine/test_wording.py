"""How messages speak of numbers."""

from engine.wording import counted


def test_one_thing_is_not_many():
    assert [counted(number, "rank") for number in range(3)] == ["0 ranks", "1 rank", "2 ranks"]
