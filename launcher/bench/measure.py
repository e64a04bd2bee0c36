"""From records of requests to figures: functions without a clock."""

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence

from launcher.bench.messages import OTHER_LENGTH, TOO_LATE, Outcome, Record
from launcher.bench.options import SloOptions
from launcher.bench.results import ClientUse, StageResult, Summary

_BUSY_SHARE = 0.8
"""Of one CPU: a client above it has little left, and its times are those of its own queue."""
_IDLE_SHARE = 0.3
"""Of one CPU: a client below it that is late has not been held up by its own work."""
_LATE_MS = 20.0
"""At p99: a client so late notes times that much too long."""
_SHORT_S = 1.0
"""A stage that took less says little: of one second to the next machines differ from themselves."""
_HINTS = {
    OTHER_LENGTH: "bench.ignore_eos=false, where answers end as they want to",
    TOO_LATE: "bench.answer_s=... with more, or less load",
}
"""By cause of a failure."""


def summary(values: Iterable[float]) -> Summary | None:
    """None: there are no values."""
    ordered = sorted(values)
    if not ordered:
        return None
    return Summary(
        mean=math.fsum(ordered) / len(ordered),
        p50=percentile(ordered, 0.5),
        p90=percentile(ordered, 0.9),
        p99=percentile(ordered, 0.99),
        max=ordered[-1],
    )


def percentile(ordered: Sequence[float], part: float) -> float:
    """Between the two nearest values in proportion, as numpy's default does."""
    position = part * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def stage_result(
    name: str,
    outcomes: Sequence[Outcome],
    slo: SloOptions,
    concurrency: int | None = None,
    rate: float | None = None,
) -> StageResult:
    """What the clients saw of a stage; what the server says of it is added by others."""
    records = [record for outcome in outcomes for record in outcome.records]
    good = [record for record in records if not record.cause]
    duration_s = _duration_s(records)
    num_prompt = sum(record.num_prompt_tokens for record in good)
    num_output = sum(record.num_output_tokens for record in good)
    is_counted = all(record.is_counted for record in good)
    examples: dict[str, str] = {}
    for record in records:
        if record.cause:
            examples.setdefault(record.cause, record.message)
    return StageResult(
        name=name,
        concurrency=concurrency,
        rate=rate,
        duration_s=duration_s,
        num_requests=len(records),
        num_failed=len(records) - len(good),
        num_not_sent=sum(outcome.num_not_sent for outcome in outcomes),
        failures=dict(Counter(record.cause for record in records if record.cause)),
        examples=examples,
        num_prompt_tokens=num_prompt,
        num_output_tokens=num_output,
        tokens_counted_by="usage" if is_counted else "parts",
        output_tok_s=_per(num_output, duration_s),
        total_tok_s=_per(num_prompt + num_output, duration_s),
        req_s=_per(len(good), duration_s),
        goodput_req_s=_goodput(good, duration_s, slo),
        mean_in_flight=_per(math.fsum(it.end_s - it.start_s for it in records), duration_s),
        ttft_ms=summary(_without_none(map(ttft_ms, good))),
        tpot_ms=summary(_without_none(map(tpot_ms, good))),
        itl_ms=summary(gap * 1e3 for record in good for gap in array("f", record.gaps)),
        e2e_ms=summary((record.end_s - record.start_s) * 1e3 for record in good),
        client=client_use(outcomes),
    )


def ttft_ms(record: Record) -> float | None:
    return None if record.first_s is None else (record.first_s - record.start_s) * 1e3


def tpot_ms(record: Record) -> float | None:
    """None: the answer had fewer than two tokens, or came in one piece, which says nothing."""
    if record.first_s is None or record.last_s is None or record.num_output_tokens < 2:
        return None
    if record.last_s == record.first_s:
        return None
    return (record.last_s - record.first_s) * 1e3 / (record.num_output_tokens - 1)


def meets(record: Record, slo: SloOptions) -> bool:
    """Whether a request was within the limits; an answer of one token has no TPOT to exceed."""
    first, each = ttft_ms(record), tpot_ms(record)
    is_soon = slo.ttft_ms is None or (first is not None and first <= slo.ttft_ms)
    return is_soon and (slo.tpot_ms is None or each is None or each <= slo.tpot_ms)


def client_use(outcomes: Sequence[Outcome]) -> ClientUse:
    share = max((outcome.cpu_share for outcome in outcomes), default=0.0)
    lag_ms = summary(lag * 1e3 for outcome in outcomes for lag in outcome.lags_s)
    return ClientUse(
        num_processes=len(outcomes),
        cpu_share=share,
        lag_ms=lag_ms,
        is_bottleneck=share >= _BUSY_SHARE or (lag_ms is not None and lag_ms.p99 >= _LATE_MS),
    )


def skew(numbers: Sequence[int]) -> float | None:
    """The largest as a multiple of the mean; None: all are 0, or there are none."""
    total = sum(numbers)
    return max(numbers) * len(numbers) / total if total else None


def problems_of(stage: StageResult) -> list[str]:
    """Why a stage is not valid."""
    problems = []
    if stage.num_failed:
        causes = ", ".join(f"{cause} ({number})" for cause, number in stage.failures.items())
        of = f"{stage.num_failed} of {stage.num_requests} requests failed"
        problems.append(f"{stage.name}: {of}: {causes}")
    if stage.num_not_sent:
        problems.append(f"{stage.name}: {stage.num_not_sent} requests were not sent")
    if not stage.num_output_tokens:
        problems.append(f"{stage.name}: no tokens came")
    return problems


def warnings_of(stage: StageResult) -> list[str]:
    """What limits the worth of a stage's figures."""
    client, warnings = stage.client, []
    if client.is_bottleneck:
        lag_ms = client.lag_ms.p99 if client.lag_ms else 0.0
        took = f"{client.cpu_share:.0%} of a CPU, {lag_ms:.0f} ms late at p99"
        works = f"bench.clients={client.num_processes + 1}, or more free CPUs"
        if client.cpu_share < _IDLE_SHARE:
            works = "it waited for a CPU, more free CPUs help"
        warnings.append(f"{stage.name}: the client may be the bottleneck ({took}): {works}")
    if 0 < stage.duration_s < _SHORT_S:
        warnings.append(
            f"{stage.name}: measured for less than a second, which says little:"
            " bench.num_sessions=... with more"
        )
    if stage.tpot_ms is None and stage.num_output_tokens > stage.num_requests:
        warnings.append(
            f"{stage.name}: each answer came in one piece, which says nothing of the time per"
            " token: does a proxy hold answers back?"
        )
    if stage.tokens_counted_by == "parts":
        warnings.append(
            f"{stage.name}: the server does not count its tokens (usage): each part of an answer"
            " counts as one, each prompt as long as asked"
        )
    return warnings


def hints_on(stages: Iterable[StageResult]) -> list[str]:
    """What may help with requests that failed."""
    causes = {cause for stage in stages for cause in stage.failures}
    return [hint for cause, hint in _HINTS.items() if cause in causes]


def _goodput(good: Sequence[Record], duration_s: float, slo: SloOptions) -> float | None:
    if slo.ttft_ms is None and slo.tpot_ms is None:
        return None
    return _per(sum(meets(record, slo) for record in good), duration_s)


def _duration_s(records: Sequence[Record]) -> float:
    if not records:
        return 0.0
    return max(each.end_s for each in records) - min(each.start_s for each in records)


def _per(number: float, seconds: float) -> float:
    return number / seconds if seconds > 0 else 0.0


def _without_none(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
