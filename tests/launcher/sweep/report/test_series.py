"""The lines of plots: which points differ in one key alone."""

from collections.abc import Sequence

from launcher.sweep.report.series import NOT_SET, Grid
from launcher.sweep.rows import Row
from launcher.sweep.variants import variants_of
from tests.launcher.sweep.sample_sweeps import grid, row, stage


def grid_of(rows: Sequence[Row]) -> Grid:
    return Grid([point for variant in variants_of(rows) for point in variant.points()])


def test_every_swept_key_and_the_load_are_axes():
    found = grid_of(grid({"dp": ["1", "2"], "frontend.count": ["1", "2"]}, concurrencies=(1, 16)))
    assert [axis.key for axis in found.axes] == ["dp", "frontend.count", "concurrency"]
    lines = found.series(found.axes[0])
    assert [line.name for line in lines] == [
        "frontend.count=1, concurrency 1",
        "frontend.count=1, concurrency 16",
        "frontend.count=2, concurrency 1",
        "frontend.count=2, concurrency 16",
    ]
    assert [[x for x, _ in line.points] for line in lines] == [[1.0, 2.0]] * 4


def test_numbers_are_ordered_as_numbers():
    (axis,) = grid_of(grid({"dp": ["16", "2", "4"]}, concurrencies=(4,))).axes
    assert (axis.values, axis.positions) == (("2", "4", "16"), (2, 4, 16))
    assert axis.is_logarithmic


def test_other_values_are_categories_in_the_order_typed():
    values = ["smollm2_135m", "tiny", "nan", "4"]
    (axis,) = grid_of(grid({"model": values}, concurrencies=(4,))).axes
    assert (axis.values, axis.positions) == (tuple(values), (0, 1, 2, 3))
    assert not axis.is_logarithmic
    (axis,) = grid_of(grid({"x": ["nan", "4"]}, concurrencies=(4,))).axes
    assert axis.numbers is None


def test_zero_has_no_place_on_a_logarithmic_axis():
    (axis,) = grid_of(grid({"think_s": ["0", "100"]}, concurrencies=(4,))).axes
    assert not axis.is_logarithmic


def test_a_key_that_not_all_set_has_a_place_for_the_others():
    found = grid_of([row({}, [stage(4)]), row({"dp": "2"}, [stage(4)])])
    assert [axis.values for axis in found.axes] == [(NOT_SET, "2")]
    assert len(found.series(found.axes[0])) == 1


def test_a_swept_load_is_shown_as_the_load():
    rows = [row({"bench.concurrency": f"[{number}]"}, [stage(number)]) for number in (4, 1)]
    found = grid_of(rows)
    assert [(axis.key, axis.values) for axis in found.axes] == [("concurrency", ("1", "4"))]


def test_stages_with_the_same_load_are_categories():
    found = grid_of([row({}, [stage(4), stage(4)])])
    assert [axis.values for axis in found.axes] == [("concurrency 4", "concurrency 4 (2)")]


def test_one_point_has_no_axis():
    assert grid_of([row({"dp": "1"}, [stage(4)])]).axes == []
