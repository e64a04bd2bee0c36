import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.frontend.stop import StopMatcher

texts = st.text(alphabet="abc", max_size=30)
stop_lists = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=4)


def cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """What remains of a whole text, and whether a stop string was in it: the definition."""
    matches = [
        (start + len(stop), start)
        for stop in stops
        for start in range(len(text))
        if text.startswith(stop, start)
    ]
    return (text[: min(matches)[1]], True) if matches else (text, False)


@given(texts, stop_lists, st.data())
def test_any_split_of_a_text_is_cut_like_the_whole(text, stops, data):
    matcher = StopMatcher(stops)
    sent, rest = "", text
    while rest:
        length = data.draw(st.integers(1, len(rest)))
        sent += matcher.add(rest[:length])
        rest = rest[length:]
    sent += matcher.flush()
    assert (sent, matcher.stopped) == cut(text, stops)


@given(texts, stop_lists)
def test_nothing_is_held_back_that_cannot_begin_a_stop_string(text, stops):
    matcher = StopMatcher(stops)
    sent = matcher.add(text)
    if not matcher.stopped:
        held = text[len(sent) :]
        assert not held or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("pieces", "stops", "sent"),
    [
        (["Hello", " wor", "ld"], ["\n"], ["Hello", " wor", "ld"]),
        (["one", "\n", "\ntwo"], ["\n\n"], ["one", "", ""]),
        (["one", "\n", "two"], ["\n\n"], ["one", "", "\ntwo"]),
        (["a STOP b"], ["STOP"], ["a "]),
        (["ab", "c d"], ["abc d", "b"], ["a", ""]),  # complete first
        (["xabc"], ["bc", "abc"], ["x"]),  # the longer of two that end together
    ],
)
def test_text_is_held_back_only_while_it_may_become_a_stop_string(pieces, stops, sent):
    matcher = StopMatcher(stops)
    assert [matcher.add(piece) for piece in pieces] == sent
