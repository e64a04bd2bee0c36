"""Bodies of the requests: OpenAI's, with the extensions that vLLM made common."""

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, model_validator

from engine.frontend.messages import Conversation, Messages, shape_of
from engine.frontend.parameters import (
    LogitBias,
    RequestModel,
    Text,
    TokenIds,
    Unicode,
    fault,
    ignored,
    not_yet,
)
from engine.sampling import MAX_LOGPROBS

MAX_STOPS = 4
"""OpenAI's limit."""
MAX_STOP_CHARS = 1024
"""Bounds the search for stop strings, which is done anew at each token."""
MAX_N = 128
"""OpenAI's limit."""
MAX_CHOICES = 1024
"""Of one request, which is admitted and answered as a whole."""
_SEVERAL = (Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True),)
MAX_STOP_TOKEN_IDS = 128
"""Each new token is compared with all of them."""
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 0.01, 100
"""Far beyond what is of use; what goes on to 0 would leave float32's range."""
Penalty = Annotated[float, Field(ge=-2, le=2)]
StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS), Unicode]


class StreamOptions(RequestModel):
    include_usage: bool | None = None
    """Send one more chunk, without choices, that counts the tokens."""
    include_obfuscation: Any = ignored()
    continuous_usage_stats: bool | None = None
    """With `include_usage`: each chunk counts the tokens so far."""

    @model_validator(mode="after")
    def _stats_are_part_of_usage(self) -> "StreamOptions":
        if self.continuous_usage_stats and not self.include_usage:
            raise fault(
                "invalid_value",
                "'continuous_usage_stats' is only allowed with 'include_usage'.",
                "continuous_usage_stats",
            )
        return self


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
            Discriminator(shape_of),
        ]
        | None
    ) = None
    """A text, or up to 4, at which the answer ends; not part of the answer."""
    include_stop_str_in_output: bool | None = None
    """Let the answer end after the stop text. Default: false, before it."""
    ignore_eos: bool | None = None
    """Go on after the model's end of text, up to `max_tokens`. Default: false."""
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    """Answers to each prompt, each with a seed of its own. Default: 1."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Only tokens at least this probable, relative to the likeliest. Default: 0, all."""
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    """Nothing but the limit ends the answer before it has this many. Default: 0."""
    stop_token_ids: (
        Annotated[
            list[Annotated[int, Field(ge=0)]],
            Field(max_length=MAX_STOP_TOKEN_IDS, fail_fast=True),
        ]
        | None
    ) = None
    """Tokens that end the answer, as the model's end of text does."""
    presence_penalty: Penalty | None = None
    """Makes tokens that are in the answer less likely; below 0: likelier. Default: 0."""
    frequency_penalty: Penalty | None = None
    """The same, times how often each is there. Default: 0."""
    repetition_penalty: (
        Annotated[float, Field(ge=MIN_REPETITION_PENALTY, le=MAX_REPETITION_PENALTY)] | None
    ) = None
    """Above 1 makes tokens of prompt and answer less likely, below 1 likelier. Default: 1."""
    logit_bias: LogitBias | None = None
    """By token id: what is added to the token's logit, -100 to 100. Up to 300 tokens."""
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    """Requests with lower ones run first. Default: 0."""

    metadata: Any = ignored()
    prompt_cache_key: Any = ignored()
    safety_identifier: Any = ignored()
    service_tier: Any = ignored()
    store: Any = ignored()
    user: Any = ignored()

    response_format: Any = not_yet({"type": "text"})
    skip_special_tokens: Any = not_yet(True)

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
    def num_choices(self) -> int:
        """Of each prompt."""
        return self.n or 1

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def shows_usage(self) -> bool:
        """Each chunk tells the usage so far."""
        return self.stream_options is not None and bool(self.stream_options.continuous_usage_stats)


class ChatCompletionRequest(Conversation, _Request):
    """Body of `POST /v1/chat/completions`."""

    messages: Messages
    """The conversation, the newest message last."""
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """The newer name of `max_tokens`."""
    logprobs: bool | None = None
    """Tell the log-probability of each token. Default: false."""
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    """With `logprobs`: those of so many of the likeliest tokens too. Default: 0."""

    parallel_tool_calls: Any = ignored()

    audio: Any = not_yet()
    chat_template: Any = not_yet()
    function_call: Any = not_yet("none", "auto")
    functions: Any = not_yet([])
    modalities: Any = not_yet(["text"])
    prediction: Any = not_yet()
    reasoning_effort: Any = not_yet()
    tool_choice: Any = not_yet("none", "auto")
    tools: Any = not_yet([])
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

    @model_validator(mode="after")
    def _top_logprobs_are_logprobs(self) -> "ChatCompletionRequest":
        if self.top_logprobs and not self.logprobs:
            raise fault(
                "invalid_value",
                "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.",
                "top_logprobs",
            )
        return self

    @property
    def num_logprobs(self) -> int | None:
        """Of the likeliest tokens; None: no log-probabilities are asked for."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def scores_prompt(self) -> bool:
        return False


class CompletionRequest(_Request):
    """Body of `POST /v1/completions`."""

    prompt: Annotated[
        Annotated[Text, Tag("(text)")]
        | Annotated[TokenIds, Tag("(token ids)")]
        | Annotated[list[Text], *_SEVERAL, Tag("(list)")]
        | Annotated[list[TokenIds], *_SEVERAL, Tag("(token id lists)")],
        Discriminator(shape_of),
    ]
    """Text or token ids, or a list of texts or of token ids: each is continued by itself."""

    max_tokens: Annotated[int, Field(ge=0)] | None = None
    """Most tokens of the answer; 0 only with `echo`. Default: what the prompt leaves of the
    context."""
    echo: bool | None = None
    """Let the answer begin with the prompt. Default: false."""
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    """Tell the log-probability of each token, and of so many of the likeliest ones."""

    best_of: Any = not_yet(1)
    suffix: Any = not_yet("")

    @model_validator(mode="after")
    def _not_too_many(self) -> "CompletionRequest":
        num_choices = len(self.prompts) * self.num_choices
        if num_choices > MAX_CHOICES:
            raise fault(
                "too_many_choices",
                f"At most {MAX_CHOICES} answers can be asked for at once, prompts times 'n':"
                f" {num_choices}.",
                "n",
            )
        return self

    @model_validator(mode="after")
    def _answers_something(self) -> "CompletionRequest":
        if self.max_tokens == 0 and not self.echo:
            raise fault(
                "invalid_value", "'max_tokens' 0 is only allowed with 'echo'.", "max_tokens"
            )
        return self

    @property
    def num_logprobs(self) -> int | None:
        """Of the likeliest tokens; None: no log-probabilities are asked for."""
        return self.logprobs

    @property
    def scores_prompt(self) -> bool:
        return bool(self.echo) and self.logprobs is not None

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each by itself."""
        match self.prompt:
            case str() | [int(), *_]:
                return [self.prompt]  # type: ignore[list-item]
            case several:
                return [*several]
