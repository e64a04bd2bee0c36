"""The text of one answer, made from the engine's token ids as they come."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from engine.frontend.stop import StopMatcher
from engine.protocol import FinishReason
from engine.sampling import TokenLogprobs


class TokenReader(Protocol):
    """Turns token ids into text: `Detokenizer`."""

    def add(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token of an answer or of its prompt.

    Attributes:
        scores: None for a prompt's first token, which nothing comes before.
        offset: Where its text begins, in characters; tokens that are one character together have
            the same.
    """

    token_id: int
    scores: TokenLogprobs | None
    offset: int


@dataclass(slots=True)
class Piece:
    """Text to send, and the tokens that it is made of if log-probabilities are asked for."""

    text: str = ""
    tokens: list[ScoredToken] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.text or self.tokens)

    def append(self, more: "Piece") -> None:
        self.text += more.text
        self.tokens += more.tokens


class End(NamedTuple):
    """Why an answer ended."""

    finish_reason: FinishReason
    stop_reason: int | str | None
    """The stop string or token id that ended it, if one did."""


class Transcript:
    """Collects tokens, gives text to send, and notices the end.

    Args:
        end_token_ids: Tokens that are no text where the engine stops at them.
        includes_stop: The text ends after a stop string or token, else before it.
        min_tokens: Stop strings are not looked for in the text of so many tokens.
        is_empty: No token is wanted: it ends with the first, which is not taken.
        offset: Where the text begins, in characters.

    Attributes:
        finish_reason: None while the answer goes on.
        num_tokens: Those that count in the usage: up to the one that completed a stop string.
        stop_reason: The stop string or token id that ended it, if one did.
    """

    def __init__(
        self,
        reader: TokenReader,
        stops: Sequence[str],
        end_token_ids: Collection[int],
        includes_stop: bool = False,
        min_tokens: int = 0,
        is_empty: bool = False,
        offset: int = 0,
    ) -> None:
        self._is_empty = is_empty
        self._reader = reader
        self._matcher = StopMatcher(stops, includes_stop)
        self._end_token_ids = end_token_ids
        self._includes_stop = includes_stop
        self._min_tokens = min_tokens
        self._read = self._sent = offset
        self._textless: list[ScoredToken] = []  # their text comes with a later token, if any
        self._unsent: list[tuple[ScoredToken, int]] = []  # with the end of their text
        self.finish_reason: FinishReason | None = None
        self.num_tokens = 0
        self.stop_reason: int | str | None = None

    @property
    def end(self) -> End:
        """Why it ended, once it has."""
        assert self.finish_reason is not None
        return End(self.finish_reason, self.stop_reason)

    def add(
        self,
        token_ids: Sequence[int],
        finish_reason: FinishReason | None,
        logprobs: Sequence[TokenLogprobs] = (),
        stop_token_id: int | None = None,
    ) -> Piece:
        """What may be sent now.

        Args:
            finish_reason: The engine's, with its last tokens.
            logprobs: One for each of the tokens, if asked for.
            stop_token_id: With `FinishReason.stop`: the stop token that the last token is.
        """
        if self._is_empty:
            self.finish_reason = FinishReason.length
            return Piece()
        text = self._add_tokens(token_ids, finish_reason, logprobs, stop_token_id)
        return Piece(text, self._take_sent())

    def _add_tokens(
        self,
        token_ids: Sequence[int],
        finish_reason: FinishReason | None,
        logprobs: Sequence[TokenLogprobs],
        stop_token_id: int | None,
    ) -> str:
        is_stop = finish_reason is FinishReason.stop and bool(token_ids)
        is_ended = is_stop and (
            token_ids[-1] in self._end_token_ids
            if stop_token_id is None
            else not self._includes_stop
        )
        text = ""
        for index, token_id in enumerate(token_ids[:-1] if is_ended else token_ids):
            piece = self._reader.add(token_id)
            if logprobs:
                self._note(token_id, logprobs[index], piece)
            text += self._add_piece(piece, num_tokens=1)
            if self.finish_reason is not None:
                return text
        if finish_reason is None:
            return text
        text += self._add_piece(self._reader.flush(), num_tokens=int(is_ended))
        if self.finish_reason is None:
            self.finish_reason, self.stop_reason = finish_reason, stop_token_id
            held = self._matcher.flush()
            self._sent += len(held)
            text += held
            if is_ended and logprobs:
                self._textless.append(ScoredToken(token_ids[-1], logprobs[-1], self._read))
        return text

    def _add_piece(self, piece: str, num_tokens: int) -> str:
        self.num_tokens += num_tokens
        self._read += len(piece)
        text = piece if self.num_tokens <= self._min_tokens else self._matcher.add(piece)
        self._sent += len(text)
        if self._matcher.stopped:
            self.finish_reason = FinishReason.stop
            self.stop_reason = self._matcher.found
        return text

    def _note(self, token_id: int, scores: TokenLogprobs, piece: str) -> None:
        self._textless.append(ScoredToken(token_id, scores, self._read))
        if piece:
            end = self._read + len(piece)
            self._unsent += [(token, end) for token in self._textless]
            self._textless.clear()

    def _take_sent(self) -> list[ScoredToken]:
        """The tokens whose text has been sent whole; at the end all but those that were cut off."""
        if self.finish_reason is None:
            num_sent = sum(end <= self._sent for _, end in self._unsent)
            taken, self._unsent = self._unsent[:num_sent], self._unsent[num_sent:]
            return [token for token, _ in taken]
        rest = [*(token for token, _ in self._unsent), *self._textless]
        if self._matcher.stopped:
            return [token for token in rest if token.offset < self._sent]
        return rest
