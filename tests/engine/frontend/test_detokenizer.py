import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from engine.frontend.detokenizer import Detokenizer


def byte_level() -> tokenizers.Tokenizer:
    """Learnt from a little text, so that some tokens are several bytes and parts of characters."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["Grüße, 世界! 🙂🙃 世 界 🙂 the cat the hat"] * 20, trainer)
    return tokenizer


def word_level_with_bytes() -> tokenizers.Tokenizer:
    """Like Llama 2's: words carry their space, bytes are a fallback."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    words = ["<unk>", "</s>", *bytes_, "▁", "▁of", "▁the", "ital", "cap", "a"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


BYTES = byte_level()
WORDS = word_level_with_bytes()


def id_of(tokenizer: tokenizers.Tokenizer, token: str) -> int:
    number = tokenizer.token_to_id(token)
    assert number is not None
    return number


END = id_of(BYTES, "<|end|>")


def read(detokenizer: Detokenizer, token_ids: list[int]) -> list[str]:
    return [*(detokenizer.add(token_id) for token_id in token_ids), detokenizer.flush()]


@given(st.text(max_size=40))
def test_text_comes_back(text):
    pieces = read(Detokenizer(BYTES, frozenset()), BYTES.encode(text).ids)
    assert "".join(pieces) == text


@given(st.lists(st.integers(0, BYTES.get_vocab_size() - 1), max_size=80))
def test_any_tokens_give_what_decoding_them_at_once_gives(token_ids):
    pieces = read(Detokenizer(BYTES, frozenset({END})), token_ids)
    assert "".join(pieces) == BYTES.decode(token_ids)


@given(text=st.text(max_size=20))
def test_no_piece_ends_within_a_character(tokenizer, text):
    pieces = read(tokenizer.detokenizer(), list(text.encode()))
    assert "".join(pieces) == text
    assert sorted(pieces) == sorted([*text, *[""] * (len(pieces) - len(text))])


def test_half_a_character_is_flushed_at_the_end(tokenizer):
    assert read(tokenizer.detokenizer(), list("aß".encode()[:-1])) == ["a", "", "\ufffd"]


@pytest.mark.parametrize("length", [1, 17, 100])
def test_a_run_of_broken_bytes_is_not_held_to_the_end(tokenizer, length):
    pieces = read(tokenizer.detokenizer(), [0x9F] * length)
    assert "".join(pieces) == "\ufffd" * length
    assert max(map(len, pieces)) <= 16


def test_a_character_after_a_run_of_broken_bytes_is_whole(tokenizer):
    token_ids = [0x9F] * 40 + list("世".encode()) + [0x9F]
    assert "".join(read(tokenizer.detokenizer(), token_ids)) == "\ufffd" * 40 + "世\ufffd"


def test_special_tokens_have_no_text_and_break_none():
    first, *rest = BYTES.encode("🙃").ids
    pieces = read(Detokenizer(BYTES, frozenset({END})), [END, first, END, END, *rest, END])
    assert "".join(pieces) == "🙃"


def test_text_that_continues_a_prompt_keeps_its_space():
    prompt = [id_of(WORDS, word) for word in ("▁the", "▁", "cap", "ital")]
    answer = [id_of(WORDS, word) for word in ("▁of", "▁the")]
    assert read(Detokenizer(WORDS, frozenset(), prompt), answer) == [" of", " the", ""]
    assert read(Detokenizer(WORDS, frozenset()), answer) == ["of", " the", ""]


def test_a_prompt_that_ends_within_a_character_is_no_context(tokenizer):
    prompt, answer = list("aß".encode()[:-1]), list("ß".encode())
    assert "".join(read(tokenizer.detokenizer(prompt), answer)) == "ß"


@given(st.lists(st.integers(id_of(WORDS, "<0x80>"), WORDS.get_vocab_size() - 1), max_size=60))
def test_broken_bytes_as_a_fallback_hide_no_word(token_ids):
    pieces = read(Detokenizer(WORDS, frozenset({1})), token_ids)
    num_bytes = id_of(WORDS, "<0xFF>") + 1
    words = [WORDS.id_to_token(token_id) or "" for token_id in token_ids if token_id >= num_bytes]
    letters = [letter for letter in "".join(pieces) if letter.isascii() and letter != " "]
    assert "".join(letters) == "".join(words).replace("▁", "")


@given(st.lists(st.sampled_from(["ß", "世", "🙂", " of", "a"]), max_size=20))
def test_bytes_as_a_fallback_give_characters(words):
    token_ids = [number for word in words for number in _fallback(word)]
    pieces = read(Detokenizer(WORDS, frozenset()), token_ids)
    assert "".join(pieces) == WORDS.decode(token_ids)


def _fallback(word: str) -> list[int]:
    known = WORDS.token_to_id(word.replace(" ", "▁"))
    if known is not None:
        return [known]
    return [id_of(WORDS, f"<0x{byte:02X}>") for byte in word.encode()]
