"""`/tokenize` and `/detokenize`, in the form that vLLM gave them."""

import asyncio
from typing import Annotated, Any

import msgspec
from pydantic import ConfigDict, Field, model_validator
from starlette.responses import Response

from engine.config import Settings
from engine.frontend.limits import check_vocabulary
from engine.frontend.messages import Conversation, Messages
from engine.frontend.model_names import check_model
from engine.frontend.parameters import RequestModel, Text, TokenId, fault, not_yet
from engine.frontend.tokenizer import LONG_TEXT, Tokenizer


class TokenizeRequest(Conversation):
    """Body of `POST /tokenize`: either a text or a conversation."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": [name], "properties": {name: {"not": {"type": "null"}}}}
                for name in ("prompt", "messages")
            ]
        }
    )

    model: Text | None = None
    """Name of the served model. Default: that."""
    prompt: Text | None = None
    """A text, or `messages`."""
    messages: Messages | None = None
    """A conversation, or `prompt`."""
    add_special_tokens: bool | None = None
    """Add the special tokens that the model wants around a prompt. Default: true for a text, false
    for a conversation, whose template writes them."""
    return_token_strs: bool | None = None
    """Tell what the vocabulary calls each token. Default: false."""
    chat_template: Any = not_yet()
    tools: Any = not_yet([])

    @model_validator(mode="after")
    def _one_of_both(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise fault(
                "missing_required_parameter", "Give either 'prompt' or 'messages'.", "prompt"
            )
        return self


class DetokenizeRequest(RequestModel):
    """Body of `POST /detokenize`."""

    model: Text | None = None
    """Name of the served model. Default: that."""
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]
    """Token ids of the model's vocabulary."""


class Tokens(msgspec.Struct, frozen=True):
    """Answer of `/tokenize`."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Prompt(msgspec.Struct, frozen=True):
    """Answer of `/detokenize`."""

    prompt: str


class TokenizationApi:
    """What the two paths answer."""

    def __init__(self, settings: Settings, tokenizer: Tokenizer) -> None:
        self._settings = settings
        self._tokenizer = tokenizer

    async def tokenize(self, body: TokenizeRequest) -> Response:
        """Tells the token ids of a text or of a conversation, as a model is given them."""
        check_model(body.model, self._settings.model_name)
        adds_special = body.add_special_tokens
        if body.messages is not None:
            token_ids = await self._tokenizer.encode_chat(body.messages, body, bool(adds_special))
        else:
            token_ids = await self._tokenizer.encode_text(
                body.prompt or "", adds_special is not False
            )
        strings = self._tokenizer.token_strings(token_ids) if body.return_token_strs else None
        return _json(Tokens(len(token_ids), self._settings.max_model_len, token_ids, strings))

    async def detokenize(self, body: DetokenizeRequest) -> Response:
        """Tells the text of token ids."""
        check_model(body.model, self._settings.model_name)
        check_vocabulary(body.tokens, self._settings.facts.vocab_size, "tokens")
        if len(body.tokens) > LONG_TEXT:
            text = await asyncio.to_thread(self._tokenizer.decode, body.tokens)
        else:
            text = self._tokenizer.decode(body.tokens)
        return _json(Prompt(text))


def _json(answer: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json")
