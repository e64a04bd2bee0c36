"""The text of one answer, made from the engine's token ids as they come."""

from collections.abc import Collection, Sequence
from typing import Protocol

from engine.frontend.stop import StopMatcher
from engine.protocol import FinishReason


class TokenReader(Protocol):
    """Turns token ids into text: `Detokenizer`."""

    def add(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class Transcript:
    """Collects tokens, gives text to send, and notices the end.

    Args:
        end_token_ids: Tokens that are no text where the engine stops at them.
        includes_stop: The text ends after a stop string, else before it.

    Attributes:
        finish_reason: None while the answer goes on.
        num_tokens: Those that count in the usage: up to the one that completed a stop string.
    """

    def __init__(
        self,
        reader: TokenReader,
        stops: Sequence[str],
        end_token_ids: Collection[int],
        includes_stop: bool = False,
    ) -> None:
        self._reader = reader
        self._matcher = StopMatcher(stops, includes_stop)
        self._end_token_ids = end_token_ids
        self.finish_reason: FinishReason | None = None
        self.num_tokens = 0

    def add(self, token_ids: Sequence[int], finish_reason: FinishReason | None) -> str:
        """Text that may be sent now.

        Args:
            finish_reason: The engine's, with its last tokens.
        """
        is_stop = finish_reason is FinishReason.stop and bool(token_ids)
        is_ended = is_stop and token_ids[-1] in self._end_token_ids
        text = ""
        for token_id in token_ids[:-1] if is_ended else token_ids:
            text += self._add_piece(self._reader.add(token_id), num_tokens=1)
            if self.finish_reason is not None:
                return text
        if finish_reason is None:
            return text
        text += self._add_piece(self._reader.flush(), num_tokens=int(is_ended))
        if self.finish_reason is None:
            self.finish_reason = finish_reason
            text += self._matcher.flush()
        return text

    def _add_piece(self, piece: str, num_tokens: int) -> str:
        self.num_tokens += num_tokens
        text = self._matcher.add(piece)
        if self._matcher.stopped:
            self.finish_reason = FinishReason.stop
        return text
