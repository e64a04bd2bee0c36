import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.frontend.transcript import Transcript
from engine.protocol import FinishReason

END = 0
STOP, LENGTH = FinishReason.stop, FinishReason.length


class Letters:
    """Token 1 is "a"; 26 is held back until the next token, and is "?" if there is none."""

    def __init__(self):
        self._held = ""

    def add(self, token_id: int) -> str:
        if token_id == 26:
            self._held += "z"
            return ""
        text, self._held = self._held + chr(96 + token_id), ""
        return text

    def flush(self) -> str:
        return "?" * len(self._held)


def tokens(text: str) -> list[int]:
    return [ord(letter) - 96 for letter in text]


def end_of(transcript: Transcript) -> tuple[FinishReason | None, int]:
    return transcript.finish_reason, transcript.num_tokens


@pytest.fixture
def transcript() -> Transcript:
    return Transcript(Letters(), stops=["stop"], end_token_ids=(END,))


def test_the_engine_ends_it_at_its_limit(transcript: Transcript):
    assert transcript.add(tokens("ab"), None) == "ab"
    assert transcript.finish_reason is None
    assert transcript.add(tokens("c"), LENGTH) == "c"
    assert end_of(transcript) == (LENGTH, 3)


def test_the_token_that_ends_the_text_counts_but_is_no_text(transcript: Transcript):
    assert transcript.add([*tokens("ab"), END], STOP) == "ab"
    assert end_of(transcript) == (STOP, 3)


def test_an_end_token_is_text_where_the_engine_goes_on(transcript: Transcript):
    assert transcript.add([END, 1], LENGTH) == "`a"


def test_tokens_after_a_stop_string_are_neither_sent_nor_counted(transcript: Transcript):
    assert transcript.add(tokens("xsto"), None) == "x"
    assert transcript.add(tokens("pyy"), LENGTH) == ""
    assert end_of(transcript) == (STOP, 5)


def test_text_held_back_for_a_stop_string_comes_at_the_end(transcript: Transcript):
    assert transcript.add(tokens("xsto"), None) == "x"
    assert transcript.add(tokens("y"), None) == "stoy"
    assert transcript.add(tokens("sto"), LENGTH) == "sto"


def test_half_characters_come_at_the_end(transcript: Transcript):
    assert transcript.add([26], None) == ""
    assert transcript.add([26], LENGTH) == "??"


def test_a_stop_string_in_what_is_flushed_counts():
    transcript = Transcript(Letters(), stops=["a?"], end_token_ids=())
    assert transcript.add([2, 1, 26], LENGTH) == "b"
    assert transcript.finish_reason is STOP


def test_a_last_message_without_tokens_ends_it(transcript: Transcript):
    assert transcript.add([], STOP) == ""
    assert end_of(transcript) == (STOP, 0)


@given(st.text(alphabet="stopx", max_size=20), st.data())
def test_text_and_count_do_not_depend_on_how_tokens_come(text, data):
    def read(cuts: list[int]) -> tuple[str, int, FinishReason | None]:
        transcript = Transcript(Letters(), ["stop", "po"], ())
        pieces, start = "", 0
        for end in [*cuts, len(text)]:
            reason = LENGTH if end == len(text) else None
            if transcript.finish_reason is None:
                pieces += transcript.add(tokens(text[start:end]), reason)
            start = end
        return pieces, transcript.num_tokens, transcript.finish_reason

    cuts = sorted(data.draw(st.lists(st.integers(0, max(0, len(text) - 1)), max_size=5)))
    assert read(cuts) == read([])
