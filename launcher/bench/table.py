"""The results of a benchmark as tables."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table

from launcher.bench.results import Results, StageResult, Summary

_MIB = 2**20


def tables(results: Results) -> Iterator[Table]:
    """The figures of every stage; the times of every stage; what the processes took in the last."""
    if not results.stages:
        return
    yield _throughput(results.name, results.stages)
    yield _times(results.stages)
    busiest = max(results.stages, key=lambda stage: stage.output_tok_s)
    if busiest.processes:
        yield _processes(busiest)


def _throughput(title: str, stages: Sequence[StageResult]) -> Table:
    table = _table(title, "stage")
    has_unsent = any(stage.num_not_sent for stage in stages)
    for heading in (
        "requests",
        "failed",
        *(["not sent"] if has_unsent else []),
        "in flight",
        "out tok/s",
        "tok/s",
        "req/s",
        "goodput",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("cached", "rank tokens", "skew"):
        table.add_column(heading, justify="right", no_wrap=True)
    for stage in stages:
        hits, goodput, skew = stage.prefix_hit_rate, stage.goodput_req_s, stage.rank_skew
        in_flight = stage.mean_in_flight
        table.add_row(
            stage.name,
            str(stage.num_requests),
            str(stage.num_failed),
            *([str(stage.num_not_sent)] if has_unsent else []),
            "" if in_flight is None else f"{in_flight:.1f}",
            f"{stage.output_tok_s:.1f}",
            f"{stage.total_tok_s:.1f}",
            f"{stage.req_s:.2f}",
            "" if goodput is None else f"{goodput:.2f}",
            "" if hits is None else f"{hits:.0%}",
            _by_rank(stage),
            "" if skew is None else f"{skew:.2f}",
        )
    return table


def _by_rank(stage: StageResult) -> str:
    """Of many ranks the fewest and the most."""
    numbers = [each.num_output_tokens for each in stage.ranks]
    if len(numbers) > 4:
        return f"{min(numbers)} to {max(numbers)}"
    return " ".join(map(str, numbers))


def _times(stages: Sequence[StageResult]) -> Table:
    table = _table("milliseconds", "stage")
    table.add_column("", no_wrap=True)
    for heading in ("mean", "p50", "p90", "p99"):
        table.add_column(heading, justify="right", no_wrap=True)
    for stage in stages:
        name = stage.name
        for what, times in _kinds(stage):
            if times is not None:
                values = (times.mean, times.p50, times.p90, times.p99)
                table.add_row(name, what, *(f"{value:.1f}" for value in values))
                name = ""
    return table


def _kinds(stage: StageResult) -> tuple[tuple[str, Summary | None], ...]:
    return (
        ("TTFT", stage.ttft_ms),
        ("TPOT", stage.tpot_ms),
        ("inter-token", stage.itl_ms),
        ("end to end", stage.e2e_ms),
    )


def _processes(stage: StageResult) -> Table:
    table = _table(f"processes, {stage.name}", "process")
    for heading in ("CPU s", "CPU share", "PSS MiB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in stage.processes:
        pss = f"{each.pss_bytes / _MIB:.0f}" if each.pss_bytes else ""
        table.add_row(each.name, f"{each.cpu_s:.1f}", f"{each.cpu_share:.0%}", pss)
    total = sum(each.pss_bytes for each in stage.processes)
    cpu_s = sum(each.cpu_s for each in stage.processes)
    share = sum(each.cpu_share for each in stage.processes)
    table.add_row("all", f"{cpu_s:.1f}", f"{share:.0%}", f"{total / _MIB:.0f}")
    client = stage.client
    name = "client" if client.num_processes == 1 else f"busiest of {client.num_processes} clients"
    table.add_row(name, "", f"{client.cpu_share:.0%}", "")
    return table


def _table(title: str, first: str) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="", box=box.SIMPLE, padding=(0, 1, 0, 0)
    )
    table.add_column(first, no_wrap=True)
    return table
