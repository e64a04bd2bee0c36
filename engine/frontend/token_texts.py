"""What a token is by itself, for log-probabilities."""

import re
from functools import lru_cache

import tokenizers

from engine.frontend.logprobs import TokenText

_REPLACEMENT = "\ufffd"
_BYTE = re.compile("<0x([0-9A-F]{2})>")
_MAX_CACHED = 2**15


def _byte_letters() -> dict[str, int]:
    """The letters that byte-level vocabularies write bytes as. Source: GPT-2."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {
        chr(256 + number): byte for number, byte in enumerate(others)
    }


_BYTE_LETTERS = _byte_letters()


class TokenTexts:
    """The texts of a tokenizer's tokens, remembered."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.describe = lru_cache(_MAX_CACHED)(self._describe)

    def _describe(self, token_id: int) -> TokenText:
        """Special tokens have their names, parts of a character `bytes:` and their bytes."""
        text = self._decode(token_id)
        if _REPLACEMENT in text:
            content = self._bytes_of(token_id, text)
            try:
                text = content.decode()
            except UnicodeDecodeError:
                text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
        else:
            # Decoders take the space off a word at the beginning: the second one keeps it.
            text = self._decode(token_id, token_id)[len(text) :]
            content = text.encode()
        return TokenText(text, list(content))

    def _decode(self, *token_ids: int) -> str:
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=False)

    def _bytes_of(self, token_id: int, text: str) -> bytes:
        name = self._tokenizer.id_to_token(token_id) or ""
        if byte := _BYTE.fullmatch(name):
            return bytes([int(byte[1], 16)])
        if all(letter in _BYTE_LETTERS for letter in name):
            return bytes(_BYTE_LETTERS[letter] for letter in name)
        return text.encode()
