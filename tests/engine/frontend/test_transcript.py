import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.frontend.transcript import Piece, Transcript
from engine.protocol import FinishReason
from engine.sampling import TokenLogprobs

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
    assert transcript.add(tokens("ab"), None).text == "ab"
    assert transcript.finish_reason is None
    assert transcript.add(tokens("c"), LENGTH).text == "c"
    assert end_of(transcript) == (LENGTH, 3)


def test_the_token_that_ends_the_text_counts_but_is_no_text(transcript: Transcript):
    assert transcript.add([*tokens("ab"), END], STOP).text == "ab"
    assert end_of(transcript) == (STOP, 3)


def test_an_end_token_is_text_where_the_engine_goes_on(transcript: Transcript):
    assert transcript.add([END, 1], LENGTH).text == "`a"


def test_tokens_after_a_stop_string_are_neither_sent_nor_counted(transcript: Transcript):
    assert transcript.add(tokens("xsto"), None).text == "x"
    assert transcript.add(tokens("pyy"), LENGTH).text == ""
    assert end_of(transcript) == (STOP, 5)


def test_text_held_back_for_a_stop_string_comes_at_the_end(transcript: Transcript):
    assert transcript.add(tokens("xsto"), None).text == "x"
    assert transcript.add(tokens("y"), None).text == "stoy"
    assert transcript.add(tokens("sto"), LENGTH).text == "sto"


def test_half_characters_come_at_the_end(transcript: Transcript):
    assert transcript.add([26], None).text == ""
    assert transcript.add([26], LENGTH).text == "??"


def test_a_stop_string_in_what_is_flushed_counts():
    transcript = Transcript(Letters(), stops=["a?"], end_token_ids=())
    assert transcript.add([2, 1, 26], LENGTH).text == "b"
    assert transcript.finish_reason is STOP


def test_a_last_message_without_tokens_ends_it(transcript: Transcript):
    assert transcript.add([], STOP).text == ""
    assert end_of(transcript) == (STOP, 0)


def scores(number: int) -> list[TokenLogprobs]:
    return [TokenLogprobs(-float(index)) for index in range(number)]


def places(piece: Piece) -> list[tuple[int, int]]:
    """The token ids that come with the text, and where each begins."""
    return [(token.token_id, token.offset) for token in piece.tokens]


def test_scores_come_with_the_text_that_they_belong_to(transcript: Transcript):
    assert places(transcript.add([1, 26], None, scores(2))) == [(1, 0)]
    piece = transcript.add([2], None, scores(1))  # it completes a character
    assert (piece.text, places(piece)) == ("zb", [(26, 1), (2, 1)])
    assert places(transcript.add(tokens("sto"), None, scores(3))) == []
    assert places(transcript.add(tokens("xsto"), None, scores(4))) == [
        *((token, 3 + place) for place, token in enumerate(tokens("stox")))
    ]
    assert places(transcript.add(tokens("pab"), None, scores(3))) == []
    assert end_of(transcript) == (STOP, 11)
    assert transcript.stop_reason == "stop"


def test_the_end_token_has_scores_and_no_text(transcript: Transcript):
    piece = transcript.add([1, 26, END], STOP, scores(3))
    assert (piece.text, places(piece)) == ("a?", [(1, 0), (26, 1), (END, 2)])
    assert [token.scores for token in piece.tokens] == scores(3)
    assert transcript.stop_reason is None


def test_tokens_in_part_of_the_stop_string_are_cut_with_it():
    transcript = Transcript(Letters(), ["ab"], (), includes_stop=True, offset=10)
    piece = transcript.add(tokens("xabc"), LENGTH, scores(4))
    assert (piece.text, places(piece)) == ("xab", [(24, 10), (1, 11), (2, 12)])


@pytest.mark.parametrize(("includes_stop", "text"), [(False, "a"), (True, "ab")])
def test_a_stop_token_ends_it(includes_stop: bool, text: str):
    transcript = Transcript(Letters(), [], (END,), includes_stop)
    piece = transcript.add([1, 2], STOP, scores(2), stop_token_id=2)
    assert (piece.text, places(piece)) == (text, [(1, 0), (2, 1)])
    assert end_of(transcript) == (STOP, 2)
    assert transcript.stop_reason == 2


def test_stop_strings_are_not_looked_for_before_the_least_length():
    transcript = Transcript(Letters(), ["a"], (), min_tokens=2)
    assert transcript.add(tokens("aabax"), LENGTH).text == "aab"
    assert end_of(transcript) == (STOP, 4)


@given(st.text(alphabet="stopx", max_size=20), st.data())
def test_text_and_count_do_not_depend_on_how_tokens_come(text, data):
    def read(cuts: list[int]) -> tuple[str, int, FinishReason | None]:
        transcript = Transcript(Letters(), ["stop", "po"], ())
        pieces, start = "", 0
        for end in [*cuts, len(text)]:
            reason = LENGTH if end == len(text) else None
            if transcript.finish_reason is None:
                pieces += transcript.add(tokens(text[start:end]), reason).text
            start = end
        return pieces, transcript.num_tokens, transcript.finish_reason

    cuts = sorted(data.draw(st.lists(st.integers(0, max(0, len(text) - 1)), max_size=5)))
    assert read(cuts) == read([])
