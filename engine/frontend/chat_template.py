"""Chat templates: a conversation to the prompt that the model was trained on.

Source: `transformers.utils.chat_template_utils` (5.23), which the tests compare with.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.errors import ModelError
from engine.frontend.errors import InvalidRequest

Message = Mapping[str, str]
"""`role` and `content`."""

RESERVED = frozenset(
    ("add_generation_prompt", "chat_template", "continue_final_message", "documents")
    + ("messages", "tokenize", "tools")
)
"""Variables that requests set by parameters of their own, or not at all."""
_NO_VARIABLES: Mapping[str, Any] = {}
_MARK = "CONTINUE_FINAL_MESSAGE_TAG "
"""Put where a message is to be continued, and cut off. Its last character shows whether the
template trims messages; then what was before it is trimmed too."""
_SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


class ChatTemplate:
    """The template of one model.

    Args:
        source: In Jinja, from the model's files: not trusted.
        special_tokens: Text of each special token, by its name in tokenizer_config.json.

    Raises:
        ModelError: The source is no Jinja template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as problem:
            raise ModelError(
                f"chat template, line {problem.lineno}: {problem.message}"
            ) from problem
        self._special_tokens = dict(special_tokens)

    def render(
        self,
        messages: Sequence[Message],
        variables: Mapping[str, Any] = _NO_VARIABLES,
        *,
        adds_generation_prompt: bool = True,
        continues_last: bool = False,
    ) -> str:
        """The prompt.

        Args:
            variables: More that the template may look at; none is `RESERVED`.
            adds_generation_prompt: It ends where the assistant's answer begins.
            continues_last: It ends with the last message, before whatever closes that.

        Raises:
            InvalidRequest: The template does not take these messages or variables.
        """
        told = [dict(message) for message in messages]
        if continues_last:
            told[-1]["content"] += _MARK
        try:
            text = self._template.render(
                **{**self._special_tokens, **variables},
                messages=told,
                tools=None,
                documents=None,
                add_generation_prompt=adds_generation_prompt,
            )
            text.encode()
        except jinja2.TemplateError as problem:
            raise InvalidRequest(
                f"The model's chat template refuses these messages: {problem.message}",
                param="messages",
            ) from problem
        except Exception as problem:  # what its expressions raise: they can hold any operation
            raise InvalidRequest(
                f"The model's chat template fails with these messages: {type(problem).__name__}.",
                param="chat_template_kwargs" if variables else "messages",
                code="chat_template_failed",
            ) from problem
        return _up_to_mark(text) if continues_last else text


def _up_to_mark(text: str) -> str:
    before, found, after = text.rpartition(_MARK.strip())
    if not found:
        raise InvalidRequest(
            "The last message cannot be continued: the model's chat template does not show it"
            " as it is.",
            param="continue_final_message",
        )
    has_kept_spaces = after.startswith(_MARK[-1])
    return before if has_kept_spaces else before.rstrip()


def read_chat_template(directory: Path) -> ChatTemplate | None:
    """The chat template among a model's files; None if it has none, as base models do."""
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text()) if path.is_file() else {}
    special_tokens = {name: _text_of(config[name]) for name in _SPECIAL_TOKENS if config.get(name)}
    source = directory / "chat_template.jinja"
    if source.is_file():
        return ChatTemplate(source.read_text(), special_tokens)
    inline = _default_of(config.get("chat_template"))
    return ChatTemplate(inline, special_tokens) if inline else None


def _text_of(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]


def _default_of(templates: str | list[dict[str, str]] | None) -> str | None:
    """Older files hold several named templates; `default` is the one for plain chats."""
    if isinstance(templates, list):
        return {each["name"]: each["template"] for each in templates}.get("default")
    return templates


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _GenerationTag(Extension):
    """Lets `{% generation %}...{% endgeneration %}` through; it only marks text for training."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format_: str) -> str:
    return datetime.datetime.now().strftime(format_)
