"""How one step's chunks become per-token arrays, in tiles that attend one by one or in groups.

Sequences are cut into *tiles* of a limited number of new tokens: a decode is a tile of one token, a
prefill chunk some longer ones. All per-token tensors are in tile order: shorter tiles first, and
among equal ones those with the shorter context. No token is padded.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.model.runner import Chunk

Ints = npt.NDArray[np.int64]


@dataclass(slots=True)
class Tile:
    """Consecutive new tokens of one sequence."""

    chunk: int
    """Index of the sequence."""
    begin: int
    """First of its rows in the per-token arrays."""
    start: int
    """Position of its first token."""
    length: int

    @property
    def context(self) -> int:
        """Tokens that the last of its tokens sees."""
        return self.start + self.length


@dataclass(slots=True)
class Layout:
    """One step's tokens in tile order."""

    token_ids: Ints
    positions: Ints
    slots: Ints
    """Where each token's key and value go: block * block_size + offset."""
    tiles: list[Tile]
    block_ids: list[list[int]]
    """Cache blocks of each sequence, in order."""
    sampled_rows: Ints
    """Rows whose next token is wanted, in the order of the chunks that want one."""
    scored_rows: Ints
    """Rows before the prompt tokens that are scored, chunk by chunk, each in the prompt's order."""


def lay_out(chunks: Sequence[Chunk], block_size: int, tile_tokens: Callable[[int], int]) -> Layout:
    """The chunks' tokens in tile order.

    Args:
        tile_tokens: Most tokens of a tile that begins at the position it is given.
    """
    tiles = [tile for index, chunk in enumerate(chunks) for tile in _cut(index, chunk, tile_tokens)]
    tables: dict[int, Ints] = {}
    tiles.sort(key=lambda tile: (tile.length, tile.start))
    token_ids: list[int] = []
    positions: list[npt.ArrayLike] = []
    slots: list[npt.ArrayLike] = []
    last_rows = [0] * len(chunks)
    rows_of = {
        index: np.empty(len(chunk.token_ids), dtype=np.int64)
        for index, chunk in enumerate(chunks)
        if chunk.scoring is not None
    }
    for tile in tiles:
        chunk = chunks[tile.chunk]
        tile.begin = len(token_ids)
        offset = tile.start - chunk.start
        token_ids += chunk.token_ids[offset : offset + tile.length]
        if tile.length == 1:
            block = chunk.block_ids[tile.start // block_size]
            positions.append((tile.start,))
            slots.append((block * block_size + tile.start % block_size,))
        else:
            span = np.arange(tile.start, tile.context)
            if tile.chunk not in tables:
                tables[tile.chunk] = np.asarray(chunk.block_ids)
            blocks = tables[tile.chunk]
            positions.append(span)
            slots.append(blocks[span // block_size] * block_size + span % block_size)
        if tile.chunk in rows_of:
            rows_of[tile.chunk][offset : offset + tile.length] = np.arange(
                tile.begin, len(token_ids)
            )
        if tile.context == chunk.start + len(chunk.token_ids):
            last_rows[tile.chunk] = len(token_ids) - 1
    return Layout(
        token_ids=np.array(token_ids, dtype=np.int64),
        positions=np.concatenate(positions),
        slots=np.concatenate(slots),
        tiles=tiles,
        block_ids=[chunk.block_ids for chunk in chunks],
        sampled_rows=np.array(
            [
                row
                for row, chunk in zip(last_rows, chunks, strict=True)
                if chunk.sampling is not None
            ],
            dtype=np.int64,
        ),
        scored_rows=_scored_rows(chunks, rows_of),
    )


def _scored_rows(chunks: Sequence[Chunk], rows_of: dict[int, Ints]) -> Ints:
    """Takes the rows of all tokens of the chunks that have some to score."""
    rows = [np.empty(0, dtype=np.int64)]
    for index, chunk in enumerate(chunks):
        if chunk.scoring is not None:
            begin = chunk.scoring.offset
            rows.append(rows_of[index][begin : begin + len(chunk.scoring.token_ids)])
    return np.concatenate(rows)


def _cut(index: int, chunk: Chunk, tile_tokens: Callable[[int], int]) -> Iterator[Tile]:
    start, end = chunk.start, chunk.start + len(chunk.token_ids)
    while start < end:
        length = min(tile_tokens(start), end - start)
        yield Tile(index, 0, start, length)
        start += length
