"""The linear kernel with weights of 8 bits against exact products, on every path."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.model.kernels.linear import NativeLinear
from engine.model.kernels.packing import INT8_DEPTH, pack
from tests.engine.model.kernels.test_linear import GATED, PLAIN, Case, cases, exact, out_dtype

pytestmark = pytest.mark.timeout(300)

SEGMENT = 1024
MAX_LEVEL = 16383
LONG = 2 * SEGMENT + 51
"""Several segments, the last one short."""
ids = ["plain", "gated"]


def make_layer(case: Case, library, teams) -> NativeLinear:
    weight = pack(case.weight, INT8_DEPTH, case.gated, quantized=True)
    team = teams[case.num_threads]
    return NativeLinear(library, team, weight, case.bias, case.norm, case.gated, case.float32_out)


def rounded(weight: torch.Tensor) -> torch.Tensor:
    """What levels from -127 to 127, evenly spaced in each row, make of a weight."""
    scales = weight.float().abs().amax(dim=1, keepdim=True) / 127
    levels = (weight.float() / scales.where(scales > 0, 1.0)).round()
    return levels.double() * scales.double()


def a_level(x: torch.Tensor) -> torch.Tensor:
    """The distance of two levels of x, segment by segment."""
    tops = [part.abs().amax(dim=1, keepdim=True).expand_as(part) for part in x.split(SEGMENT, 1)]
    return torch.cat(tops, dim=1) / MAX_LEVEL


def check(case: Case, library, teams) -> None:
    expected, bound = exact(case, rounded(case.weight), a_level)
    y = make_layer(case, library, teams)(case.x, case.residual)
    assert y.dtype == out_dtype(case)
    excess = (y.double() - expected).abs() - bound
    assert (excess <= 0).all(), f"beyond the bound by {excess.max()}"


@given(case=cases)
def test_the_result_is_exact_but_for_rounding(library, dtype, teams, case):
    check(replace(case, dtype=dtype), library, teams)


@pytest.mark.parametrize("rows", [5, 100])
@pytest.mark.parametrize("case", [PLAIN, GATED], ids=ids)
def test_rows_of_several_segments(library, dtype, teams, case, rows):
    check(replace(case, rows=rows, dtype=dtype, in_features=LONG), library, teams)


def test_the_largest_levels_do_not_overflow(library, dtype, teams):
    case = replace(PLAIN, dtype=dtype, has_bias=False, has_residual=False, in_features=LONG)
    case.x[:], case.weight[:] = 1.0, -1.0
    assert (make_layer(case, library, teams)(case.x) + case.in_features).abs().max() <= (
        0.01 * case.in_features
    )
    check(case, library, teams)


@given(case=cases, rows=st.integers(0, 120))
def test_a_row_is_the_same_alone_and_among_others_with_any_number_of_threads(
    library, dtype, teams, case, rows
):
    case = replace(case, rows=rows, dtype=dtype)
    y = make_layer(case, library, teams)(case.x, case.residual)
    for num_threads in teams:
        layer = make_layer(replace(case, num_threads=num_threads), library, teams)
        assert torch.equal(layer(case.x, case.residual), y)
    for row in range(case.rows):
        residual = None if case.residual is None else case.residual[row : row + 1]
        assert torch.equal(layer(case.x[row : row + 1], residual)[0], y[row])


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("case", [PLAIN, GATED], ids=ids)
def test_what_is_not_finite_stays_in_its_row(library, dtype, teams, case, poison):
    case = replace(case, dtype=dtype)
    layer = make_layer(case, library, teams)
    clean = layer(case.x, case.residual)
    for row in range(case.rows):
        x = case.x.clone()
        x[row, row] = poison
        y = layer(x, case.residual)
        others = torch.arange(case.rows) != row
        assert torch.equal(y[others], clean[others])
        assert not y[row].isfinite().any()


def test_zeros_give_zeros(library, dtype, teams):
    case = replace(PLAIN, dtype=dtype, has_bias=False, has_residual=False)
    zeros = torch.zeros_like(case.x)
    assert not make_layer(case, library, teams)(zeros).any()
    case.weight[:] = 0.0
    assert not make_layer(case, library, teams)(case.x).any()
