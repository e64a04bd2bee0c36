"""Rows of a sweep put together: repetitions, stages, the best variant, the Pareto front."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.bench.results import StageResult
from launcher.sweep.best import best_point, serving_command
from launcher.sweep.metrics import METRICS
from launcher.sweep.pareto import pareto_front
from launcher.sweep.rows import Outcome, Row, decode, encode
from launcher.sweep.variants import Point, variants_of
from tests.launcher.sweep.sample_sweeps import grid, row, stage, sweep

OUTPUT = METRICS["output_tok_s"]


def points_of(rows: list[Row]) -> list[Point]:
    return [point for variant in variants_of(rows) for point in variant.points()]


def test_repetitions_are_one_variant_with_a_median_and_a_range():
    rows = [
        row({"dp": "2"}, [stage(4, speed=speed)], repetition=i) for i, speed in enumerate((1, 3, 2))
    ]
    (variant,) = variants_of(rows)
    (point,) = variant.points()
    spread = point.spread(OUTPUT)
    assert spread is not None
    one = OUTPUT.of(stage(4))
    assert one is not None
    assert (spread.median, spread.low, spread.high) == pytest.approx((2 * one, one, 3 * one))
    assert spread.num == 3


def test_what_is_not_valid_is_not_measured():
    rows = [
        row({"dp": "2"}, [stage(4)]),
        row(
            {"dp": "2"}, [stage(4, speed=9)], outcome=Outcome.invalid, said="1 failed", repetition=1
        ),
        row({"dp": "2"}, outcome=Outcome.crashed, said="killed", repetition=2),
    ]
    (point,) = points_of(rows)
    assert point.median(OUTPUT) == OUTPUT.of(stage(4))


def test_each_stage_is_a_point_and_equal_names_are_told_apart():
    points = points_of([row({"dp": "1"}, [stage(1), stage(4), stage(4, speed=2)])])
    assert [point.stage for point in points] == [
        "concurrency 1",
        "concurrency 4",
        "concurrency 4 (2)",
    ]


def test_without_an_slo_most_output_is_best():
    best = best_point(points_of(grid({"dp": ["1", "2"], "frontend.count": ["1", "2"]})))
    assert best is not None
    assert (best.point.variant.number, best.point.stage) == (4, "concurrency 16")
    assert "no SLO is set" in best.why
    assert any("bench.slo.ttft_ms" in hint for hint in best.hints)
    assert best.command == "python -m launcher model=tiny dp=2 frontend.count=2"


def test_with_an_slo_most_goodput_is_best():
    rows = grid({"dp": ["1", "2"]}, has_slo=True, num_repetitions=3)
    best = best_point(points_of(rows))
    assert best is not None
    assert (best.metric.key, best.point.stage) == ("goodput_req_s", "concurrency 1")
    assert "of the requests" in best.why
    assert best.num_rivals == 0


def test_where_nothing_meets_the_slo_it_is_said():
    best = best_point(points_of([row({"dp": "1"}, [stage(4, goodput=0.0)])]))
    assert best is not None
    assert best.metric is OUTPUT
    assert best.why.startswith("no request was within the SLO")


def test_variants_within_the_spread_are_counted():
    def repeated(dp: str, *speeds: float) -> list[Row]:
        stages: list[StageResult] = [stage(4, speed=speed) for speed in speeds]
        return [row({"dp": dp}, [each], repetition=i) for i, each in enumerate(stages)]

    best = best_point(
        points_of([*repeated("1", 1, 1.2), *repeated("2", 1.1, 1.3), *repeated("4", 0.5, 0.6)])
    )
    assert best is not None
    assert best.point.variant.swept == {"dp": "2"}
    assert best.num_rivals == 1
    assert "1 other variant overlap" in best.certainty


def test_there_is_no_best_of_nothing():
    assert best_point(points_of([row({"dp": "1"}, outcome=Outcome.crashed, said="killed")])) is None


@pytest.mark.parametrize(
    ("overrides", "command"),
    [
        (["action=bench", "bench=quick", "bench.repeat=3", "dp=2"], "python -m launcher dp=2"),
        (
            ["action=bench", "model=path", "model.path=a b"],
            "python -m launcher model=path 'model.path=a b'",
        ),
        (
            ["action=bench", "+ci=mp_head_only", "dp=2"],
            "python -m launcher action=serve +ci=mp_head_only dp=2",
        ),
        (["action=bench", "bench.url=http://127.0.0.1:8000"], None),
        (["action=bench", "hydra.verbose=true", "backend=ray"], "python -m launcher backend=ray"),
    ],
)
def test_the_command_line_that_serves_it(overrides: list[str], command: str | None):
    assert serving_command(overrides) == command


def test_nothing_beats_the_front():
    assert pareto_front([(1, 5), (2, 4), (2, 6), (3, 6), (0.5, 1), (1, 5)]) == [4, 0, 5, 2]
    assert pareto_front([]) == []


places = st.lists(
    st.tuples(st.integers(0, 6).map(float), st.integers(0, 6).map(float)), max_size=20
)


@given(places)
def test_the_front_is_what_no_other_dominates(points: list[tuple[float, float]]):
    def is_beaten(point: tuple[float, float]) -> bool:
        return any(x <= point[0] and y >= point[1] and (x, y) != point for x, y in points)

    front = pareto_front(points)
    assert sorted(front) == [i for i, point in enumerate(points) if not is_beaten(point)]
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


def test_the_form_on_disk_comes_back_the_same():
    whole = sweep(grid({"dp": ["1", "2"]}))
    assert decode(encode(whole)) == whole
