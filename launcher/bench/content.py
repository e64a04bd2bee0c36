"""Prompts from their recipes: token ids, or text of about as many tokens."""

from collections.abc import Iterable
from functools import lru_cache
from random import Random

from launcher.bench.messages import Piece

WORDS = """
time year people way day man thing woman life child world school state family student group
country problem hand part place case week company system program question work government number
night point home water room mother area money story fact month lot right study book eye job word
business issue side kind head house service friend father power hour game line end member law
car city community name president team minute idea kid body information back parent face others
level office door health person art war history party result change morning reason research girl
guy moment air teacher force education
""".split()  # noqa: SIM905  a list of 100 lines is no easier to read
"""Common nouns: one token each in a large vocabulary."""
_FIRST_ID = 100
"""Below are special tokens, or bytes, in many vocabularies."""
_LAST_PART = 50
"""So small a part of the ids, the last ones, are special tokens in others."""
_MOST_KEPT = 256
"""Pieces, such as shared prefixes, that need not be made again."""


def token_ids(pieces: Iterable[Piece], vocab_size: int, salt: str = "") -> list[int]:
    """Exactly as many as the pieces say, others with another salt."""
    return [
        each
        for piece in pieces
        for each in _ids(f"{salt}{piece.key}", piece.num_tokens, vocab_size)
    ]


def text(pieces: Iterable[Piece], words_per_token: float, salt: str = "") -> str:
    """Words; their number is what the pieces say at so many words for a token."""
    return " ".join(
        _words(f"{salt}{piece.key}", max(1, round(piece.num_tokens * words_per_token)))
        for piece in pieces
    )


@lru_cache(_MOST_KEPT)
def _ids(key: str, number: int, vocab_size: int) -> list[int]:
    first = min(_FIRST_ID, vocab_size // 4)
    last = vocab_size - max(1, vocab_size // _LAST_PART)
    return Random(key).choices(range(first, last), k=number)


@lru_cache(_MOST_KEPT)
def _words(key: str, number: int) -> str:
    return " ".join(Random(key).choices(WORDS, k=number))
