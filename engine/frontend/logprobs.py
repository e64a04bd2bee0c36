"""Log-probabilities as OpenAI tells them, for chats and for completions."""

from collections.abc import Callable, Sequence

import msgspec

from engine.frontend.transcript import ScoredToken

_LEAST = -9999.0
"""What OpenAI says of a token that is as good as impossible; JSON has no infinity."""


class TokenText(msgspec.Struct, frozen=True):
    """A token by itself."""

    text: str
    bytes: list[int]


class TopLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    content: list[ChatTokenLogprob]
    refusal: None = None


class TextLogprobs(msgspec.Struct, frozen=True):
    """One entry of each list for each token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    """None for the first token of a prompt."""
    top_logprobs: list[dict[str, float] | None]
    """The likeliest tokens, and the token itself."""
    text_offset: list[int]


def chat_logprobs(
    tokens: Sequence[ScoredToken], describe: Callable[[int], TokenText]
) -> ChatLogprobs:
    """Of the tokens of an answer.

    Args:
        describe: Gives the text of a token id.
    """
    content = []
    for token in tokens:
        assert token.scores is not None
        scores, own = token.scores, describe(token.token_id)
        top = []
        for token_id, logprob in zip(scores.top_ids, scores.top_logprobs, strict=True):
            other = describe(token_id)
            top.append(TopLogprob(other.text, max(logprob, _LEAST), other.bytes))
        logprob = max(scores.logprob, _LEAST)
        content.append(ChatTokenLogprob(own.text, logprob, own.bytes, top))
    return ChatLogprobs(content)


def text_logprobs(
    tokens: Sequence[ScoredToken], describe: Callable[[int], TokenText]
) -> TextLogprobs:
    """Of the tokens of an answer, and of its prompt if that is part of it.

    Args:
        describe: Gives the text of a token id.
    """
    told = TextLogprobs([], [], [], [])
    for token in tokens:
        text, scores = describe(token.token_id).text, token.scores
        told.tokens.append(text)
        told.text_offset.append(token.offset)
        if scores is None:
            told.token_logprobs.append(None)
            told.top_logprobs.append(None)
            continue
        logprob = max(scores.logprob, _LEAST)
        top = {text: logprob}
        for token_id, other in zip(scores.top_ids, scores.top_logprobs, strict=True):
            top.setdefault(describe(token_id).text, max(other, _LEAST))
        told.token_logprobs.append(logprob)
        told.top_logprobs.append(top)
    return told
