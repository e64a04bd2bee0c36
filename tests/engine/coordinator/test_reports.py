"""The boards, with a clock that the tests turn."""

from engine.config import Role
from engine.coordinator.reports import LoadBoard, MetricsBoard
from engine.metrics import MetricValue
from engine.protocol import Loads, MetricsReport, RankLoad


def load(rank: int = 0, waiting_tokens: int = 0, age_s: float = 0.0) -> RankLoad:
    return RankLoad(rank, 1, 2, 3, waiting_tokens, 5, 0.25, 0.01, age_s)


def report(name: str = "engine-0", value: float = 1.0, age_s: float = 0.0) -> MetricsReport:
    return MetricsReport(name, 1, Role.engine, 0, [MetricValue("steps", (), value)], age_s)


def test_a_snapshot_has_the_last_load_of_each_rank_with_its_age():
    board = LoadBoard()
    assert board.snapshot(7, 1.0) == Loads(7, [])
    board.take("engine-0", load(0, 10), 1.0)
    board.take("engine-1", load(1, 20), 2.0)
    board.take("engine-0", load(0, 30), 3.0)
    assert board.snapshot(8, 5.0) == Loads(8, [load(0, 30, age_s=2.0), load(1, 20, age_s=3.0)])


def test_a_load_that_is_confirmed_is_as_young_as_that_and_is_no_change():
    board = LoadBoard()
    board.take("engine-0", load(), 1.0)
    board.snapshot(7, 1.0)
    board.confirm("engine-0", 4.0)
    board.confirm("engine-0", 3.0)  # says less
    board.confirm("engine-1", 4.0)  # has reported nothing
    assert not board.has_changed
    assert board.snapshot(7, 5.0).ranks == [load(age_s=1.0)]


def test_the_board_has_changed_from_a_report_or_a_loss_to_the_next_snapshot():
    board = LoadBoard()
    assert not board.has_changed
    board.take("engine-0", load(), 1.0)
    assert board.has_changed
    board.snapshot(7, 1.0)
    assert not board.has_changed
    board.forget("engine-1")
    assert not board.has_changed
    board.forget("engine-0")
    assert board.has_changed
    assert board.snapshot(8, 2.0) == Loads(8, [])


def test_the_last_metrics_of_each_process_are_shown_with_their_age_until_it_is_gone():
    board = MetricsBoard()
    board.take(report(value=1.0), 1.0)
    board.take(report("engine-1", 2.0), 1.5)
    board.take(report(value=3.0), 2.0)
    assert board.snapshot(2.5).processes == [
        report(value=3.0, age_s=0.5),
        report("engine-1", 2.0, 1.0),
    ]
    board.forget("engine-1")
    board.forget("engine-2")
    assert board.snapshot(2.5).processes == [report(value=3.0, age_s=0.5)]
