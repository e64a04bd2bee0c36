"""The attention kernel against dense attention: blocks anywhere, any chunks, every path."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.config import Settings
from engine.model.batch import lay_out
from engine.model.kernels.attention import NativeAttention
from engine.model.operators import Norm
from engine.model.rotary import rotary_tables
from engine.model.runner import Chunk
from tests.engine.settings import dummy_settings

pytestmark = pytest.mark.timeout(300)

UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}
"""Largest relative error of rounding once."""


@dataclass
class Case:
    """Sequences, and how they come in chunks: one list of lengths for each."""

    head_dim: int
    group_size: int
    num_kv_heads: int
    block_size: int
    num_threads: int
    magnitude: float
    """Of queries and keys."""
    chunks: list[list[int]]
    seed: int
    window: int | None = None
    is_normed: bool = False
    dtype: torch.dtype = torch.float32

    @property
    def num_heads(self) -> int:
        return self.num_kv_heads * self.group_size

    @property
    def width(self) -> int:
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @functools.cached_property
    def qkv(self) -> list[torch.Tensor]:
        """[tokens, H*G + 2*H, D] of each sequence."""
        generator = torch.Generator().manual_seed(self.seed)
        made = []
        for lengths in self.chunks:
            qkv = torch.randn(sum(lengths), self.width, generator=generator)
            qkv = qkv.unflatten(1, (-1, self.head_dim))
            qkv[:, : -self.num_kv_heads] *= self.magnitude
            made.append(qkv.to(self.dtype))
        return made

    @functools.cached_property
    def tables(self) -> list[list[int]]:
        """Blocks of each sequence, from all over the cache."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        free = torch.randperm(self.num_blocks, generator=generator).tolist()
        return [[free.pop() for _ in range(size)] for size in self._table_sizes]

    @functools.cached_property
    def norms(self) -> tuple[Norm, Norm] | None:
        """Of queries and keys."""
        if not self.is_normed:
            return None
        weights = torch.randn(
            2, self.head_dim, generator=torch.Generator().manual_seed(self.seed + 2)
        )
        query, key = weights.to(self.dtype)
        return Norm(query, 0.01), Norm(key, 0.01)

    @property
    def num_blocks(self) -> int:
        return sum(self._table_sizes) + 3

    @property
    def _table_sizes(self) -> list[int]:
        return [-(-sum(lengths) // self.block_size) for lengths in self.chunks]

    @property
    def settings(self) -> Settings:
        base = base_settings()
        facts = replace(
            base.facts,
            head_dim=self.head_dim,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads,
        )
        cache = replace(base.cache, block_size=self.block_size, num_blocks=self.num_blocks)
        longest = max(self.block_size, *map(sum, self.chunks))
        return replace(base, facts=facts, cache=cache, max_model_len=longest)


@functools.cache
def base_settings() -> Settings:
    return dummy_settings()


chunk_lengths = st.lists(st.integers(1, 50) | st.just(1), min_size=1, max_size=6)
cases = st.builds(
    Case,
    head_dim=st.integers(1, 48).map(lambda half: 2 * half),
    group_size=st.integers(1, 4),
    num_kv_heads=st.integers(1, 3),
    block_size=st.sampled_from((1, 3, 8, 16, 20, 32)),
    num_threads=st.integers(1, 3),
    magnitude=st.sampled_from((0.25, 1.0)),
    chunks=st.lists(chunk_lengths, min_size=1, max_size=5),
    seed=st.integers(0, 2**32),
    window=st.none() | st.integers(1, 100),
    is_normed=st.booleans(),
)
CASE = Case(64, 3, 2, 16, 2, 1.0, [[1], [16], [40, 24], [33, 1, 1, 70]], seed=1)


def steps(chunks: Sequence[Sequence[int]]) -> Iterator[list[tuple[int, int, int]]]:
    """(sequence, start, length) of each step's chunks: every sequence goes on while it can."""
    numbered = list(enumerate(chunks))
    for step in range(max(map(len, chunks))):
        yield [(i, sum(have[:step]), have[step]) for i, have in numbered if step < len(have)]


def attend(
    case: Case, library, teams, only: int | None = None, in_one: bool = False
) -> list[torch.Tensor]:
    """[tokens, H*G, D] of each sequence, in a cache where others have left numbers that are none.

    Args:
        only: The only sequence that is there.
        in_one: Each sequence is one chunk.
    """
    size, team = case.block_size, teams[case.num_threads]
    attention = NativeAttention(library, team, case.settings, case.dtype)
    layer = attention.layer(case.window, case.norms)
    cache = attention.new_cache()
    left = [Chunk([0] * size, 0, [block], None) for block in range(case.num_blocks)]
    step = attention.begin_step(lay_out(left, size, attention.tile_tokens))
    layer(case.qkv[0].new_full((case.num_blocks * size, case.width), torch.nan), cache, step)
    outputs = [torch.full_like(qkv[:, : case.num_heads], torch.nan) for qkv in case.qkv]
    all_lengths = [[sum(lengths)] for lengths in case.chunks] if in_one else case.chunks
    for parts in steps(all_lengths):
        if not (present := [part for part in parts if only in (None, part[0])]):
            continue
        chunks = [Chunk([0] * length, start, case.tables[i], None) for i, start, length in present]
        layout = lay_out(chunks, size, attention.tile_tokens)
        order = [(present[tile.chunk][0], slice(tile.start, tile.context)) for tile in layout.tiles]
        qkv = torch.cat([case.qkv[index][span].flatten(1) for index, span in order])
        attended = layer(qkv, cache, attention.begin_step(layout))
        tiles = attended.split([tile.length for tile in layout.tiles])
        for (index, span), tile in zip(order, tiles, strict=True):
            outputs[index][span] = tile.view(-1, case.num_heads, case.head_dim)
    return outputs


def same(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether all bits are equal; NaN is like NaN."""
    return torch.equal(x.isnan(), y.isnan()) and torch.equal(x.nan_to_num(), y.nan_to_num())


def norm(x: torch.Tensor, case: Case) -> torch.Tensor:
    """[tokens, heads, D] of queries, then keys."""
    if case.norms is None:
        return x
    weights = torch.cat(
        [
            one.weight.double().expand(heads, -1)
            for one, heads in zip(case.norms, (case.num_heads, case.num_kv_heads), strict=True)
        ]
    )
    return x / (x.square().mean(dim=-1, keepdim=True) + case.norms[0].eps).sqrt() * weights


def rotate(x: torch.Tensor, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """[tokens, heads, D] rotated, and the sums of the two summands' magnitudes."""
    cos, sin = rotary_tables(case.settings.facts, len(x))
    cos, sin = cos.double()[:, None], sin.double()[:, None]
    a, b = x.chunk(2, dim=-1)
    rotated = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    a, b, cos, sin = a.abs(), b.abs(), cos.abs(), sin.abs()
    return rotated, torch.cat((a * cos + b * sin, b * cos + a * sin), dim=-1)


def exact(qkv: torch.Tensor, case: Case, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Some rows of attention in float64, and the largest error that rounding explains.

    Rounded are: rotated queries and keys, weights and results, to the type; every float32
    operation. A score that is off by d gives a weight that is off by a factor of e^d, and so are
    the sum of weights and, where a larger score comes up, what was summed before.
    """
    heads, kv_heads, group = case.num_heads, case.num_kv_heads, case.group_size
    u, unit = UNIT[torch.float32], UNIT[case.dtype] if case.dtype == torch.bfloat16 else 0.0
    rotated, summands = rotate(norm(qkv[:, : heads + kv_heads].double(), case), case)
    norm_unit = (case.head_dim + 6) * u if case.is_normed else 0.0

    def scores_of(x: torch.Tensor) -> torch.Tensor:
        q, k = x[rows, :heads], x[:, heads:].repeat_interleave(group, dim=1)
        return torch.einsum("ihd,jhd->hij", q, k) * case.head_dim**-0.5

    scores = scores_of(rotated)
    off = scores_of(summands) * (2 * (unit + 3 * u + norm_unit) + unit**2 + (case.head_dim + 4) * u)
    off += 8 * u * scores.abs() + 2.0**-21 * (len(qkv) / 16 + 4)  # exponentials of 16 tokens each
    positions = torch.arange(len(qkv))
    hidden = positions > positions[rows, None]
    if case.window is not None:
        hidden |= positions <= positions[rows, None] - case.window
    p = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
    off += (p * off.exp()).sum(dim=-1, keepdim=True).log()
    off = (p * (off.expm1() + unit + (len(qkv) + 16) * u)).masked_fill(hidden, 0.0)
    values = qkv[:, heads + kv_heads :].double().repeat_interleave(group, dim=1)
    y = torch.einsum("hij,jhd->ihd", p, values)
    error = torch.einsum("hij,jhd->ihd", off, values.abs())
    return y, error + (unit + 2 * u) * (y.abs() + error) + 1e-30


def check(case: Case, library, teams, rows: slice = slice(None)) -> None:
    for qkv, y in zip(case.qkv, attend(case, library, teams), strict=True):
        expected, bound = exact(qkv, case, rows)
        excess = (y[rows].double() - expected).abs() - bound
        assert (excess <= 0).all(), f"beyond the bound by {excess.max()}"


@given(case=cases)
def test_the_result_is_exact_but_for_rounding(library, dtype, teams, case):
    check(replace(case, dtype=dtype), library, teams)


@pytest.mark.parametrize("block_size", [1, 16, 20, 32])
@pytest.mark.parametrize("lengths", [[1], [16], [1] * 40, [320], [320, 1], [160, 160]])
def test_full_blocks_and_single_tokens(library, dtype, teams, block_size, lengths):
    check(replace(CASE, dtype=dtype, block_size=block_size, chunks=[lengths]), library, teams)


@pytest.mark.parametrize("window", [None, 1, 16, 200, 5000])
def test_three_thousand_tokens(library, dtype, teams, window):
    case = replace(CASE, dtype=dtype, chunks=[[2900, 99, 1]], window=window)
    check(case, library, teams, slice(-110, None))


@given(case=cases, data=st.data())
def test_a_sequence_is_the_same_alone_and_beside_others_in_one_chunk_or_several(
    library, dtype, teams, case, data
):
    case = replace(case, dtype=dtype)
    expected = attend(case, library, teams)
    other = replace(case, num_threads=data.draw(st.sampled_from(sorted(teams))))
    assert all(map(torch.equal, attend(other, library, teams, in_one=True), expected))
    index = data.draw(st.integers(0, len(expected) - 1))
    alone = attend(other, library, teams, only=index, in_one=data.draw(st.booleans()))
    assert torch.equal(alone[index], expected[index])


@pytest.mark.parametrize("window", [None, 100, 700])
@pytest.mark.parametrize(("block_size", "num_kv_heads"), [(16, 3), (16, 1), (20, 1)])
def test_a_long_context_is_the_same_whether_threads_share_it_or_not(
    library, dtype, teams, window, block_size, num_kv_heads
):
    chunks = [[1100, 1, 1], [3, 1, 1], [511, 1, 1], [30, 1, 1]]
    case = replace(
        CASE,
        dtype=dtype,
        num_kv_heads=num_kv_heads,  # one: three threads share several sequences
        block_size=block_size,
        num_threads=1,
        chunks=chunks,
        window=window,
    )
    case.qkv[0][1050:, :, 5] = torch.nan  # in the last span
    expected = attend(case, library, teams, in_one=True)  # prompts are never shared
    assert not expected[0][-1].isfinite().all()
    shared = replace(case, num_threads=3)
    shared.qkv = case.qkv
    for index, y in enumerate(expected):
        assert same(attend(shared, library, teams, only=index)[index], y)
    assert all(map(same, attend(shared, library, teams), expected))


@pytest.mark.parametrize("block_size", [16, 32])
def test_where_whole_panels_lie_does_not_matter(library, dtype, teams, block_size):
    case = replace(CASE, dtype=dtype, block_size=block_size)
    elsewhere = replace(case)
    elsewhere.tables = [[case.num_blocks - 1 - block for block in ids] for ids in case.tables]
    assert all(map(torch.equal, attend(elsewhere, library, teams), attend(case, library, teams)))


@pytest.mark.parametrize("block_size", [1, 3, 16, 20])
def test_what_is_not_finite_stays_in_its_sequence(library, dtype, teams, block_size):
    case = replace(CASE, dtype=dtype, block_size=block_size)
    clean = attend(case, library, teams)
    case.qkv[2][30:, :, 5] = torch.nan
    poisoned = attend(case, library, teams)
    assert not poisoned[2][30:].isfinite().any()
    assert all(torch.equal(poisoned[index], clean[index]) for index in (0, 1, 3))


@pytest.mark.parametrize("block_size", [3, 16])
def test_scores_of_ten_thousand_choose_one_value(library, dtype, teams, block_size):
    case = replace(CASE, dtype=dtype, block_size=block_size, magnitude=35.0)
    for qkv in case.qkv:  # each query is its own token's key: 35^2 * 64 / sqrt(64) on the diagonal
        queries = qkv[:, : case.num_heads].unflatten(1, (case.num_kv_heads, case.group_size))
        queries.copy_(qkv[:, case.num_heads : -case.num_kv_heads, None])
    for qkv, y in zip(case.qkv, attend(case, library, teams), strict=True):
        values = qkv[:, -case.num_kv_heads :].repeat_interleave(case.group_size, dim=1)
        assert torch.equal(y, values)
