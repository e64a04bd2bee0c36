"""How torch's attention groups tiles: slices of the rows, padding and scratch memory bounded."""

from hypothesis import given
from hypothesis import strategies as st

from engine.model.attention import MAX_GROUP_SCORES, group_tiles
from engine.model.batch import Tile


@st.composite
def sorted_tiles(draw: st.DrawFn) -> list[Tile]:
    """Tiles as a layout has them: in order of length and context, row after row."""
    sizes = draw(st.lists(st.tuples(st.integers(1, 128), st.integers(0, 3000)), min_size=1))
    tiles, row = [], 0
    for length, start in sorted(sizes):
        tiles.append(Tile(0, row, start, length))
        row += length
    return tiles


@given(sorted_tiles())
def test_groups_are_slices_of_the_rows(tiles):
    groups = group_tiles(tiles)
    assert [tile for group in groups for tile in group] == tiles
    assert all(tile.length == group[0].length for group in groups for tile in group)


@given(sorted_tiles())
def test_padding_and_scratch_memory_are_bounded(tiles):
    for group in group_tiles(tiles):
        longest = max(tile.context for tile in group)
        assert longest <= min(tile.context for tile in group) * 1.25 + 64
        if len(group) > 1:
            assert len(group) * group[0].length * longest <= MAX_GROUP_SCORES
