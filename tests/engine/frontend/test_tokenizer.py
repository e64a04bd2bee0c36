"""Prompts have the token ids that transformers gives them."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as RawTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from engine.checkpoints.sources import model_directory as fetched_directory
from engine.checkpoints.tiny import BEGIN_TURN
from engine.config import ModelOptions
from engine.errors import ModelError
from engine.frontend.errors import InvalidRequest
from engine.frontend.messages import ChatMessage
from engine.frontend.tokenizer import LONG_TEXT, Tokenizer

CHATS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": "3  4 Grüße\n\n  世界 🙂"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "<|im_end|>and then?"},
    ],
]


@pytest.mark.parametrize("messages", CHATS)
async def test_chats_are_encoded_as_in_transformers(model_directory: Path, messages):
    await check_against_transformers(model_directory, messages)


@pytest.mark.parametrize("messages", CHATS)
@pytest.mark.timeout(600)  # the first use of the model fetches it
async def test_chats_of_a_real_model_are_encoded_as_in_transformers(messages):
    await check_against_transformers(fetched_directory(ModelOptions()), messages)


def chat_of(messages) -> list[ChatMessage]:
    return [ChatMessage.model_validate(message) for message in messages]


async def check_against_transformers(directory: Path, messages) -> None:
    reference = PreTrainedTokenizerFast.from_pretrained(directory)
    expected = reference.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert await Tokenizer(directory).encode_chat(chat_of(messages)) == expected


async def test_a_bare_text_gets_the_models_special_tokens(model_directory: Path, tmp_path: Path):
    raw = RawTokenizer.from_file(str(model_directory / "tokenizer.json"))
    raw.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", BEGIN_TURN)]
    )
    raw.save(str(tmp_path / "tokenizer.json"))
    config = {
        "chat_template": "{{ bos_token }}{{ messages[0].content }}",
        "bos_token": "<|im_start|>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(tmp_path)
    assert await tokenizer.encode_text("Hi") == [BEGIN_TURN, *b"Hi"]
    # Not twice: the template has written them.
    assert await tokenizer.encode_chat([ChatMessage(role="user", content="Hi")]) == [
        BEGIN_TURN,
        *b"Hi",
    ]


async def test_limits_in_the_file_cut_no_prompt(model_directory: Path, tmp_path: Path):
    raw = RawTokenizer.from_file(str(model_directory / "tokenizer.json"))
    raw.enable_truncation(2)
    raw.enable_padding(length=8)
    raw.save(str(tmp_path / "tokenizer.json"))
    assert await Tokenizer(tmp_path).encode_text("Hello") == list(b"Hello")


async def test_long_text_is_encoded_alike(tokenizer: Tokenizer):
    text = "Grüße " * LONG_TEXT
    assert await tokenizer.encode_text(text) == list(text.encode())
    assert await tokenizer.encode_texts(["a", text]) == [[ord("a")], list(text.encode())]


async def test_a_model_without_a_template_cannot_chat(model_directory: Path, tmp_path: Path):
    (tmp_path / "tokenizer.json").symlink_to(model_directory / "tokenizer.json")
    with pytest.raises(InvalidRequest, match="no chat template"):
        await Tokenizer(tmp_path).encode_chat(chat_of(CHATS[0]))


def test_a_missing_tokenizer_is_an_error_of_the_model(tmp_path: Path):
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing"):
        Tokenizer(tmp_path)


def test_a_damaged_tokenizer_is_an_error_of_the_model(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(ModelError, match="cannot be read"):
        Tokenizer(tmp_path)
