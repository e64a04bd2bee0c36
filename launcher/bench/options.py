"""The options of `bench`: names, types, defaults, units and limits."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from engine.config import option


def list_option(*default: float, gt: float | None = None, ge: float | None = None) -> Any:
    """A field that holds a list; the limits are each element's."""
    limits = {"gt": gt, "ge": ge}
    return field(
        default_factory=lambda: list(default),
        metadata={key: value for key, value in limits.items() if value is not None},
    )


class Api(Enum):
    """Which of OpenAI's interfaces takes the load."""

    completions = "completions"
    chat = "chat"


class PromptKind(Enum):
    """What a completion's prompt is made of; messages of a chat are always text."""

    token_ids = "token_ids"
    text = "text"


class Distribution(Enum):
    fixed = "fixed"
    uniform = "uniform"
    lognormal = "lognormal"
    exponential = "exponential"


@dataclass(slots=True, kw_only=True)
class LengthOptions:
    """How many tokens, drawn for each request."""

    kind: Distribution = Distribution.fixed
    """fixed: always the mean; uniform: from min to max; lognormal (mean, stdev) and exponential
    (mean), cut to min and max."""
    mean: int = option(128, ge=1)
    """Tokens on average; uniform does not read it."""
    stdev: float | None = option(None, ge=0)
    """Tokens, with lognormal; null: half the mean."""
    min: int = option(1, ge=1)
    """Fewest tokens; fixed does not read it."""
    max: int | None = option(None, ge=1)
    """Most tokens; fixed does not read it, uniform needs it."""


@dataclass(slots=True, kw_only=True)
class InputOptions(LengthOptions):
    """New tokens of a prompt, or of a turn: the shared prefix is not counted."""


@dataclass(slots=True, kw_only=True)
class OutputOptions(LengthOptions):
    mean: int = option(64, ge=1)
    """Tokens on average; uniform does not read it."""


@dataclass(slots=True, kw_only=True)
class SharedPrefixOptions:
    tokens: int = option(0, ge=0)
    """Tokens that prompts begin with and share; 0: none."""
    groups: int = option(1, ge=1)
    """How many such prefixes there are; each session has one of them at random."""


@dataclass(slots=True, kw_only=True)
class SloOptions:
    ttft_ms: float | None = option(None, gt=0)
    """Milliseconds to the first token within which a request counts for goodput; null: any."""
    tpot_ms: float | None = option(None, gt=0)
    """Milliseconds for each token after the first within which a request counts for goodput;
    null: any."""


@dataclass(slots=True, kw_only=True)
class TraceOptions:
    path: str | None = None
    """File in Mooncake's format, a JSON object in each line: timestamp (ms), input_length,
    output_length, hash_ids; null: the load is made from the other keys."""
    speed: float = option(1.0, gt=0)
    """How many times as fast as it was recorded."""
    scale: float = option(1.0, gt=0)
    """What its lengths are multiplied by, for a smaller model."""
    block_size: int = option(512, ge=1)
    """Tokens that one of its hash_ids stands for."""


@dataclass(slots=True, kw_only=True)
class BenchOptions:
    url: str | None = None
    """Of a running OpenAI-compatible server, http://HOST:PORT, that is measured; null: the
    deployment that the configuration describes, started and ended."""
    model: str | None = None
    """Name that requests carry, with `bench.url`; null: the first that the server lists."""
    api_key_file: str | None = None
    """File with the API key of `bench.url`."""
    vocab_size: int | None = option(None, ge=64)
    """Token ids of prompts are below it; null: the model's, with `bench.url` 32000."""
    pid: int | None = option(None, ge=1)
    """Process behind `bench.url`, on this machine, whose memory and CPU are measured with its
    children's; a Flotilla is found without."""
    dir: str | None = None
    """Directory of the results; null: outputs/bench/DATE_TIME-NAME."""
    seed: int = option(0, ge=0)
    """The same seed gives the same load; with `bench.url` other prompts of the same lengths, which
    the server cannot have cached."""
    api: Api = Api.completions
    """Interface that takes the load: completions, chat."""
    prompts: PromptKind = PromptKind.token_ids
    """Of completions: token_ids (of the exact length) or text (about as long)."""
    concurrency: list[int] = list_option(4, ge=1)
    """Sessions at the same time, a stage for each number. A session is one request, or
    `bench.turns` of them."""
    rate: list[float] = list_option(gt=0)
    """Sessions that arrive each second, as a Poisson process, a stage for each number; in place of
    `bench.concurrency`."""
    num_sessions: int | None = option(None, ge=1)
    """Sessions of each stage, of a trace its first ones; null: four for each at the same time, 30
    seconds of arrivals, at least 16; a whole trace."""
    warm_up_sessions: int = option(8, ge=0)
    """Sessions before the first stage, which are not measured."""
    input: InputOptions = field(default_factory=InputOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    shared_prefix: SharedPrefixOptions = field(default_factory=SharedPrefixOptions)
    turns: int = option(1, ge=1, le=1000)
    """Requests of a session, each with the messages and answers before it (`bench.api=chat`)."""
    think_s: float = option(0.0, ge=0)
    """Seconds between an answer and the next turn."""
    trace: TraceOptions = field(default_factory=TraceOptions)
    ignore_eos: bool = True
    """Ask for answers of the full length; false for servers that do not know `ignore_eos`."""
    answer_s: float = option(300.0, gt=0, le=86400)
    """Seconds until each answer must be complete."""
    clients: int = option(1, ge=1, le=256)
    """Processes that drive the load; the results say when one more would help."""
    slo: SloOptions = field(default_factory=SloOptions)
