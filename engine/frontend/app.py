"""The HTTP interface: which path does what."""

import time
from collections.abc import Callable, Sequence
from itertools import starmap, zip_longest
from typing import Any

import msgspec
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from engine import __version__
from engine.access import Access
from engine.frontend import exposition
from engine.frontend.answers import ChatWriter, TextWriter, Writer
from engine.frontend.body_limit import default_max_body_bytes
from engine.frontend.completion import Completion, Prompt
from engine.frontend.current import REQUEST_ID
from engine.frontend.delivery import AnswerStream, whole_answer
from engine.frontend.docs_page import docs_page
from engine.frontend.error_responses import answer_errors_as_openai
from engine.frontend.errors import InvalidRequest, Overloaded
from engine.frontend.front_end import FrontEnd
from engine.frontend.gate import Gate
from engine.frontend.key_check import KeyCheck
from engine.frontend.key_scheme import describe_keys
from engine.frontend.limits import check_echo, sampling_params, seed_source
from engine.frontend.logprobs import TokenText
from engine.frontend.model_names import check_model
from engine.frontend.requests import ChatCompletionRequest, CompletionRequest
from engine.frontend.tokenization import TokenizationApi
from engine.frontend.tokenizer import Tokenizer
from engine.frontend.transcript import Transcript

_Responses = dict[int | str, dict[str, Any]]
RANK_HEADER = "X-Data-Parallel-Rank"
"""Pins a request to a rank."""


def make_app(front_end: FrontEnd, tokenizer: Tokenizer, access: Access) -> ASGIApp:
    """The application that a front end serves.

    Args:
        access: Who may use it.
    """
    app = FastAPI(
        title="Flotilla", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    answer_errors_as_openai(app)
    api = Api(front_end, tokenizer, app)
    tokenization = TokenizationApi(front_end.settings, tokenizer)
    # In place of FastAPI's own 422.
    errors: _Responses = {"default": {"description": "OpenAI's error body"}}
    events: _Responses = errors | {200: {"content": {"text/event-stream": {}}}}
    text: _Responses = errors | {200: {"content": {"text/plain": {}}}}

    def add(method: str, path: str, call: Callable[..., Any], responses: _Responses) -> None:
        app.add_api_route(path, call, methods=[method], response_model=None, responses=responses)

    add("POST", "/v1/chat/completions", api.chat_completions, events)
    add("POST", "/v1/completions", api.completions, events)
    add("POST", "/tokenize", tokenization.tokenize, errors)
    add("POST", "/detokenize", tokenization.detokenize, errors)
    add("GET", "/v1/models", api.models, errors)
    add("GET", "/v1/models/{model:path}", api.model, errors)
    add("GET", "/health", api.health, errors)
    add("GET", "/ready", api.ready, errors)
    add("GET", "/plan", api.plan, errors)
    add("GET", "/metrics", api.metrics, text)
    add("GET", "/version", api.version, errors)
    app.add_api_route("/metrics", api.metrics, methods=["HEAD"], include_in_schema=False)
    app.add_api_route("/docs", api.docs, methods=["GET"], include_in_schema=False)
    options = front_end.settings.frontend
    keys = KeyCheck(access.api_keys)
    if not keys.is_open:
        describe_keys(app)
    gate = Gate(
        app,
        front_end.admission,
        front_end.metrics,
        keys,
        options.max_body_bytes or default_max_body_bytes(front_end.settings.max_model_len),
        options.receive_timeout_s,
        _paths(app),
    )
    return _for_browsers(gate, options.cors_origins) if options.cors_origins else gate


def _for_browsers(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Lets pages of other origins use an app; they send keys, never cookies."""
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=("*",),
        expose_headers=("Retry-After", "X-Request-Id"),
    )


class Api:
    """What each path answers."""

    def __init__(self, front_end: FrontEnd, tokenizer: Tokenizer, app: FastAPI) -> None:
        self._front_end = front_end
        self._settings = front_end.settings
        self._tokenizer = tokenizer
        self._app = app
        self._start_s = int(time.time())
        self._seeds = seed_source(self._settings.seed, front_end.identity)

    async def chat_completions(self, body: ChatCompletionRequest, request: Request) -> Response:
        """Answers a conversation."""
        check_model(body.model, self._settings.model_name)
        rank = self._pinned_rank(request)
        prompt = await self._tokenizer.encode_chat(body.messages, body)
        writer = ChatWriter(self._settings.model_name, body.includes_usage, self._description(body))
        return await self._answer(body, request, [prompt], rank, writer)

    async def completions(self, body: CompletionRequest, request: Request) -> Response:
        """Continues texts or lists of token ids."""
        check_model(body.model, self._settings.model_name)
        rank = self._pinned_rank(request)
        texts = [each for each in body.prompts if isinstance(each, str)]
        prompts = [each for each in body.prompts if not isinstance(each, str)]
        prompts += await self._tokenizer.encode_texts(texts)  # they are of one kind
        writer = TextWriter(self._settings.model_name, body.includes_usage, self._description(body))
        repeated = body.prompts if body.echo else []
        return await self._answer(body, request, prompts, rank, writer, repeated)

    async def models(self) -> Response:
        """The served model."""
        return _json({"object": "list", "data": [self._model()]})

    async def model(self, model: str) -> Response:
        """The served model, by its name."""
        check_model(model, self._settings.model_name)
        return _json(self._model())

    async def health(self) -> Response:
        """This process is alive; nothing is said about any other."""
        return _json({"status": "alive"})

    async def ready(self) -> Response:
        """Whether requests are answered now: 200 or 503, and who is missing."""
        readiness = self._front_end.readiness()
        return _json(readiness, status=200 if readiness.ready else 503)

    async def plan(self) -> Response:
        """What was planned, what runs, and where the two differ."""
        answer = await self._front_end.get_plan()
        return _json({"plan": answer.plan, "actual": answer.actual, "drift": answer.drift})

    async def metrics(self) -> Response:
        """Prometheus metrics of all processes of the deployment."""
        text = await self._front_end.render_metrics()
        return Response(text, headers={"content-type": exposition.CONTENT_TYPE})

    async def version(self) -> Response:
        """The version of Flotilla."""
        return _json({"version": __version__})

    async def docs(self, request: Request) -> Response:
        """These lines as a page."""
        url = f"{request.url.scheme}://{request.url.netloc}"
        return HTMLResponse(docs_page(self._app.openapi(), self._settings.model_name, url))

    async def _answer(
        self,
        body: ChatCompletionRequest | CompletionRequest,
        request: Request,
        prompts: Sequence[list[int]],
        rank: int | None,
        writer: Writer,
        repeated: Sequence[str | list[int]] = (),
    ) -> Response:
        """Sends the prompts to engines.

        Args:
            repeated: What the client gave as prompts, if the answers shall begin with them.
        """
        sampling = [
            sampling_params(body, token_ids, self._settings, self._seeds) for token_ids in prompts
        ]
        check_echo(body, prompts, self._settings.max_model_len)
        echoes = [await self._tokenizer.echo(prompt) for prompt in repeated]
        asked = list(starmap(Prompt, zip_longest(prompts, sampling, echoes)))
        self._check_queue()
        completion = Completion(
            REQUEST_ID.get(),
            self._front_end.client,
            asked,
            lambda prompt: self._transcript(body, prompt),
            rank,
            self._settings.frontend.request_timeout_s,
            self._front_end.metrics,
        )
        if body.stream:
            return AnswerStream(completion, writer, body.includes_usage, body.shows_usage)
        return await whole_answer(completion, writer, request.receive)

    def _transcript(
        self, body: ChatCompletionRequest | CompletionRequest, prompt: Prompt
    ) -> Transcript:
        is_seamless = isinstance(body, CompletionRequest) or bool(body.continue_final_message)
        return Transcript(
            self._tokenizer.detokenizer(prompt.token_ids if is_seamless else ()),
            body.stops,
            self._settings.facts.eos_token_ids,
            bool(body.include_stop_str_in_output),
            body.min_tokens or 0,
            is_empty=body.max_tokens == 0,
            offset=len(prompt.echo.text) if prompt.echo else 0,
        )

    def _description(
        self, body: ChatCompletionRequest | CompletionRequest
    ) -> Callable[[int], TokenText] | None:
        """How tokens are told, if their log-probabilities are asked for."""
        return None if body.num_logprobs is None else self._tokenizer.describe

    def _check_queue(self) -> None:
        limit = self._settings.frontend.max_queued_requests
        waiting = self._front_end.client.num_queued
        if limit is not None and waiting >= limit:
            message = (
                f"{waiting} requests wait for their first token: frontend.max_queued_requests."
            )
            raise Overloaded(message)

    def _model(self) -> dict[str, Any]:
        return {
            "id": self._settings.model_name,
            "object": "model",
            "created": self._start_s,
            "owned_by": "flotilla",
            "max_model_len": self._settings.max_model_len,
        }

    def _pinned_rank(self, request: Request) -> int | None:
        value = request.headers.get(RANK_HEADER)
        if value is None:
            return None
        is_number = value.isascii() and value.isdigit() and len(value) < 10
        if is_number and int(value) < self._settings.dp:
            return int(value)
        raise InvalidRequest(
            f"{RANK_HEADER} must be a rank, 0 to {self._settings.dp - 1}: {ascii(value[:64])}.",
            param=RANK_HEADER,
            code="invalid_rank",
        )


def _paths(app: FastAPI) -> frozenset[str]:
    return frozenset(route.path for route in app.routes if isinstance(route, Route))


def _json(data: object, status: int = 200) -> Response:
    body = msgspec.json.encode(data)
    return Response(body, status_code=status, media_type="application/json")
