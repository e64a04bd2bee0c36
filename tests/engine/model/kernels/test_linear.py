"""The linear kernel against exact products, with weights whole or of 8 bits, on every path."""

from dataclasses import dataclass, field, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from engine.model.kernels.linear import NativeLinear
from engine.model.kernels.packing import INT8_DEPTH, pack
from engine.model.operators import Norm

pytestmark = pytest.mark.timeout(300)

UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}
"""Largest relative error of rounding once."""
SILU_SLOPE = 1.1
"""Of silu, at most."""
EPS = 1e-5
SEGMENT = 1024
"""Elements of x that share a scale where weights have 8 bits."""
MAX_LEVEL = 16383
"""Of x, then."""
LONG = 2 * SEGMENT + 51
"""Several segments, the last one short."""


@dataclass
class Case:
    """A layer, and what it is called with."""

    rows: int
    in_features: int
    out_features: int
    gated: bool
    has_bias: bool
    has_norm: bool
    has_residual: bool
    magnitude: float
    num_threads: int
    seed: int
    float32_out: bool = False
    dtype: torch.dtype = torch.float32
    quantized: bool = False
    x: torch.Tensor = field(init=False)
    weight: torch.Tensor = field(init=False)
    bias: torch.Tensor | None = field(init=False)
    norm: Norm | None = field(init=False)
    residual: torch.Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(self.dtype)

        columns = self.out_features * (2 if self.gated else 1)
        self.x = random(self.rows, self.in_features) * self.magnitude
        self.weight = random(columns, self.in_features)
        self.bias = random(columns) if self.has_bias else None
        self.norm = Norm(random(self.in_features), EPS) if self.has_norm else None
        self.residual = random(self.rows, self.out_features) if self.has_residual else None


cases = st.builds(
    Case,
    rows=st.integers(0, 70),
    in_features=st.integers(1, 200),
    out_features=st.integers(1, 200),
    gated=st.booleans(),
    has_bias=st.booleans(),
    has_norm=st.booleans(),
    has_residual=st.booleans(),
    magnitude=st.sampled_from((0.001, 1.0, 100.0)),
    num_threads=st.integers(1, 3),
    seed=st.integers(0, 2**32),
    float32_out=st.booleans(),
)
ids = ["plain", "gated"]
GATED = Case(13, 67, 150, True, True, True, True, 1.0, 3, seed=1)
PLAIN = replace(GATED, gated=False, has_norm=False)


@pytest.fixture(scope="session", params=[False, True], ids=["whole", "int8"])
def quantized(request) -> bool:
    return request.param


def make_layer(case: Case, library, teams) -> NativeLinear:
    team = teams[case.num_threads]
    depth = INT8_DEPTH if case.quantized else library.depth
    weight = pack(case.weight, depth, case.gated, case.quantized)
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


def exact(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """What the layer gives in float64, and the largest error that rounding on the way explains.

    Rounded are: each cell of the left-hand side, if it is not x itself; every float32 operation
    of the norm and of a sum; a result. Weights of 8 bits are what they have been rounded to.
    """
    x, weight = case.x.double(), rounded(case.weight) if case.quantized else case.weight.double()
    sum_unit = (2 * case.in_features + 16) * UNIT[torch.float32]
    cell_unit = 0.0
    if case.norm is not None:
        x = F.rms_norm(x, (case.in_features,), case.norm.weight.double(), EPS)
        cell_unit = UNIT[case.dtype] + sum_unit
    bias = torch.zeros(len(weight)) if case.bias is None else case.bias.double()
    y = x @ weight.T + bias
    error = (x.abs() @ weight.abs().T) * (cell_unit + sum_unit) + bias.abs() * sum_unit
    if case.quantized:
        error = error + a_level(x) @ weight.abs().T
    if case.gated:
        (gate, up), (gate_error, up_error) = y.chunk(2, dim=1), error.chunk(2, dim=1)
        y = F.silu(gate) * up
        error = SILU_SLOPE * gate_error * (up.abs() + up_error) + F.silu(gate).abs() * up_error
        error = error + y.abs() * 2.0**-20
    if case.residual is not None:
        y = y + case.residual.double()
        error = error + (y.abs() + case.residual.double().abs()) * sum_unit
    return y, error + UNIT[out_dtype(case)] * (y.abs() + error) + 1e-30


def out_dtype(case: Case) -> torch.dtype:
    return torch.float32 if case.float32_out else case.dtype


def check(case: Case, library, teams) -> None:
    expected, bound = exact(case)
    y = make_layer(case, library, teams)(case.x, case.residual)
    assert y.dtype == out_dtype(case)
    assert y.shape == (case.rows, case.out_features)
    excess = (y.double() - expected).abs() - bound
    assert (excess <= 0).all(), f"beyond the bound by {excess.max()}"


@given(case=cases)
def test_the_result_is_exact_but_for_rounding(library, dtype, teams, quantized, case):
    check(replace(case, dtype=dtype, quantized=quantized), library, teams)


@pytest.mark.parametrize("case", [PLAIN, GATED], ids=ids)
def test_two_thousand_rows(library, dtype, teams, quantized, case):
    check(replace(case, rows=2000, dtype=dtype, quantized=quantized), library, teams)


@pytest.mark.parametrize("rows", [5, 100])
@pytest.mark.parametrize("case", [PLAIN, GATED], ids=ids)
def test_long_rows(library, dtype, teams, quantized, case, rows):
    case = replace(case, rows=rows, dtype=dtype, quantized=quantized, in_features=LONG)
    check(case, library, teams)


@given(case=cases)
def test_a_row_is_the_same_alone_and_among_others_with_any_number_of_threads(
    library, dtype, teams, quantized, case
):
    case = replace(case, dtype=dtype, quantized=quantized)
    y = make_layer(case, library, teams)(case.x, case.residual)
    for num_threads in teams:
        layer = make_layer(replace(case, num_threads=num_threads), library, teams)
        assert torch.equal(layer(case.x, case.residual), y)
    for row in range(case.rows):
        residual = None if case.residual is None else case.residual[row : row + 1]
        assert torch.equal(layer(case.x[row : row + 1], residual)[0], y[row])


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("case", [PLAIN, GATED], ids=ids)
def test_what_is_not_finite_stays_in_its_row(library, dtype, teams, quantized, case, poison):
    case = replace(case, dtype=dtype, quantized=quantized)
    layer = make_layer(case, library, teams)
    clean = layer(case.x, case.residual)
    for row in range(case.rows):
        x = case.x.clone()
        x[row, row] = poison
        y = layer(x, case.residual)
        others = torch.arange(case.rows) != row
        assert torch.equal(y[others], clean[others])
        assert not y[row].isfinite().any()


def test_zeros_give_zeros(library, dtype, teams, quantized):
    case = replace(PLAIN, dtype=dtype, quantized=quantized, has_bias=False, has_residual=False)
    zeros = torch.zeros_like(case.x)
    assert not make_layer(case, library, teams)(zeros).any()
    case.weight[:] = 0.0
    assert not make_layer(case, library, teams)(case.x).any()


def test_the_largest_levels_do_not_overflow(library, dtype, teams):
    case = replace(PLAIN, dtype=dtype, quantized=True, has_bias=False, has_residual=False)
    case = replace(case, in_features=LONG)
    case.x[:], case.weight[:] = 1.0, -1.0
    assert (make_layer(case, library, teams)(case.x) + case.in_features).abs().max() <= (
        0.01 * case.in_features
    )
    check(case, library, teams)


def test_silu_of_small_and_large_gates(library, dtype, teams):
    gates = torch.linspace(-200, 200, 2001).to(dtype)
    weight = torch.tensor([[1.0], [0.0]], dtype=dtype)
    bias = torch.tensor([0.0, 1.0], dtype=dtype)
    packed = pack(weight, library.depth, gated=True)
    layer = NativeLinear(library, teams[1], packed, bias, gated=True)
    expected = F.silu(gates.double())
    error = (layer(gates[:, None])[:, 0].double() - expected).abs()
    assert (error <= (2.0**-20 + UNIT[dtype]) * expected.abs() + 1e-30).all()
