"""The strategies, in numbers alone."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.strategies import fill, span, spread, strict

ROOMS = st.lists(st.integers(0, 9), max_size=8)
NUMBERS = st.integers(0, 30)


@pytest.mark.parametrize(
    ("num_ranks", "rooms", "counts"),
    [
        (0, [], []),
        (1, [], None),
        (3, [2, 4, 8], [0, 3, 0]),  # the tightest that takes all
        (5, [2, 4, 8], [0, 0, 5]),
        (9, [2, 4, 8], [1, 0, 8]),
        (14, [2, 4, 8], [2, 4, 8]),
        (15, [2, 4, 8], None),
        (4, [4, 4, 4], [4, 0, 0]),  # ties go to the earlier
    ],
)
def test_fill_uses_few_nodes_and_leaves_large_rooms(num_ranks, rooms, counts):
    assert fill(num_ranks, rooms) == counts


def test_fill_takes_the_head_first():
    assert fill(5, [2, 4, 8], head_first=True) == [2, 3, 0]
    assert fill(1, [2, 1], head_first=True) == [1, 0]


@pytest.mark.parametrize(
    ("num_ranks", "rooms", "each", "counts"),
    [
        (0, [], None, []),
        (6, [4, 4, 4], None, [3, 3, 0]),
        (8, [4, 4, 4], None, [4, 4, 0]),
        (7, [4, 4, 4], None, None),
        (3, [1, 1, 1], None, [1, 1, 1]),
        (5, [4, 2], 3, None),
        (4, [8, 2, 2], 2, [0, 2, 2]),
        (4, [8, 2, 1], 2, [2, 2, 0]),
        (1, [], None, None),
    ],
)
def test_strict_puts_the_same_number_on_every_node_used(num_ranks, rooms, each, counts):
    assert strict(num_ranks, rooms, each=each) == counts


def test_strict_takes_the_head_first():
    assert strict(2, [8, 2, 2], head_first=True) == [2, 0, 0]


@pytest.mark.parametrize(
    ("num_ranks", "rooms", "counts"),
    [
        (0, [], []),
        (3, [4, 4, 4], [1, 1, 1]),
        (4, [4, 4, 8], [1, 1, 2]),
        (7, [1, 4, 4], [1, 3, 3]),
        (9, [1, 4, 4], [1, 4, 4]),
        (10, [1, 4, 4], None),
    ],
)
def test_spread_is_as_even_as_the_rooms_allow(num_ranks, rooms, counts):
    assert spread(num_ranks, rooms) == counts


@pytest.mark.parametrize(
    ("num_ranks", "num_workers", "slots", "ranks"),
    [
        (1, 8, [4, 4], [(0,) * 4 + (1,) * 4]),
        (2, 4, [3, 6, 3], [(0, 0, 0, 2), (1, 1, 1, 1)]),
        (3, 4, [3, 6, 3], [(0, 0, 0, 2), (1, 1, 1, 1), (1, 1, 2, 2)]),
        (1, 2, [1, 0, 4], [(2, 2)]),
        (4, 4, [3, 6, 3], None),
    ],
)
def test_span_crosses_nodes_where_it_must(num_ranks, num_workers, slots, ranks):
    assert span(num_ranks, num_workers, slots) == ranks


@given(NUMBERS, ROOMS, st.booleans())
def test_fill_and_spread_fit_exactly_where_the_rooms_add_up(num_ranks, rooms, head_first):
    for counts in (
        fill(num_ranks, rooms, head_first=head_first and bool(rooms)),
        spread(num_ranks, rooms),
    ):
        assert (counts is not None) == (sum(rooms) >= num_ranks)
        if counts is not None:
            assert sum(counts) == num_ranks
            assert all(count <= room for count, room in zip(counts, rooms, strict=True))


@given(NUMBERS, ROOMS)
def test_fill_uses_no_node_more_than_it_must(num_ranks, rooms):
    counts = fill(num_ranks, rooms)
    if counts is not None:
        used = sum(map(bool, counts))
        largest = sorted(rooms, reverse=True)
        assert sum(largest[:used]) >= num_ranks
        assert used == 0 or sum(largest[: used - 1]) < num_ranks


@given(NUMBERS, ROOMS)
def test_spread_leaves_no_node_two_ahead_of_one_with_room(num_ranks, rooms):
    counts = spread(num_ranks, rooms)
    if counts is not None:
        with_room = [count for count, room in zip(counts, rooms, strict=True) if count < room]
        assert not with_room or max(counts) - min(with_room) <= 1


@given(NUMBERS, ROOMS, st.none() | st.integers(1, 9))
def test_strict_fits_where_any_equal_parts_do(num_ranks, rooms, each):
    counts = strict(num_ranks, rooms, each=each)
    parts = [each] if each else range(1, num_ranks + 1)
    possible = num_ranks == 0 or any(
        num_ranks % part == 0 and sum(room >= part for room in rooms) >= num_ranks // part
        for part in parts
    )
    assert (counts is not None) == possible
    if counts is not None:
        assert sum(counts) == num_ranks
        assert len({count for count in counts if count}) <= 1


@given(st.integers(0, 6), st.integers(1, 8), ROOMS)
def test_span_gives_every_worker_a_slot(num_ranks, num_workers, slots):
    ranks = span(num_ranks, num_workers, slots)
    assert (ranks is not None) == (sum(slots) >= num_ranks * num_workers)
    if ranks is not None:
        assert [len(workers) for workers in ranks] == [num_workers] * num_ranks
        taken = Counter(node for workers in ranks for node in workers)
        assert all(count <= slots[node] for node, count in taken.items())
        whole = sum(len(set(workers)) == 1 for workers in ranks)
        assert whole >= min(num_ranks, sum(slot // num_workers for slot in slots))
