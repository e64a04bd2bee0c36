"""Conversations in the bodies of requests, and how they become a prompt."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from engine.frontend.chat_template import RESERVED
from engine.frontend.parameters import RequestModel, Text, fault, ignored, not_yet


def shape_of(value: Any) -> str:
    """Tag of the union member that a value is meant to be. Parentheses: no part of a param."""
    if not isinstance(value, list):
        return "(text)"
    match value[:1]:
        case [int()]:
            return "(token ids)"
        case [list()]:
            return "(token id lists)"
        case _:
            return "(list)"


class TextPart(RequestModel):
    type: Literal["text"]
    """The only kind of part that is supported."""
    text: Text
    """What the part says."""
    image_url: Any = not_yet()
    input_audio: Any = not_yet()
    file: Any = not_yet()


class ChatMessage(RequestModel):
    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"role": {"const": "assistant"}}},
            "else": {
                "required": ["content"],
                "properties": {"content": {"not": {"type": "null"}}},
            },
        }
    )

    role: Literal["system", "developer", "user", "assistant"]
    """Who says it; `developer` is another name for `system`."""
    content: (
        Annotated[
            Annotated[Text, Tag("(text)")]
            | Annotated[list[TextPart], Field(fail_fast=True), Tag("(list)")],
            Discriminator(shape_of),
        ]
        | None
    ) = None
    """Text, or text parts, which are joined by line breaks. Only an `assistant` may have none."""
    name: Any = ignored()
    refusal: Any = ignored()
    annotations: Any = ignored()
    audio: Any = not_yet()
    tool_calls: Any = not_yet([])
    tool_call_id: Any = not_yet()
    function_call: Any = not_yet()

    @model_validator(mode="after")
    def _has_content(self) -> "ChatMessage":
        if self.content is None and self.role != "assistant":
            raise fault("missing_required_parameter", "Missing required parameter.", "content")
        return self

    def for_template(self) -> dict[str, str]:
        """The message as chat templates know it."""
        content = self.content or ""
        if isinstance(content, list):
            content = "\n".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


Messages = Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]


class Conversation(RequestModel):
    """What decides how the chat template renders messages."""

    add_generation_prompt: bool | None = None
    """End the prompt where the assistant's answer begins. Default: true, unless
    `continue_final_message` is given."""
    continue_final_message: bool | None = None
    """Leave the last message open, so that the answer continues it. Default: false."""
    chat_template_kwargs: dict[str, Any] | None = None
    """More variables for the model's chat template, such as `enable_thinking`."""

    @model_validator(mode="after")
    def _prompt_ends_once(self) -> "Conversation":
        if self.add_generation_prompt and self.continue_final_message:
            raise fault(
                "invalid_value",
                "'add_generation_prompt' and 'continue_final_message' exclude each other.",
                "continue_final_message",
            )
        for name in sorted(RESERVED & (self.chat_template_kwargs or {}).keys()):
            raise fault(
                "invalid_value",
                f"'{name}' cannot be set in 'chat_template_kwargs'.",
                "chat_template_kwargs",
            )
        return self

    @property
    def adds_generation_prompt(self) -> bool:
        if self.add_generation_prompt is None:
            return not self.continue_final_message
        return self.add_generation_prompt
