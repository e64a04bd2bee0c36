"""Sweeps as they would come of jobs, made up."""

import itertools
from collections.abc import Mapping, Sequence

from launcher.bench.results import (
    ClientUse,
    Environment,
    ProcessUse,
    RankTokens,
    Results,
    StageResult,
    StartUp,
    Summary,
)
from launcher.sweep.rows import Outcome, Row, Sweep

ENVIRONMENT = Environment(
    versions={"flotilla": "0.1.0", "python": "3.11.7", "kernel": "6.18.44", "torch": "2.13.0+cpu"},
    cpu="AMD EPYC 9575F 64-Core Processor",
    num_cpus=16,
    memory_bytes=128 * 2**30,
    gpus=[],
    git_commit="2ddc0acdb922f8b16da07d801dcfcaa25344be2c",
)
NO_SLO = {"ttft_ms": None, "tpot_ms": None}


def summary(p50: float) -> Summary:
    return Summary(mean=1.04 * p50, p50=p50, p90=1.3 * p50, p99=1.9 * p50, max=2.4 * p50)


def stage(
    concurrency: int = 4,
    *,
    speed: float = 1.0,
    num_ranks: int = 2,
    goodput: float | None = None,
    name: str | None = None,
) -> StageResult:
    """Rates that saturate and times that grow with the concurrency, all `speed` times as fast."""
    output_tok_s = speed * 900 * concurrency / (concurrency + 6 / num_ranks)
    tpot_ms = 1000 * concurrency / output_tok_s
    ttft_ms, e2e_ms = 4 * tpot_ms, 68 * tpot_ms
    share = [1 + 0.1 * rank for rank in range(num_ranks)]
    tokens = [round(64_000 * each / sum(share)) for each in share]
    return StageResult(
        name=name or f"concurrency {concurrency}",
        concurrency=concurrency,
        duration_s=64_000 / output_tok_s,
        num_requests=1000,
        num_failed=0,
        num_not_sent=0,
        failures={},
        examples={},
        num_prompt_tokens=128_000,
        num_output_tokens=64_000,
        tokens_counted_by="usage",
        output_tok_s=output_tok_s,
        total_tok_s=3 * output_tok_s,
        req_s=output_tok_s / 64,
        goodput_req_s=goodput,
        ttft_ms=summary(ttft_ms),
        tpot_ms=summary(tpot_ms),
        itl_ms=summary(0.98 * tpot_ms),
        e2e_ms=summary(e2e_ms),
        prefix_hit_rate=0.25,
        ranks=[
            RankTokens(rank=rank, num_prompt_tokens=2 * number, num_output_tokens=number)
            for rank, number in enumerate(tokens)
        ],
        rank_skew=max(tokens) * num_ranks / sum(tokens),
        processes=[
            ProcessUse(name=name, pid=100, cpu_s=30.0, cpu_share=0.8, pss_bytes=400 * 2**20)
            for name in ("frontend-0", *(f"engine-{rank}" for rank in range(num_ranks)))
        ],
        client=ClientUse(num_processes=1, cpu_share=0.2, lag_ms=summary(0.3), is_bottleneck=False),
    )


def results(
    stages: Sequence[StageResult],
    overrides: Sequence[str] = (),
    *,
    problems: Sequence[str] = (),
    warnings: Sequence[str] = (),
    environment: Environment = ENVIRONMENT,
) -> Results:
    return Results(
        name="flotilla",
        created="2026-11-24T08:09:34+00:00",
        is_valid=not problems,
        problems=list(problems),
        warnings=list(warnings),
        url="http://127.0.0.1:33243",
        model="tiny",
        overrides=list(overrides),
        config={},
        plan_digest="f26fc753c7e840128ea0e1e3e5087af257eb4ce4c179e52cacd11150673bfcff",
        environment=environment,
        start_up=StartUp(ready_s=2.5, phases_s={"rank 0": {"importing": 1.5}}),
        stages=list(stages),
    )


def row(
    swept: Mapping[str, str],
    stages: Sequence[StageResult] = (),
    *,
    outcome: Outcome = Outcome.valid,
    said: str = "",
    repetition: int = 0,
    common: Sequence[str] = ("action=bench", "bench=quick", "model=tiny"),
    warnings: Sequence[str] = (),
) -> Row:
    """A job; without stages one that has no results."""
    overrides = [*common, *(f"{key}={value}" for key, value in swept.items())]
    problems = [said] if outcome is Outcome.invalid else []
    exit_codes = {Outcome.valid: 0, Outcome.refused: 2, Outcome.crashed: -9, Outcome.not_run: None}
    name = ",".join(f"{key}={value}" for key, value in swept.items()) or "job"
    return Row(
        overrides=overrides,
        swept=dict(swept),
        repetition=repetition,
        outcome=outcome,
        exit_code=exit_codes.get(outcome, 1),
        seconds=12.5,
        said=said,
        directory=f"{name}/{repetition}",
        results=results(stages, overrides, problems=problems, warnings=warnings)
        if stages
        else None,
    )


def sweep(
    rows: Sequence[Row],
    slo: Mapping[str, float | None] | None = None,
    environment: Environment = ENVIRONMENT,
) -> Sweep:
    return Sweep(
        created="2026-11-24T08:09:30+00:00",
        overrides=["action=bench", "bench=quick", "model=tiny", "dp=1,2", "frontend.count=1,2"],
        environment=environment,
        slo=dict(slo or NO_SLO),
        rows=list(rows),
    )


def grid(
    keys: Mapping[str, Sequence[str]],
    *,
    concurrencies: Sequence[int] = (1, 4, 16),
    num_repetitions: int = 1,
    has_slo: bool = False,
    speed: float = 1.0,
) -> list[Row]:
    """A row for each choice and repetition; what is later in its list is faster."""
    rows = []
    for choice in itertools.product(*keys.values()):
        swept = dict(zip(keys, choice, strict=True))
        places = [list(values).index(swept[key]) for key, values in keys.items()]
        for repetition in range(num_repetitions):
            factor = speed * (1 + 0.3 * sum(places)) * (1 + 0.04 * (repetition % 3))
            stages = [
                stage(
                    concurrency,
                    speed=factor,
                    num_ranks=1 + places[0] % 4,
                    goodput=5 * factor - concurrency / 8 if has_slo else None,
                )
                for concurrency in concurrencies
            ]
            rows.append(row(swept, stages, repetition=repetition))
    return rows
