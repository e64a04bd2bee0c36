"""Bodies and stream chunks of the answers, exactly OpenAI's."""

import secrets
import time
from typing import Protocol

import msgspec
from msgspec import UNSET, UnsetType

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
    logprobs: None = None


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
    logprobs: None = None


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
    logprobs: None = None


class TextCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """Whole, or a chunk: OpenAI gives both the same form."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: tuple[TextChoice, ...]
    usage: Usage | None | UnsetType = UNSET


class Writer(Protocol):
    """Writes one answer, whole or as server-sent events."""

    def first(self) -> bytes:
        """Event before the text; may be empty."""

    def delta(self, text: str) -> bytes: ...

    def last(self, finish_reason: FinishReason) -> bytes: ...

    def usage(self, usage: Usage) -> bytes: ...

    def whole(self, text: str, finish_reason: FinishReason, usage: Usage) -> bytes:
        """The body of an answer that is not streamed."""


class ChatWriter:
    """Writes an answer of `/v1/chat/completions`.

    Args:
        includes_usage: The stream ends with the usage; all events before say that theirs is null.
    """

    def __init__(self, model: str, includes_usage: bool) -> None:
        self._id = f"chatcmpl-{secrets.token_hex(16)}"
        self._created = int(time.time())
        self._model = model
        self._no_usage = None if includes_usage else UNSET

    def first(self) -> bytes:
        return self._choice(Delta(role="assistant", content=""))

    def delta(self, text: str) -> bytes:
        return self._choice(Delta(content=text))

    def last(self, finish_reason: FinishReason) -> bytes:
        return self._choice(Delta(), finish_reason)

    def usage(self, usage: Usage) -> bytes:
        return self._chunk((), usage)

    def whole(self, text: str, finish_reason: FinishReason, usage: Usage) -> bytes:
        choice = ChatChoice(0, ChatMessage("assistant", text), finish_reason)
        answer = ChatCompletion(
            id=self._id, created=self._created, model=self._model, choices=(choice,), usage=usage
        )
        return _ENCODER.encode(answer)

    def _choice(self, delta: Delta, finish_reason: FinishReason | None = None) -> bytes:
        return self._chunk((ChatChunkChoice(0, delta, finish_reason),), self._no_usage)

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
    """

    def __init__(self, model: str, includes_usage: bool) -> None:
        self._id = f"cmpl-{secrets.token_hex(16)}"
        self._created = int(time.time())
        self._model = model
        self._no_usage = None if includes_usage else UNSET

    def first(self) -> bytes:
        return b""

    def delta(self, text: str) -> bytes:
        return self._choice(text)

    def last(self, finish_reason: FinishReason) -> bytes:
        return self._choice("", finish_reason)

    def usage(self, usage: Usage) -> bytes:
        return event(self._completion((), usage))

    def whole(self, text: str, finish_reason: FinishReason, usage: Usage) -> bytes:
        return _ENCODER.encode(self._completion((TextChoice(0, text, finish_reason),), usage))

    def _choice(self, text: str, finish_reason: FinishReason | None = None) -> bytes:
        return event(self._completion((TextChoice(0, text, finish_reason),), self._no_usage))

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
