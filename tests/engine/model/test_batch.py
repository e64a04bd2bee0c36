"""How chunks are laid out: every token once, groups that are slices, bounded padding."""

from hypothesis import given
from hypothesis import strategies as st

from engine.model.batch import MAX_GROUP_SCORES, MAX_TILE_TOKENS, lay_out
from engine.model.runner import Chunk
from engine.sampling import SamplingParams

BLOCK = 4
GREEDY = SamplingParams(1, temperature=0.0)

sizes = st.lists(
    st.tuples(st.integers(1, 400), st.integers(0, 3000), st.booleans()), min_size=1, max_size=12
)


def make_chunks(described: list[tuple[int, int, bool]]) -> list[Chunk]:
    """Chunks with tokens and blocks that tell where they belong."""
    chunks, next_block = [], 1
    for index, (length, start, wanted) in enumerate(described):
        num_blocks = -(-(start + length) // BLOCK)
        blocks = list(range(next_block, next_block + num_blocks))
        next_block += num_blocks
        tokens = [index * 100_000 + start + offset for offset in range(length)]
        chunks.append(Chunk(tokens, start, blocks, GREEDY if wanted else None))
    return chunks


@given(sizes)
def test_every_token_has_its_row_position_and_slot(described):
    chunks = make_chunks(described)
    layout = lay_out(chunks, BLOCK)
    assert sorted(layout.token_ids) == sorted(token for c in chunks for token in c.token_ids)
    for token, position, slot in zip(layout.token_ids, layout.positions, layout.slots, strict=True):
        chunk = chunks[token // 100_000]
        assert position == token % 100_000
        assert slot == chunk.block_ids[position // BLOCK] * BLOCK + position % BLOCK


@given(sizes)
def test_sampled_rows_are_the_last_tokens_of_the_chunks_that_want_one(described):
    chunks = make_chunks(described)
    layout = lay_out(chunks, BLOCK)
    wanted = [chunk.token_ids[-1] for chunk in chunks if chunk.sampling is not None]
    assert [int(layout.token_ids[row]) for row in layout.sampled_rows] == wanted


@given(sizes)
def test_groups_cover_the_rows_in_order_and_see_their_own_blocks(described):
    chunks = make_chunks(described)
    layout = lay_out(chunks, BLOCK)
    row = 0
    for group in layout.groups:
        assert group.begin == row
        for tile in range(group.num_tiles):
            first = int(layout.token_ids[row])
            chunk = chunks[first // 100_000]
            assert group.starts[tile] == first % 100_000
            context = first % 100_000 + group.tile_tokens
            num_blocks = -(-context // BLOCK)
            assert list(group.block_tables[tile][:num_blocks]) == chunk.block_ids[:num_blocks]
            row += group.tile_tokens
    assert row == len(layout.token_ids)


@given(sizes)
def test_padding_and_scratch_memory_are_bounded(described):
    for group in lay_out(make_chunks(described), BLOCK).groups:
        longest = group.block_tables.shape[1] * BLOCK
        shortest = int(min(group.starts)) + group.tile_tokens
        assert longest <= shortest * 1.25 + 64 + BLOCK
        assert group.tile_tokens <= MAX_TILE_TOKENS
        if group.num_tiles > 1:
            scores = group.num_tiles * group.tile_tokens * (longest - BLOCK)
            assert scores <= MAX_GROUP_SCORES
