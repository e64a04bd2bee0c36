"""The checks of one front end: what it knows, and what every rank answers through it."""

import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from engine.config import ProcessSpec
from engine.core.reference import Reference
from engine.metrics import NUM_REQUESTS_RUNNING, NUM_REQUESTS_WAITING, PREFIX, REQUEST_SUCCESS
from engine.protocol import FinishReason, Member, ProcessState
from engine.wording import counted
from launcher.plan import DeploymentPlan
from launcher.smoke.client import Client, Completion, ErrorBody, Plan, Ready, Usage
from launcher.smoke.results import CheckFailed, FrontEndGone, Recorder

COMPLETIONS = "/v1/completions"
MAX_STREAMS_LEFT = 5
_POLL_S = 0.05
_SAMPLE = re.compile(r"^([\w:]+)\{(.*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class FrontEndChecks:
    """Everything that is asked through one front end.

    Args:
        reference: What every rank must say; None if it could not be computed: then they are asked
            something else, and their tokens are not compared.
        answer_s: Seconds until a rank must be idle after a client has left.
    """

    def __init__(
        self,
        recorder: Recorder,
        client: Client,
        name: str,
        plan: DeploymentPlan,
        reference: Reference | None,
        answer_s: float,
    ) -> None:
        self._recorder, self._client, self._name, self._plan = recorder, client, name, plan
        self._reference, self._answer_s = reference, answer_s

    def run(self) -> None:
        """Makes all checks that can be made."""
        checks = (("ready", self._ready), ("plan", self._as_planned), ("bad request", self._bad))
        try:
            for name, look in checks:
                self._recorder.check(name, look, self._name)
            for rank in range(self._plan.dp):
                self._check_rank(rank)
        except FrontEndGone:
            return  # it has been noted

    def _check_rank(self, rank: int) -> None:
        asked = self._reference or _unanswered(self._plan.settings.max_model_len)
        checks = RankChecks(self._client, rank, self._plan, asked, self._answer_s)
        where = (self._name, rank)
        if self._recorder.check("unstreamed", checks.unstreamed, *where):
            if self._reference is not None:
                self._recorder.check("greedy tokens", checks.greedy_tokens, *where)
            self._recorder.check("streamed", checks.streamed, *where)
        self._recorder.check("aborted", checks.aborted, *where)

    def _ready(self) -> str:
        planned = list(range(self._plan.dp))
        ready = self._client.get("/ready", Ready).ready_ranks
        expect("ready ranks", planned, ready)
        return counted(len(ready), "rank")

    def _as_planned(self) -> str:
        told = self._client.get("/plan", Plan)
        expect("digest", self._plan.digest, told.plan.digest)
        expect("drift", [], told.drift)
        actual = {member.name: member for member in told.actual}
        expect("processes", sorted(spec.name for spec in self._plan.processes), sorted(actual))
        for spec in self._plan.processes:
            self._expect_as_planned(spec, actual[spec.name])
        nodes = {spec.node for spec in self._plan.processes}
        return f"{len(actual)} processes on {counted(len(nodes), 'node')}, no drift"

    def _expect_as_planned(self, spec: ProcessSpec, member: Member) -> None:
        bundles = {group.name: group.bundles for group in self._plan.groups}
        num_devices = sum(
            bundles[worker.group][worker.bundle].resources.get("GPU", 0) for worker in spec.workers
        )
        for what, planned, seen in (
            ("state", ProcessState.ready.value, member.state.value),
            ("role", spec.role.value, member.role.value),
            ("rank", spec.rank, member.rank),
            ("node", spec.node, member.node),
            ("number of devices", num_devices, len(member.devices)),
        ):
            expect(f"{what} of {spec.name}", planned, seen)

    def _bad(self) -> str:
        body = {"model": self._plan.settings.model_name, "prompt": "x", "max_tokens": "many"}
        error = self._client.post(COMPLETIONS, body, ErrorBody, status=400).error
        expect("param of the error", "max_tokens", error.param)
        self._client.get("/health", Any)
        return f"400: {error.message}; goes on"


class RankChecks:
    """What one rank answers through one front end."""

    def __init__(
        self,
        client: Client,
        rank: int,
        plan: DeploymentPlan,
        reference: Reference,
        answer_s: float,
    ) -> None:
        self._client, self._rank, self._plan = client, rank, plan
        self._reference, self._answer_s = reference, answer_s
        self._text = ""

    def unstreamed(self) -> str:
        answer = self._client.post(COMPLETIONS, self._body(), Completion, self._rank)
        expect("choices", 1, len(answer.choices))
        expect("finish_reason", FinishReason.length.value, answer.choices[0].finish_reason)
        self._text = answer.choices[0].text
        return self._counted(answer.usage)

    def greedy_tokens(self) -> str:
        """Up to the first tie: after it, other texts are right too."""
        reference = self._reference
        is_certain = reference.num_certain == reference.num_tokens
        seen = self._text if is_certain else self._text[: len(reference.text)]
        expect("text", reference.text, seen)
        ties = "" if is_certain else ", then a tie"
        return f"{counted(reference.num_certain, 'token')} as a single process gives{ties}"

    def streamed(self) -> str:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        with self._client.stream(self._body() | options, self._rank) as chunks:
            seen = list(chunks)
        expect("chunks", "some", "some" if seen else "none")
        *with_text, last = seen
        expect("choices of the last chunk", 0, len(last.choices))
        text = "".join(choice.text for chunk in with_text for choice in chunk.choices)
        expect("text of all chunks", self._text, text)
        reasons = [choice.finish_reason for chunk in with_text for choice in chunk.choices]
        expect("finish_reason", FinishReason.length.value, reasons[-1] if reasons else None)
        return f"{self._counted(last.usage)} in {counted(len(seen), 'chunk')}, [DONE]"

    def aborted(self) -> str:
        """The client leaves in the middle of a stream; the rank must stop its work.

        A fast rank may have answered whole before it hears of it: then once more.
        """
        for _ in range(MAX_STREAMS_LEFT):
            before = self._counts()
            self._leave_a_stream()
            began_s = time.monotonic()
            if self._until_idle(before, began_s).aborted > before.aborted:
                return f"idle {time.monotonic() - began_s:.1f} s after the client left"
        raise CheckFailed(
            f"expected the request of a client that left aborted, seen {MAX_STREAMS_LEFT} answered "
            f"whole: profile.max_model_len ({self._plan.settings.max_model_len}) may be too small"
        )

    def _leave_a_stream(self) -> None:
        """Asks for as much as the context holds, and leaves after the first chunk."""
        left = self._plan.settings.max_model_len - len(self._reference.prompt_token_ids)
        body = self._body() | {"stream": True, "max_tokens": left}
        with self._client.stream(body, self._rank) as chunks:
            expect("first chunk", "some", "some" if next(chunks, None) else "none")

    def _until_idle(self, before: "_Counts", began_s: float) -> "_Counts":
        """The counts of a rank that has ended more requests than before, and has no others."""
        while not (counts := self._counts()).is_idle or counts.ended <= before.ended:
            if time.monotonic() > began_s + self._answer_s:
                expected = f"the request aborted and rank {self._rank} idle"
                raise CheckFailed(
                    f"expected {expected} within {self._answer_s:g} s (smoke.answer_s) after the "
                    f"client left a stream, seen {counts}"
                )
            time.sleep(_POLL_S)
        return counts

    def _counts(self) -> "_Counts":
        """What the rank counts, as the front end knows it."""
        samples = {
            (name, labels.get("finished_reason")): value
            for name, labels, value in parse_metrics(self._client.text("/metrics"))
            if labels.get("rank") == str(self._rank)
        }
        ended = f"{PREFIX}{REQUEST_SUCCESS.name}_total"
        return _Counts(
            running=samples.get((PREFIX + NUM_REQUESTS_RUNNING.name, None)),
            waiting=samples.get((PREFIX + NUM_REQUESTS_WAITING.name, None)),
            aborted=samples.get((ended, FinishReason.abort.value), 0.0),
            whole=samples.get((ended, FinishReason.length.value), 0.0),
        )

    def _body(self) -> dict[str, Any]:
        return {
            "model": self._plan.settings.model_name,
            "prompt": self._reference.prompt_token_ids,
            "max_tokens": self._reference.num_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }

    def _counted(self, usage: Usage | None) -> str:
        num_prompt, num_tokens = len(self._reference.prompt_token_ids), self._reference.num_tokens
        expect("usage", Usage(num_prompt, num_tokens, num_prompt + num_tokens), usage)
        return counted(num_tokens, "token")


class _Counts(NamedTuple):
    """Requests of a rank."""

    running: float | None
    """None: the front end has not heard."""
    waiting: float | None
    aborted: float
    whole: float
    """Ended because they had all tokens that they asked for."""

    @property
    def is_idle(self) -> bool:
        return self.running == 0 and self.waiting == 0

    @property
    def ended(self) -> float:
        return self.aborted + self.whole

    def __str__(self) -> str:
        return f"{self.running} running, {self.waiting} waiting, {self.aborted:g} aborted so far"


def _unanswered(max_model_len: int) -> Reference:
    """A prompt that every model understands, and no token to compare with."""
    prompt = [1] * min(3, max_model_len - 1)
    num_tokens = min(8, max_model_len - len(prompt))
    return Reference(prompt_token_ids=prompt, num_tokens=num_tokens, num_certain=0, text="")


def parse_metrics(page: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Name, labels and value of each sample in Prometheus' text format; comments are none."""
    for name, labels, value in _SAMPLE.findall(page):
        yield name, dict(_LABEL.findall(labels)), float(value)


def expect(what: str, expected: object, seen: object) -> None:
    """Compares.

    Raises:
        CheckFailed: They differ.
    """
    if seen != expected:
        raise CheckFailed(f"{what}: expected {expected!r}, seen {seen!r}")
