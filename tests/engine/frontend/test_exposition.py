import asyncio

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from engine import metrics
from engine.config import Role
from engine.frontend.exposition import render
from engine.metrics import Metrics, MetricValue
from engine.protocol import Member, MetricsReport, Phase, ProcessState


def report(name: str, role: Role, rank: int | None, counted: Metrics) -> MetricsReport:
    return MetricsReport(name, 0, role, rank, counted.values(), age_s=0.5)


def member(rank: int, state: ProcessState, incarnation: int = 1) -> Member:
    return Member(
        name=f"engine-{rank}",
        role=Role.engine,
        rank=rank,
        incarnation=incarnation,
        node="head",
        pid=1,
        devices=[],
        state=state,
        phase=Phase.ready,
        since_s=0.0,
    )


def samples(*reports: MetricsReport, members: tuple[Member, ...] = ()) -> list[Sample]:
    text = asyncio.run(render("test", reports, members)).decode()
    return [each for family in text_string_to_metric_families(text) for each in family.samples]


def values(found: list[Sample], name: str, *by: str) -> dict[tuple[str, ...], float]:
    """Values of a metric by some of its labels."""
    return {
        tuple(each.labels[label] for label in by): each.value
        for each in found
        if each.name == metrics.PREFIX + name
    }


def test_nothing_reported_is_an_empty_page():
    assert asyncio.run(render("test", [], [])) == b""


def test_each_process_has_its_own_counters():
    reports = []
    for index in range(2):
        engine, front_end = Metrics(Role.engine), Metrics(Role.frontend)
        engine.add(metrics.PROMPT_TOKENS, 10 + index)
        front_end.add(metrics.HTTP_REQUESTS, 3 + index, ("/v1/models", "200", ""))
        reports.append(report(f"engine-{index}", Role.engine, index, engine))
        reports.append(report(f"frontend-{index}", Role.frontend, None, front_end))
    found = samples(*reports)
    assert values(found, "prompt_tokens_total", "model_name", "rank") == {
        ("test", "0"): 10,
        ("test", "1"): 11,
    }
    by = ("frontend", "route", "status")
    assert values(found, "http_requests_total", *by) == {
        ("frontend-0", "/v1/models", "200"): 3,
        ("frontend-1", "/v1/models", "200"): 4,
    }
    assert values(found, "report_age_seconds", "process")["engine-1",] == 0.5


def test_a_histogram_is_cumulative():
    counted = Metrics(Role.engine)
    for tokens in (1, 5, 5, 100_000):
        counted.observe(metrics.ITERATION_TOKENS, tokens)
    found = samples(report("engine-0", Role.engine, 0, counted))
    buckets = values(found, "iteration_tokens_total_bucket", "le")
    assert (buckets["1.0",], buckets["8.0",], buckets["16384.0",], buckets["+Inf",]) == (1, 3, 3, 4)
    assert values(found, "iteration_tokens_total_sum", "rank") == {("0",): 100_011}
    assert values(found, "iteration_tokens_total_count", "rank") == {("0",): 4}


def test_states_and_starts_come_from_membership():
    members = (
        member(0, ProcessState.ready, incarnation=2),
        member(1, ProcessState.suspect),
    )
    found = samples(members=members)
    states = values(found, "process_state", "rank", "state")
    assert {key for key, value in states.items() if value} == {("0", "ready"), ("1", "suspect")}
    assert len(states) == 2 * len(ProcessState)
    assert values(found, "process_starts_total", "process") == {
        ("engine-0",): 2,
        ("engine-1",): 1,
    }


def test_metrics_that_this_version_does_not_know_are_left_out():
    unknown = MetricsReport("engine-0", 0, Role.engine, 0, [MetricValue("new", (), 1.0)])
    assert {each.name for each in samples(unknown)} == {"flotilla:report_age_seconds"}


def test_label_values_are_escaped():
    counted = Metrics(Role.frontend)
    counted.add(metrics.HTTP_REQUESTS, 1, ('a"b\\c\n', "200", ""))
    found = samples(report("frontend-0", Role.frontend, None, counted))
    assert values(found, "http_requests_total", "route") == {('a"b\\c\n',): 1}


def test_many_processes_leave_turns_to_others():
    reports = [
        report(f"engine-{rank}", Role.engine, rank, Metrics(Role.engine)) for rank in range(100)
    ]
    num_turns = 0

    async def take_turns() -> None:
        nonlocal num_turns
        while True:
            num_turns += 1
            await asyncio.sleep(0)

    async def main() -> None:
        others = asyncio.create_task(take_turns())
        await render("test", reports, [])
        others.cancel()

    asyncio.run(main())
    num_families = len(metrics.METRICS) + len(metrics.DERIVED)
    assert num_turns >= num_families + len(reports) // 10
