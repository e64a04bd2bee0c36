"""Whether the second of two runs is worse: tolerance, spread, what only one has."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from launcher.bench.results import Environment
from launcher.compare.judge import Comparison, Verdict, compare_runs
from launcher.compare.runs import Run
from launcher.compare.table import comparison_lines
from launcher.sweep.rows import Outcome, Row
from launcher.sweep.variants import variants_of
from tests.launcher.sweep.sample_sweeps import ENVIRONMENT, grid, row, stage


def run_of(rows: Sequence[Row], environment: Environment = ENVIRONMENT) -> Run:
    return Run(Path("sweep.json"), True, "2026-11-24", environment, variants_of(rows))


def repeated(*speeds: float) -> Run:
    """One variant, measured at these speeds."""
    return run_of([row({}, [stage(4, speed=it)], repetition=i) for i, it in enumerate(speeds)])


def compared(first: Run, second: Run, *metrics: str, tolerance: float = 0.05) -> Comparison:
    return compare_runs(first, second, metrics or ("output_tok_s",), tolerance)


def verdict(
    first: Run, second: Run, metric: str = "output_tok_s", tolerance: float = 0.05
) -> Verdict:
    (difference,) = compared(first, second, metric, tolerance=tolerance).differences
    return difference.verdict


@pytest.mark.parametrize(
    ("speed", "expected"),
    [
        (1.0, Verdict.same),
        (0.96, Verdict.same),
        (0.94, Verdict.worse),
        (1.04, Verdict.same),
        (1.06, Verdict.better),
    ],
)
def test_without_repetitions_the_tolerance_decides(speed: float, expected: Verdict):
    result = compared(repeated(1.0), repeated(speed))
    assert [each.verdict for each in result.differences] == [expected]
    assert result.is_worse is (expected is Verdict.worse)
    assert result.differences[0].exceeds_spread is None
    assert any("the spread is not known" in note for note in result.notes)


def test_longer_times_are_worse():
    assert verdict(repeated(1.0), repeated(0.5), "ttft_ms.p50") is Verdict.worse
    assert verdict(repeated(1.0), repeated(2.0), "ttft_ms.p50") is Verdict.better
    assert verdict(repeated(1.0), repeated(0.5), "pss_mib") is Verdict.same


def test_the_tolerance_can_be_none_at_all():
    assert verdict(repeated(1.0), repeated(0.999), tolerance=0.0) is Verdict.worse
    assert verdict(repeated(1.0), repeated(1.0), tolerance=0.0) is Verdict.same


def test_a_difference_within_the_spread_is_unclear():
    result = compared(repeated(0.8, 1.0, 1.2), repeated(0.75, 0.85, 0.9))
    assert [each.verdict for each in result.differences] == [Verdict.unclear]
    assert result.differences[0].exceeds_spread is False
    assert not result.is_worse
    assert result.notes == []
    assert list(comparison_lines(result))[-2:] == [
        "unclear: 1 of 1 figure differs by more than 5%, but within the spread:"
        " bench.repeat=... with more tells more",
        "the second is not worse: no figure by more than 5% and beyond the spread",
    ]


def test_a_difference_beyond_tolerance_and_spread_is_one():
    result = compared(repeated(0.98, 1.0, 1.02), repeated(0.88, 0.9, 0.92))
    assert [each.verdict for each in result.differences] == [Verdict.worse]
    assert result.differences[0].exceeds_spread is True
    assert result.differences[0].ratio == pytest.approx(0.9)


def test_a_difference_beyond_the_spread_alone_is_none():
    assert verdict(repeated(0.999, 1.0, 1.001), repeated(0.98, 0.981, 0.982)) is Verdict.same


def test_the_spread_of_one_side_counts_too():
    assert verdict(repeated(0.7, 1.0, 1.3), repeated(0.8)) is Verdict.unclear
    assert verdict(repeated(0.7, 1.0, 1.3), repeated(0.97)) is Verdict.same
    assert verdict(repeated(0.98, 1.0, 1.02), repeated(0.8)) is Verdict.worse


def test_what_was_nothing_has_no_ratio():
    def goodput(value: float) -> Run:
        return run_of([row({}, [stage(4, goodput=value)])])

    (difference,) = compared(goodput(0.0), goodput(2.0), "goodput_req_s").differences
    assert (difference.ratio, difference.verdict) == (None, Verdict.better)
    assert verdict(goodput(2.0), goodput(0.0), "goodput_req_s") is Verdict.worse
    assert verdict(goodput(0.0), goodput(0.0), "goodput_req_s") is Verdict.same


def test_variants_are_matched_by_what_either_sweeps():
    first = run_of(grid({"dp": ["1", "2"]}, concurrencies=(4,)))
    common = ("action=bench", "model=tiny", "dp=2")
    second = run_of(
        [row({"frontend.count": n}, [stage(4)], common=common) for n in ("1", "2")]
        + [row({}, [stage(4)], common=common)]
    )
    result = compared(first, second)
    assert [each.variant for each in result.differences] == ["dp=2"]
    assert "only the first has dp=1" in result.notes
    assert "only the second has dp=2 frontend.count=1" in result.notes


def test_the_order_of_variants_does_not_matter():
    result = compared(
        run_of(grid({"dp": ["1", "2"]}, concurrencies=(4,))),
        run_of(grid({"dp": ["1", "2"]}, concurrencies=(4,))[::-1]),
    )
    assert [(each.variant, each.verdict) for each in result.differences] == [
        ("dp=1", Verdict.same),
        ("dp=2", Verdict.same),
    ]


def test_stages_that_one_has_alone_are_named():
    result = compared(
        run_of([row({}, [stage(1), stage(4)])]), run_of([row({}, [stage(4), stage(16)])])
    )
    assert [each.stage for each in result.differences] == ["concurrency 4"]
    assert "only the first has concurrency 1" in result.notes
    assert "only the second has concurrency 16" in result.notes


def test_what_is_no_longer_valid_is_worse():
    first = grid({"dp": ["1", "2"]}, concurrencies=(4,))
    second = [first[0], row({"dp": "2"}, outcome=Outcome.crashed, said="out of memory")]
    result = compared(run_of(first), run_of(second))
    assert result.no_longer_valid == ["dp=2: crashed: out of memory"]
    assert result.is_worse
    result = compared(run_of(second), run_of(first))
    assert not result.is_worse
    assert "only the second has valid results of dp=2" in result.notes


def test_repetitions_that_failed_are_told():
    first = grid({"dp": ["1"]}, concurrencies=(4,), num_repetitions=3)
    second = [*first[:2], row({"dp": "1"}, outcome=Outcome.timed_out, said="slow", repetition=2)]
    notes = compared(run_of(first), run_of(second)).notes
    assert "2 of 3 jobs of dp=1 are valid in the second" in notes


def test_figures_that_one_did_not_measure_are_named():
    with_slo = run_of([row({}, [stage(4, goodput=1.0)])])
    result = compared(repeated(1.0), with_slo, "goodput_req_s", "output_tok_s")
    assert [each.metric for each in result.differences] == ["output_tok_s"]
    assert "goodput_req_s is measured by the second alone" in result.notes


def test_other_machines_code_and_overrides_are_told():
    other = msgspec.structs.replace(
        ENVIRONMENT,
        cpu="another CPU",
        git_commit="aaaaaaaaaaaaaaaaaaaa-dirty",
        versions={**ENVIRONMENT.versions, "torch": "3.0"},
    )
    common = ("action=bench", "bench=quick", "model=dummy", "name=b", "bench.dir=b")
    notes = compared(repeated(1.0), run_of([row({}, [stage(4)], common=common)], other)).notes
    assert f"another machine, CPU: {ENVIRONMENT.cpu}, then another CPU" in notes
    assert "another commit: 2ddc0acdb922, then aaaaaaaaaaaa-dirty" in notes
    assert "another version of torch: 2.13.0+cpu, then 3.0" in notes
    assert "another model: tiny, then dummy" in notes
    assert not any("name" in note or "bench.dir" in note for note in notes)


def test_figures_of_a_client_that_may_be_the_bottleneck_are_noted():
    bound = stage(4)
    bound = msgspec.structs.replace(
        bound, client=msgspec.structs.replace(bound.client, is_bottleneck=True)
    )
    notes = compared(repeated(1.0), run_of([row({}, [stage(4), bound])])).notes
    assert "the client may be the bottleneck in 1 of 2 stages of the second" in notes
    assert not any("the first" in note and "client" in note for note in notes)


def test_memory_that_is_not_known_of_all_processes_is_no_figure():
    one = stage(4)
    hidden = msgspec.structs.replace(one.processes[0], pss_bytes=0)
    one = msgspec.structs.replace(one, processes=[hidden, *one.processes[1:]])
    result = compared(repeated(1.0), run_of([row({}, [one])]), "pss_mib", "output_tok_s")
    assert [each.metric for each in result.differences] == ["output_tok_s"]
    assert "pss_mib is measured by the first alone" in result.notes
