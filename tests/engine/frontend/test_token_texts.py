"""What tokens are called by themselves."""

import pytest
import tokenizers
from tokenizers import decoders, models

from engine.checkpoints.tiny import END_TURN
from engine.frontend.token_texts import TokenTexts
from engine.frontend.tokenizer import Tokenizer


def test_byte_level_tokens(tokenizer: Tokenizer):
    said = [tokenizer.describe(token_id) for token_id in (ord("a"), 32, 0xC3, 0xFF, END_TURN)]
    assert [each.text for each in said] == ["a", " ", "bytes:\\xc3", "bytes:\\xff", "<|im_end|>"]
    assert [bytes(each.bytes) for each in said] == [b"a", b" ", b"\xc3", b"\xff", b"<|im_end|>"]


@pytest.fixture(scope="module")
def sentences() -> TokenTexts:
    """As Llama 2's: words carry the space before them, and other characters are bytes."""
    names = ["<unk>", "▁Hello", "lo", "▁", "<0xC3>", "<0x41>", "世", "\ufffd"]
    model = models.BPE({name: index for index, name in enumerate(names)}, [], unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return TokenTexts(tokenizer)


@pytest.mark.parametrize(
    ("token_id", "text", "content"),
    [
        (1, " Hello", b" Hello"),
        (2, "lo", b"lo"),
        (3, " ", b" "),
        (4, "bytes:\\xc3", b"\xc3"),
        (5, "A", b"A"),
        (6, "世", "世".encode()),
        (7, "\ufffd", "\ufffd".encode()),
        (99, "", b""),  # models have rows for tokens that their tokenizer lacks
    ],
)
def test_tokens_of_words(sentences: TokenTexts, token_id: int, text: str, content: bytes):
    said = sentences.describe(token_id)
    assert (said.text, bytes(said.bytes)) == (text, content)
