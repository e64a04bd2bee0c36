"""How one step's chunks become per-token arrays and groups that attend together.

Sequences are cut into *tiles* of at most `MAX_TILE_TOKENS` new tokens. Tiles of equal length and
similar context are put side by side and attend in one go; a decode is a tile of one token, a
prefill chunk some longer ones. All per-token tensors are in tile order, so that a group is a slice
of them and no token is padded; only contexts are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.model.runner import Chunk

MAX_TILE_TOKENS = 128
"""Short: little is computed that the causal mask hides; long: matrix products are full."""
MAX_GROUP_SCORES = 1 << 21
"""Most attention scores per query head of one group: bounds scratch memory, keeps it cached."""
MAX_GROUP_CONTEXT = 4096
"""Most context tokens in one group of several tiles: what is gathered is used while cached."""
_CONTEXT_STEP = 1.25
"""Contexts in one group differ by this factor at most: at most a fifth of them is padding."""
_CONTEXT_SLACK = 64
"""Tokens by which contexts in one group may differ anyway: short ones need no own group."""

Ints = npt.NDArray[np.int64]


@dataclass(slots=True)
class TileGroup:
    """Tiles that attend together.

    T: tokens of each tile, N: tiles, B: blocks of the longest context.
    """

    begin: int
    """First of its N*T rows in the per-token arrays."""
    num_tiles: int
    tile_tokens: int
    block_tables: Ints
    """[N, B], padded with block 0."""
    starts: Ints
    """[N] position of each tile's first token."""


@dataclass(slots=True)
class Layout:
    """One step's tokens in tile order."""

    token_ids: Ints
    positions: Ints
    slots: Ints
    """Where each token's key and value go: block * block_size + offset."""
    groups: list[TileGroup]
    sampled_rows: Ints
    """Rows whose next token is wanted, in the order of the chunks that want one."""


@dataclass(slots=True)
class _Tile:
    chunk: int
    offset: int
    length: int
    context: int


def lay_out(chunks: Sequence[Chunk], block_size: int) -> Layout:
    """The chunks' tokens in tile order, with the groups of tiles that attend together."""
    tiles = [tile for index, chunk in enumerate(chunks) for tile in _tiles(index, chunk)]
    tiles.sort(key=lambda tile: (tile.length, tile.context))
    token_ids: list[int] = []
    positions: list[npt.ArrayLike] = []
    slots: list[npt.ArrayLike] = []
    last_rows = [0] * len(chunks)
    for tile in tiles:
        chunk = chunks[tile.chunk]
        begin = chunk.start + tile.offset
        token_ids += chunk.token_ids[tile.offset : tile.offset + tile.length]
        if tile.length == 1:
            positions.append((begin,))
            slots.append((chunk.block_ids[begin // block_size] * block_size + begin % block_size,))
        else:
            span = np.arange(begin, begin + tile.length)
            blocks = np.asarray(chunk.block_ids)
            positions.append(span)
            slots.append(blocks[span // block_size] * block_size + span % block_size)
        if tile.offset + tile.length == len(chunk.token_ids):
            last_rows[tile.chunk] = len(token_ids) - 1
    return Layout(
        token_ids=np.array(token_ids, dtype=np.int64),
        positions=np.concatenate(positions),
        slots=np.concatenate(slots),
        groups=_groups(tiles, chunks, block_size),
        sampled_rows=np.array(
            [
                row
                for row, chunk in zip(last_rows, chunks, strict=True)
                if chunk.sampling is not None
            ],
            dtype=np.int64,
        ),
    )


def _tiles(index: int, chunk: Chunk) -> Iterator[_Tile]:
    offset = 0
    while offset < len(chunk.token_ids):
        most = MAX_GROUP_SCORES // (chunk.start + offset + MAX_TILE_TOKENS)
        length = min(MAX_TILE_TOKENS, max(1, most), len(chunk.token_ids) - offset)
        yield _Tile(index, offset, length, chunk.start + offset + length)
        offset += length


def _groups(tiles: list[_Tile], chunks: Sequence[Chunk], block_size: int) -> list[TileGroup]:
    """Cuts sorted tiles into groups of one length and contexts that are not too different."""
    groups = []
    begin = first = 0
    for last in range(1, len(tiles) + 1):
        if last < len(tiles) and _fit_together(tiles[first], tiles[last], last - first + 1):
            continue
        members = tiles[first:last]
        groups.append(_group(begin, members, chunks, block_size))
        begin += len(members) * members[0].length
        first = last
    return groups


def _fit_together(first: _Tile, last: _Tile, num_tiles: int) -> bool:
    """Whether tiles `first` to `last`, sorted by context, may be one group of `num_tiles`."""
    return (
        first.length == last.length
        and last.context <= first.context * _CONTEXT_STEP + _CONTEXT_SLACK
        and num_tiles * last.length * last.context <= MAX_GROUP_SCORES
        and num_tiles * last.context <= MAX_GROUP_CONTEXT
    )


def _group(begin: int, tiles: list[_Tile], chunks: Sequence[Chunk], block_size: int) -> TileGroup:
    num_blocks = -(-tiles[-1].context // block_size)
    tables = np.zeros((len(tiles), num_blocks), dtype=np.int64)
    for row, tile in enumerate(tiles):
        ids = chunks[tile.chunk].block_ids[:num_blocks]
        tables[row, : len(ids)] = ids
    return TileGroup(
        begin=begin,
        num_tiles=len(tiles),
        tile_tokens=tiles[0].length,
        block_tables=tables,
        starts=np.array([chunks[tile.chunk].start + tile.offset for tile in tiles], dtype=np.int64),
    )
