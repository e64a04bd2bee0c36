"""Token ids to text, while they come."""

from collections.abc import Sequence

import tokenizers
from tokenizers.decoders import DecodeStream

_REPLACEMENT = "\ufffd"
_NUM_CONTEXT_TOKENS = 4
_MAX_BYTES = 4
"""Of one character in UTF-8."""
_MAX_HELD_TOKENS = 4 * _MAX_BYTES
"""A longer run of tokens that is still no text is broken and will not become text."""


class Detokenizer:
    """The text of token ids that come one by one; special tokens have none.

    The pieces and the flushed end together are what decoding all token ids at once gives.

    Args:
        special: Tokens without text.
        prompt_token_ids: What the text continues, where it shall read on without a seam.
        skips_special: Else all tokens have text; `special` is to be empty.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        special: frozenset[int],
        prompt_token_ids: Sequence[int] = (),
        skips_special: bool = True,
    ) -> None:
        context = list(prompt_token_ids[-_NUM_CONTEXT_TOKENS:])
        if tokenizer.decode(context).endswith(_REPLACEMENT):
            context = []  # half a character is no context
        self._tokenizer = tokenizer
        self._special = special
        self._held: list[int] = []
        self._skips_special = skips_special
        self._stream = DecodeStream(ids=context, skip_special_tokens=skips_special)

    def add(self, token_id: int) -> str:
        """Text that is complete with this token; bytes that are no character yet are held back."""
        if token_id in self._special:
            return ""
        self._held.append(token_id)
        try:
            text = self._stream.step(self._tokenizer, token_id)
        except Exception:
            # "Invalid prefix": to a byte-fallback decoder one broken byte breaks the characters
            # before it too, which have been sent. tokenizers raises nothing narrower.
            return self._restart(len(self._held))
        if text is not None:
            self._held.clear()
            return text
        if len(self._held) > _MAX_HELD_TOKENS:
            return self._restart(self._last_border())
        return ""

    def flush(self) -> str:
        """What was held back, at the end: bytes that never became a character."""
        text = self._decode(self._held)
        self._held.clear()
        return text

    def _restart(self, num_tokens: int) -> str:
        """Text of the first held tokens; a new stream goes on with the rest."""
        text = self._decode(self._held[:num_tokens])
        del self._held[:num_tokens]
        self._stream = DecodeStream(skip_special_tokens=self._skips_special)
        for token_id in self._held:
            self._stream.step(self._tokenizer, token_id)
        return text

    def _last_border(self) -> int:
        """Number of held tokens that later ones cannot turn into characters any more.

        Without releasing them a run of broken bytes would be held to the end of the answer, and
        decoded anew at each step.
        """
        decode, held = self._decode, self._held
        text = decode(held)
        candidates = range(len(held) - 1, len(held) - _MAX_BYTES, -1)
        fits = (cut for cut in candidates if decode(held[:cut]) + decode(held[cut:]) == text)
        return next(fits, len(held))

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skips_special)
