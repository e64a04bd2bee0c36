"""A benchmark of one server, stage by stage. Everything here blocks: it has a thread of its own."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import psutil

from engine.wording import counted
from launcher.bench.clients import Clients
from launcher.bench.load import Stage
from launcher.bench.measure import stage_result
from launcher.bench.messages import Job, Outcome, Piece, Record, Session, Target, Turn
from launcher.bench.metrics import OUTPUT_TOKENS, Page, prefix_hit_rate, rank_skew, rank_tokens
from launcher.bench.options import Api, BenchOptions, PromptKind
from launcher.bench.progress import Ticker
from launcher.bench.resources import Usage
from launcher.bench.results import StageResult
from launcher.bench.server import Server
from launcher.errors import LauncherError

_AHEAD_S = 0.2
"""Until a stage begins: its sessions have reached all client processes by then."""
_PROBE_TOKENS = 8
_FEW_WORDS, _MANY_WORDS = 20, 100
"""Texts that are sent to learn how many tokens a word is."""
_OTHER_VOCAB_SIZE = 32000
"""Of a server that is not ours: few tokenizers have less."""

Say = Callable[[str], None]


class BenchFailed(LauncherError):
    """The server does not take such requests at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is to be driven."""

    stages: Sequence[Stage]
    warm_up: Stage | None


class Benchmark:
    """Measures one server.

    Args:
        model: That requests name.
        vocab_size: Of that model, if it is known.

    Attributes:
        stages: What has been measured so far.
        warnings: About the measuring as a whole.
        phases_s: How long each process took for each phase of its start, as the server says.
    """

    def __init__(
        self,
        options: BenchOptions,
        load: Load,
        server: Server,
        model: str,
        vocab_size: int | None,
        say: Say,
    ) -> None:
        self._options, self._load, self._server, self._say = options, load, server, say
        self._target = self._first_target(model, options.vocab_size or vocab_size)
        self._clients = Clients(options.clients)
        self._page: Page | None = None
        self._num_counted = 0.0  # output tokens that the server has counted, or will soon
        self.stages: list[StageResult] = []
        self.warnings: list[str] = []
        self.phases_s: dict[str, dict[str, float]] = {}

    def run(self, processes: Mapping[str, psutil.Process]) -> None:
        """Probes, warms up, measures.

        Args:
            processes: That serve, whose CPU and memory are measured.

        Raises:
            BenchFailed: Not a single request is answered.
            ClientFailed: A client process ended.
        """
        try:
            first = self._server.metrics()
            self._num_counted = (first and first.total(OUTPUT_TOKENS)) or 0.0
            self._probe()
            if self._target.vocab_size is None:
                self._learn_word_length()
            if self._load.warm_up is not None:
                self._say(f"warming up: {counted(self._load.warm_up.num_requests, 'request')}")
                self._drive(self._load.warm_up, "warm-up")
            self._page = self._server.metrics(self._num_counted)
            self.phases_s = dict(self._page.phases_s) if self._page is not None else {}
            for number, stage in enumerate(self._load.stages, 1):
                title = f"stage {number} of {len(self._load.stages)}, {stage.name}"
                self.stages.append(self._measure(stage, title, processes))
        finally:
            self.end()

    def end(self) -> None:
        """Ends the clients, whatever they do: `run` then fails."""
        self._clients.end()

    def _first_target(self, model: str, vocab_size: int | None) -> Target:
        options, server = self._options, self._server
        is_chat = options.api is Api.chat
        is_text = is_chat or options.prompts is PromptKind.text
        return Target(
            host=server.host,
            port=server.port,
            tls=server.tls,
            path=f"{server.prefix}/v1/{'chat/completions' if is_chat else 'completions'}",
            model=model,
            is_chat=is_chat,
            vocab_size=None if is_text else vocab_size or _OTHER_VOCAB_SIZE,
            # A server that ran already may have answered the same prompts, and cache them.
            salt="" if options.url is None else f"{time.time_ns():x}/",
            ignore_eos=options.ignore_eos,
            api_key=server.api_key,
            answer_s=options.answer_s,
        )

    def _probe(self) -> None:
        """Asks once; a server that does not know of usage in streams is asked without."""
        record = self._ask("probe", _PROBE_TOKENS)
        if record.cause.startswith("HTTP 4") and "stream_options" in record.message:
            self._target = msgspec.structs.replace(self._target, includes_usage=False)
            record = self._ask("probe", _PROBE_TOKENS)
        if record.cause:
            seen = f"{record.cause}: {record.message}" if record.message else record.cause
            raise BenchFailed(f"{self._server.url} does not take the load: {seen}", _hint(record))

    def _learn_word_length(self) -> None:
        """How many words a token is, from what the server counts for two texts."""
        few, many = (self._ask(f"words/{number}", number) for number in (_FEW_WORDS, _MANY_WORDS))
        grown = many.num_prompt_tokens - few.num_prompt_tokens
        is_known = few.is_counted and many.is_counted and not (few.cause or many.cause)
        if not is_known or grown <= 0:
            self.warnings.append("prompts are of one word for each token: the server counts none")
            return
        words_per_token = (_MANY_WORDS - _FEW_WORDS) / grown
        self._target = msgspec.structs.replace(self._target, words_per_token=words_per_token)

    def _ask(self, key: str, num_tokens: int) -> Record:
        session = Session([Turn([Piece(key, num_tokens)], 1)])
        job = Job(target=self._target, sessions=[session], begin_s=0.0, concurrency=1)
        (outcome,) = self._clients.run([job], lambda _: None)
        self._count(outcome)
        return outcome.records[0]

    def _measure(
        self, stage: Stage, title: str, processes: Mapping[str, psutil.Process]
    ) -> StageResult:
        usage = Usage(processes)
        usage.start()
        try:
            outcomes = self._drive(stage, title)
        finally:
            usage.stop()
        result = stage_result(
            stage.name, outcomes, self._options.slo, stage.concurrency, stage.rate
        )
        before, after = self._page, self._server.metrics(self._num_counted)
        self._page = after
        if before is not None and after is not None:
            ranks = rank_tokens(before, after)
            hit_rate = prefix_hit_rate(before, after)
            result = msgspec.structs.replace(
                result, ranks=ranks, rank_skew=rank_skew(ranks), prefix_hit_rate=hit_rate
            )
        self._say(
            f"{stage.name}: {result.output_tok_s:.0f} output tok/s, {result.req_s:.1f} req/s, "
            f"{result.num_failed} of {counted(result.num_requests, 'request')} failed"
        )
        return msgspec.structs.replace(result, processes=usage.of(result.duration_s))

    def _drive(self, stage: Stage, title: str) -> list[Outcome]:
        last_start_s = max(session.start_s for session in stage.sessions)
        ticker = Ticker(title, stage.num_requests, last_start_s)
        jobs = split(stage, self._target, self._clients.number, self._options.think_s)
        try:
            outcomes = self._clients.run(jobs, ticker.tell)
        finally:
            ticker.clear()
        for outcome in outcomes:
            self._count(outcome)
        return outcomes

    def _count(self, outcome: Outcome) -> None:
        self._num_counted += sum(record.num_output_tokens for record in outcome.records)


def split(stage: Stage, target: Target, num_clients: int, think_s: float = 0.0) -> list[Job]:
    """Each client's share of a stage; one with nothing to do gets none."""
    begin_s = time.monotonic() + _AHEAD_S
    number = min(num_clients, len(stage.sessions), stage.concurrency or num_clients)
    jobs = []
    for index in range(number):
        share = None
        if stage.concurrency is not None:
            share = stage.concurrency // number + (index < stage.concurrency % number)
        jobs.append(
            Job(
                target=target,
                sessions=list(stage.sessions[index::number]),
                begin_s=begin_s,
                concurrency=share,
                think_s=think_s,
            )
        )
    return jobs


def _hint(record: Record) -> str:
    """What may help with a request that the server refuses."""
    if "ignore_eos" in record.message:
        return "bench.ignore_eos=false"
    if record.cause in ("HTTP 400", "HTTP 422"):
        return "bench.prompts=text, or bench.vocab_size=... for prompts of token ids"
    if record.cause in ("HTTP 401", "HTTP 403"):
        return "bench.api_key_file=FILE"
    return ""
