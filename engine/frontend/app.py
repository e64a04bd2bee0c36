"""The HTTP interface: which path does what."""

import importlib.metadata
import time
from typing import Any

import msgspec
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp

from engine.frontend.answers import ChatWriter, TextWriter, Writer
from engine.frontend.completion import AnswerStream, Completion, whole_answer
from engine.frontend.detokenizer import Detokenizer
from engine.frontend.docs_page import docs_page
from engine.frontend.error_responses import answer_errors_as_openai
from engine.frontend.errors import NotFound
from engine.frontend.front_end import FrontEnd
from engine.frontend.gate import REQUEST_ID, Gate
from engine.frontend.requests import ChatCompletionRequest, CompletionRequest
from engine.frontend.sampling import sampling_params
from engine.frontend.tokenizer import Tokenizer
from engine.frontend.transcript import Transcript


def make_app(front_end: FrontEnd, tokenizer: Tokenizer) -> ASGIApp:
    """The application that a front end serves."""
    api = Api(front_end, tokenizer)
    app = FastAPI(
        title="Flotilla",
        version=VERSION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    post = {"methods": ["POST"], "responses": _ANSWERS, "response_model": None}
    ...
