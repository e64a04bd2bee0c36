"""Bodies of the requests: OpenAI's, with the extensions that vLLM made common."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from engine.frontend.parameters import RequestModel, Text, Unicode, fault, ignored, not_yet

MAX_STOPS = 4
"""OpenAI's limit."""
MAX_STOP_CHARS = 1024
"""Bounds the search for stop strings, which is done anew at each token."""


def _shape_of(value: Any) -> str:
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


StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS), Unicode]
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]


class TextPart(RequestModel):
    type: Literal["text"]
    """The only kind of part that is supported."""
    text: Text
    """What the part says."""


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
            Discriminator(_shape_of),
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


class StreamOptions(RequestModel):
    include_usage: bool | None = None
    """Send one more chunk, without choices, that counts the tokens."""
    include_obfuscation: Any = ignored()
    continuous_usage_stats: Any = not_yet(False)


class _Request(RequestModel):
    """What both kinds of request have."""

    model: Text
    """Name of the served model, as in `/v1/models`."""
    stream: bool | None = None
    """Answer by server-sent events, as the text is made."""
    stream_options: StreamOptions | None = None
    """Only with `stream`."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most tokens of the answer. Default: what the prompt leaves of the context."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """0: always the likeliest token. Default: 1."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Only the likeliest tokens that together have this probability. Default: 1, all."""
    top_k: Annotated[int, Field(ge=-1)] | None = None
    """Only this many of the likeliest tokens. Default: 0, all; -1 too."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    """64 bits; the same seed gives the same text. Default: a new one for each request."""
    stop: (
        Annotated[
            Annotated[StopText, Tag("(text)")]
            | Annotated[list[StopText], Field(max_length=MAX_STOPS), Tag("(list)")],
            Discriminator(_shape_of),
        ]
        | None
    ) = None
    """A text, or up to 4, at which the answer ends; not part of the answer."""
    ignore_eos: bool | None = None
    """Go on after the model's end of text, up to `max_tokens`. Default: false."""

    metadata: Any = ignored()
    prompt_cache_key: Any = ignored()
    safety_identifier: Any = ignored()
    service_tier: Any = ignored()
    store: Any = ignored()
    user: Any = ignored()

    frequency_penalty: Any = not_yet(0)
    include_stop_str_in_output: Any = not_yet(False)
    logit_bias: Any = not_yet({})
    min_p: Any = not_yet(0)
    min_tokens: Any = not_yet(0)
    n: Any = not_yet(1)
    presence_penalty: Any = not_yet(0)
    priority: Any = not_yet(0)
    repetition_penalty: Any = not_yet(1)
    response_format: Any = not_yet({"type": "text"})
    skip_special_tokens: Any = not_yet(True)
    stop_token_ids: Any = not_yet([])

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> "_Request":
        if self.stream_options is not None and not self.stream:
            raise fault(
                "invalid_value",
                "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
                "stream_options",
            )
        return self

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ChatCompletionRequest(_Request):
    """Body of `POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    """The conversation, the newest message last."""
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """The newer name of `max_tokens`."""

    parallel_tool_calls: Any = ignored()

    add_generation_prompt: Any = not_yet(True)
    audio: Any = not_yet()
    chat_template: Any = not_yet()
    chat_template_kwargs: Any = not_yet({})
    continue_final_message: Any = not_yet(False)
    function_call: Any = not_yet("none", "auto")
    functions: Any = not_yet([])
    logprobs: Any = not_yet(False)
    modalities: Any = not_yet(["text"])
    prediction: Any = not_yet()
    reasoning_effort: Any = not_yet()
    tool_choice: Any = not_yet("none", "auto")
    tools: Any = not_yet([])
    top_logprobs: Any = not_yet(0)
    verbosity: Any = not_yet("medium")
    web_search_options: Any = not_yet()

    @model_validator(mode="after")
    def _one_limit(self) -> "ChatCompletionRequest":
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise fault(
                "invalid_value",
                "'max_tokens' and 'max_completion_tokens' are the same limit: give one of them.",
                "max_tokens",
            )
        self.max_tokens = self.max_completion_tokens or self.max_tokens
        return self


def _only_one(prompts: list[Any]) -> Any:
    if len(prompts) > 1:
        raise fault("unsupported_value", "Several prompts in one request are not supported yet.")
    return prompts[0]


_ONE = (Field(min_length=1, fail_fast=True), AfterValidator(_only_one))


class CompletionRequest(_Request):
    """Body of `POST /v1/completions`."""

    prompt: Annotated[
        Annotated[Text, Tag("(text)")]
        | Annotated[TokenIds, Tag("(token ids)")]
        | Annotated[list[Text], *_ONE, Tag("(list)")]
        | Annotated[list[TokenIds], *_ONE, Tag("(token id lists)")],
        Discriminator(_shape_of),
    ]
    """Text or token ids; a list of one of them too."""

    best_of: Any = not_yet(1)
    echo: Any = not_yet(False)
    logprobs: Any = not_yet()
    suffix: Any = not_yet("")

    @property
    def text_or_token_ids(self) -> str | list[int]:
        return self.prompt  # type: ignore[return-value]  # lists of one are unpacked
