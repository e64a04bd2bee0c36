"""Bodies and stream chunks of the answers, OpenAI's, and `stop_reason` as vLLM has it."""

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
from msgspec import UNSET, UnsetType

from engine.frontend.logprobs import (
    ChatLogprobs,
    TextLogprobs,
    TokenText,
    chat_logprobs,
    text_logprobs,
)
from engine.frontend.transcript import End, Piece
from engine.protocol import FinishReason

DONE = b"data: [DONE]\n\n"


class PromptTokensDetails(msgspec.Struct, frozen=True):
    cached_tokens: int


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class ChatMessage(msgspec.Struct, frozen=True):
    role: str
    content: str
    refusal: None = None


class ChatChoice(msgspec.Struct, frozen=True):
    index: int
    message: ChatMessage
    finish_reason: FinishReason
    stop_reason: int | str | None
    logprobs: ChatLogprobs | None = None


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: tuple[ChatChoice, ...]
    usage: Usage


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    role: str | None = None
    content: str | None = None


class ChatChunkChoice(msgspec.Struct, frozen=True):
    index: int
    delta: Delta
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None | UnsetType = UNSET
    logprobs: ChatLogprobs | None = None


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: tuple[ChatChunkChoice, ...]
    usage: Usage | None | UnsetType = UNSET


class TextChoice(msgspec.Struct, frozen=True):
    index: int
    text: str
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None | UnsetType = UNSET
    logprobs: TextLogprobs | None = None


class TextCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """Whole, or a chunk: OpenAI gives both the same form."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: tuple[TextChoice, ...]
    usage: Usage | None | UnsetType = UNSET


class Writer(Protocol):
    """Writes one answer, whole or as server-sent events.

    Events are of one choice each, by its index, and can tell the usage so far.
    """

    def first(self, index: int, usage: Usage | None = None) -> bytes:
        """Event before the text; may be empty."""

    def delta(self, index: int, piece: Piece, usage: Usage | None = None) -> bytes: ...

    def last(self, index: int, end: End, usage: Usage | None = None) -> bytes: ...

    def usage(self, usage: Usage) -> bytes: ...

    def whole(self, choices: Sequence[tuple[Piece, End]], usage: Usage) -> bytes:
        """The body of an answer that is not streamed."""


class ChatWriter:
    """Writes an answer of `/v1/chat/completions`.

    Args:
        includes_usage: The stream ends with the usage; all events before say that theirs is null,
            unless they are given one.
        describe: Gives the text of a token id; None: no log-probabilities are asked for.
    """

    def __init__(
        self,
        model: str,
        includes_usage: bool,
        describe: Callable[[int], TokenText] | None = None,
    ) -> None:
        self._describe = describe
        self._id = f"chatcmpl-{secrets.token_hex(16)}"
        self._created = int(time.time())
        self._model = model
        self._no_usage = None if includes_usage else UNSET

    def first(self, index: int, usage: Usage | None = None) -> bytes:
        return self._choice(ChatChunkChoice(index, Delta(role="assistant", content="")), usage)

    def delta(self, index: int, piece: Piece, usage: Usage | None = None) -> bytes:
        logprobs = self._logprobs(piece) if piece.tokens else None
        delta = Delta(content=piece.text)
        return self._choice(ChatChunkChoice(index, delta, logprobs=logprobs), usage)

    def last(self, index: int, end: End, usage: Usage | None = None) -> bytes:
        return self._choice(ChatChunkChoice(index, Delta(), *end), usage)

    def usage(self, usage: Usage) -> bytes:
        return self._chunk((), usage)

    def whole(self, choices: Sequence[tuple[Piece, End]], usage: Usage) -> bytes:
        answer = ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=tuple(
                ChatChoice(index, ChatMessage("assistant", piece.text), *end, self._logprobs(piece))
                for index, (piece, end) in enumerate(choices)
            ),
            usage=usage,
        )
        return _ENCODER.encode(answer)

    def _logprobs(self, piece: Piece) -> ChatLogprobs | None:
        return None if self._describe is None else chat_logprobs(piece.tokens, self._describe)

    def _choice(self, choice: ChatChunkChoice, usage: Usage | None) -> bytes:
        return self._chunk((choice,), usage or self._no_usage)

    def _chunk(
        self, choices: tuple[ChatChunkChoice, ...], usage: Usage | None | UnsetType
    ) -> bytes:
        return event(
            ChatChunk(
                id=self._id, created=self._created, model=self._model, choices=choices, usage=usage
            )
        )


class TextWriter:
    """Writes an answer of `/v1/completions`.

    Args:
        includes_usage: As of `ChatWriter`.
        describe: The same.
    """

    def __init__(
        self,
        model: str,
        includes_usage: bool,
        describe: Callable[[int], TokenText] | None = None,
    ) -> None:
        self._describe = describe
        self._id = f"cmpl-{secrets.token_hex(16)}"
        self._created = int(time.time())
        self._model = model
        self._no_usage = None if includes_usage else UNSET

    def first(self, index: int, usage: Usage | None = None) -> bytes:
        return b""

    def delta(self, index: int, piece: Piece, usage: Usage | None = None) -> bytes:
        logprobs = self._logprobs(piece) if piece.tokens else None
        return self._choice(TextChoice(index, piece.text, logprobs=logprobs), usage)

    def last(self, index: int, end: End, usage: Usage | None = None) -> bytes:
        return self._choice(TextChoice(index, "", *end), usage)

    def usage(self, usage: Usage) -> bytes:
        return event(self._completion((), usage))

    def whole(self, choices: Sequence[tuple[Piece, End]], usage: Usage) -> bytes:
        texts = tuple(
            TextChoice(index, piece.text, *end, self._logprobs(piece))
            for index, (piece, end) in enumerate(choices)
        )
        return _ENCODER.encode(self._completion(texts, usage))

    def _logprobs(self, piece: Piece) -> TextLogprobs | None:
        return None if self._describe is None else text_logprobs(piece.tokens, self._describe)

    def _choice(self, choice: TextChoice, usage: Usage | None) -> bytes:
        return event(self._completion((choice,), usage or self._no_usage))

    def _completion(
        self, choices: tuple[TextChoice, ...], usage: Usage | None | UnsetType
    ) -> TextCompletion:
        return TextCompletion(
            id=self._id, created=self._created, model=self._model, choices=choices, usage=usage
        )


def event(data: msgspec.Struct) -> bytes:
    """One server-sent event."""
    return b"data: " + _ENCODER.encode(data) + b"\n\n"


_ENCODER = msgspec.json.Encoder()
