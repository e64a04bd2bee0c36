"""Text to token ids and back, by the tokenizer in a model's directory."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import tokenizers

from engine.errors import ModelError
from engine.frontend.chat_template import Message, read_chat_template
from engine.frontend.detokenizer import Detokenizer
from engine.frontend.errors import InvalidRequest

LONG_TEXT = 8192
"""Characters above which text is encoded in a thread (a few milliseconds of work)."""


class Tokenizer:
    """What a front end needs of a model's tokenizer.

    Raises:
        ModelError: The directory has no tokenizer.json, or one that cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise ModelError(f"model has no tokenizer: {path} is missing")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as problem:  # tokenizers raises nothing narrower
            raise ModelError(f"tokenizer cannot be read: {path}: {problem}") from problem
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._chat_template = read_chat_template(directory)
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = frozenset(number for number, token in added.items() if token.special)

    async def encode_text(self, text: str) -> list[int]:
        """Token ids of a bare prompt, with the special tokens that the model wants around it."""
        return await self._encode(text, add_special_tokens=True)

    async def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, up to where the assistant's answer begins.

        Raises:
            InvalidRequest: The model has no chat template, or it does not take these messages.
        """
        if self._chat_template is None:
            raise InvalidRequest(
                "This model has no chat template: use /v1/completions.", param="messages"
            )
        # The template writes the special tokens itself.
        return await self._encode(self._chat_template.render(messages), add_special_tokens=False)

    def detokenizer(self, prompt_token_ids: Sequence[int] = ()) -> Detokenizer:
        """A new stream of text.

        Args:
            prompt_token_ids: What the text continues, where it shall read on without a seam; else
                empty. Only tokenizers that attach spaces to words tell the two apart.
        """
        return Detokenizer(self._tokenizer, self._special, prompt_token_ids)

    async def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        if len(text) <= LONG_TEXT:
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        # Unlike encode, encode_batch lets other threads run meanwhile.
        encodings = await asyncio.to_thread(
            self._tokenizer.encode_batch, [text], add_special_tokens=add_special_tokens
        )
        return encodings[0].ids
