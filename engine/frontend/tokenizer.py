"""Text to token ids and back, by the tokenizer in a model's directory."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import tokenizers

from engine.errors import ModelError
from engine.frontend.chat_template import read_chat_template
from engine.frontend.detokenizer import Detokenizer
from engine.frontend.echo import Echo
from engine.frontend.errors import InvalidRequest
from engine.frontend.messages import ChatMessage, Conversation
from engine.frontend.token_texts import TokenTexts

LONG_TEXT = 8192
"""Characters above which text is encoded in a thread (a few milliseconds of work)."""


class Tokenizer:
    """What a front end needs of a model's tokenizer.

    Attributes:
        describe: Gives the text and bytes of a token id by itself.

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
        self.describe = TokenTexts(self._tokenizer).describe
        self._chat_template = read_chat_template(directory)
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = frozenset(number for number, token in added.items() if token.special)

    async def encode_text(self, text: str, adds_special: bool = True) -> list[int]:
        """Token ids of a bare prompt.

        Args:
            adds_special: With the special tokens that the model wants around it.
        """
        (token_ids,) = await self._encode([text], adds_special)
        return token_ids

    async def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode_text` of each, in one go."""
        return await self._encode(texts, adds_special=True)

    async def echo(self, prompt: str | Sequence[int]) -> Echo:
        """What an answer repeats of a prompt: special tokens among its ids are part of the text."""
        if isinstance(prompt, str):
            (encoding,) = await self._encodings([prompt], adds_special=True)
            return Echo(prompt, [begin for begin, _ in encoding.offsets])
        await asyncio.sleep(0)  # a long prompt takes milliseconds, and there may be many
        reader = Detokenizer(self._tokenizer, frozenset(), skips_special=False)
        text, offsets = "", []
        for token_id in prompt:
            offsets.append(len(text))
            text += reader.add(token_id)
        return Echo(text + reader.flush(), offsets)

    async def encode_chat(
        self,
        messages: Sequence[ChatMessage],
        conversation: Conversation | None = None,
        adds_special: bool = False,
    ) -> list[int]:
        """Token ids of a conversation, up to where the assistant's answer begins.

        Args:
            conversation: How it is to be rendered, unless as always.
            adds_special: Around what the template writes, which has special tokens already.

        Raises:
            InvalidRequest: The model has no chat template, or it does not take these messages.
        """
        if self._chat_template is None:
            raise InvalidRequest(
                "This model has no chat template: use /v1/completions.", param="messages"
            )
        how = conversation or Conversation()
        text = self._chat_template.render(
            [message.for_template() for message in messages],
            how.chat_template_kwargs or {},
            adds_generation_prompt=how.adds_generation_prompt,
            continues_last=bool(how.continue_final_message),
        )
        (token_ids,) = await self._encode([text], adds_special)
        return token_ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=False)

    def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        """What the vocabulary calls each token."""
        return [self._tokenizer.id_to_token(token_id) or "" for token_id in token_ids]

    def detokenizer(self, prompt_token_ids: Sequence[int] = ()) -> Detokenizer:
        """A new stream of text.

        Args:
            prompt_token_ids: What the text continues, where it shall read on without a seam; else
                empty. Only tokenizers that attach spaces to words tell the two apart.
        """
        return Detokenizer(self._tokenizer, self._special, prompt_token_ids)

    async def _encode(self, texts: Sequence[str], adds_special: bool) -> list[list[int]]:
        return [encoding.ids for encoding in await self._encodings(texts, adds_special)]

    async def _encodings(
        self, texts: Sequence[str], adds_special: bool
    ) -> list[tokenizers.Encoding]:
        if sum(map(len, texts)) <= LONG_TEXT:
            encode = self._tokenizer.encode
            return [encode(text, add_special_tokens=adds_special) for text in texts]
        # Unlike encode, encode_batch lets other threads run meanwhile.
        return await asyncio.to_thread(
            self._tokenizer.encode_batch, list(texts), add_special_tokens=adds_special
        )
