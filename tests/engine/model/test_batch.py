"""How chunks are laid out: every token once, in tiles of one sequence each."""

from hypothesis import given
from hypothesis import strategies as st

from engine.model.batch import lay_out
from engine.model.runner import Chunk, PromptScoring
from engine.sampling import SamplingParams

BLOCK = 4
GREEDY = SamplingParams(1, temperature=0.0)

sizes = st.lists(
    st.tuples(st.integers(1, 400), st.integers(0, 3000), st.booleans()), min_size=1, max_size=12
)


def tile_tokens(start: int) -> int:
    return max(1, 128 - start // 20)


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
    layout = lay_out(chunks, BLOCK, tile_tokens)
    assert sorted(layout.token_ids) == sorted(token for c in chunks for token in c.token_ids)
    for token, position, slot in zip(layout.token_ids, layout.positions, layout.slots, strict=True):
        chunk = chunks[token // 100_000]
        assert position == token % 100_000
        assert slot == chunk.block_ids[position // BLOCK] * BLOCK + position % BLOCK


@given(sizes)
def test_sampled_rows_are_the_last_tokens_of_the_chunks_that_want_one(described):
    chunks = make_chunks(described)
    layout = lay_out(chunks, BLOCK, tile_tokens)
    wanted = [chunk.token_ids[-1] for chunk in chunks if chunk.sampling is not None]
    assert [int(layout.token_ids[row]) for row in layout.sampled_rows] == wanted


@given(sizes, st.data())
def test_scored_rows_are_consecutive_tokens_of_the_chunks_that_have_some(described, data):
    chunks = make_chunks(described)
    wanted: list[int] = []
    for chunk in chunks:
        if data.draw(st.booleans()):
            begin = data.draw(st.integers(0, len(chunk.token_ids) - 1))
            end = data.draw(st.integers(begin + 1, len(chunk.token_ids)))
            chunk.scoring = PromptScoring(begin, [0] * (end - begin), num_top=0)
            wanted += chunk.token_ids[begin:end]
    layout = lay_out(chunks, BLOCK, tile_tokens)
    assert [int(layout.token_ids[row]) for row in layout.scored_rows] == wanted


@given(sizes)
def test_tiles_cover_the_rows_in_order_and_are_consecutive_tokens_of_one_sequence(described):
    chunks = make_chunks(described)
    layout = lay_out(chunks, BLOCK, tile_tokens)
    row = 0
    for tile in layout.tiles:
        assert tile.begin == row
        assert 1 <= tile.length <= tile_tokens(tile.start)
        first = tile.chunk * 100_000 + tile.start
        row += tile.length
        assert list(layout.token_ids[tile.begin : row]) == list(range(first, first + tile.length))
        assert layout.block_ids[tile.chunk] == chunks[tile.chunk].block_ids
    assert row == len(layout.token_ids)


@given(sizes)
def test_longer_contexts_come_last_among_tiles_of_one_length(described):
    tiles = lay_out(make_chunks(described), BLOCK, tile_tokens).tiles
    order = [(tile.length, tile.context) for tile in tiles]
    assert order == sorted(order)
