"""All layers in one call against the same kernels one by one: bit for bit."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from engine.checkpoints.sources import model_directory
from engine.config import ModelKind, ModelOptions, Quantization
from engine.model.batch import lay_out
from engine.model.decoder import Decoder
from engine.model.kernels import layers as native_layers
from engine.model.kernels.binding import Library
from engine.model.kernels.layers import NativeLayers
from engine.model.kernels.operators import NativeOperators
from engine.model.runner import Chunk
from engine.model.torch_operators import TorchLayers
from tests.engine.settings import make_settings

pytestmark = pytest.mark.timeout(300)

STEPS = [[(0, 5), (0, 40), (0, 1)], [(5, 1), (40, 30), (1, 1)], [(6, 1), (70, 1), (2, 33)]]
"""Start and length of three sequences' chunks in each step."""


class Model:
    """A tiny decoder of one library's kernels."""

    def __init__(
        self,
        library: Library,
        dtype: torch.dtype,
        num_threads: int,
        quantization: Quantization = Quantization.none,
    ) -> None:
        directory = model_directory(ModelOptions(kind=ModelKind.tiny))
        self.settings = make_settings(directory, quantization=quantization)
        operators = NativeOperators(self.settings, dtype, num_threads, library)
        self.attention = operators.attention()
        self.num_signs = 0
        weights = operators.weights(directory)
        decoder = Decoder(self.settings.facts, weights, operators, self.attention, self._note_layer)
        assert isinstance(decoder._layers, NativeLayers)
        self.layers = decoder._layers
        self.embedding = decoder._embedding

    def _note_layer(self) -> None:
        self.num_signs += 1

    def hidden_states(self, layers: NativeLayers | TorchLayers) -> Iterator[torch.Tensor]:
        """Of some of the tokens of each step, the last first."""
        caches = [self.attention.new_cache() for _ in range(self.settings.facts.num_hidden_layers)]
        tables = [list(range(8 * index, 8 * index + 8)) for index in range(3)]
        for step in STEPS:
            chunks = [
                Chunk([(7 * start + index) % 250 for index in range(length)], start, table, None)
                for (start, length), table in zip(step, tables, strict=True)
            ]
            layout = lay_out(chunks, 16, self.attention.tile_tokens)
            x = self.embedding(torch.from_numpy(layout.token_ids))
            rows = np.arange(len(x))[::-3].copy()
            yield layers(x, caches, self.attention.begin_step(layout), rows)


@pytest.mark.parametrize("quantization", Quantization)
@pytest.mark.parametrize("num_threads", [1, 3])
def test_layers_in_one_call_give_what_they_give_one_by_one(
    library, dtype, num_threads, quantization
):
    model = Model(library, dtype, num_threads, quantization)
    one_by_one = TorchLayers(model.layers._layers, lambda: None)
    wanted = list(model.hidden_states(one_by_one))
    given = list(model.hidden_states(model.layers))
    assert len(given) == len(STEPS)
    assert all(map(torch.equal, given, wanted))
    assert model.num_signs == len(STEPS)


def test_long_calls_are_split_into_several_which_changes_nothing(library, dtype, monkeypatch):
    model = Model(library, dtype, num_threads=2)
    wanted = list(model.hidden_states(model.layers))
    monkeypatch.setattr(native_layers, "_CALL_OPERATIONS", 1.0)
    model.num_signs = 0
    given = list(model.hidden_states(model.layers))
    assert all(map(torch.equal, given, wanted))
    assert model.num_signs == len(STEPS) * model.settings.facts.num_hidden_layers


def test_a_long_context_is_work_too(library, dtype, monkeypatch):
    model = Model(library, dtype, num_threads=2)
    num_layers = model.settings.facts.num_hidden_layers
    caches = [model.attention.new_cache() for _ in range(num_layers)]

    def num_signs(start: int) -> int:
        layout = lay_out([Chunk([1], start, list(range(32)), None)], 16, lambda _start: 32)
        model.num_signs = 0
        x = model.embedding(torch.from_numpy(layout.token_ids))
        model.layers(x, caches, model.attention.begin_step(layout), np.zeros(1, dtype=np.int64))
        return model.num_signs

    layout = lay_out([Chunk([1], 0, [0], None)], 16, lambda _start: 32)
    operations = model.layers._layer_operations(model.attention.begin_step(layout))
    monkeypatch.setattr(native_layers, "_CALL_OPERATIONS", operations * num_layers)
    assert num_signs(start=0) == 1
    assert num_signs(start=511) > 1


def test_no_row_may_be_wanted(library, dtype):
    model = Model(library, dtype, num_threads=2)
    chunk = Chunk([1, 2, 3], 0, [0], None)
    layout = lay_out([chunk], 16, model.attention.tile_tokens)
    caches = [model.attention.new_cache() for _ in range(model.settings.facts.num_hidden_layers)]
    x = model.embedding(torch.from_numpy(layout.token_ids))
    step = model.attention.begin_step(layout)
    hidden = model.layers(x, caches, step, np.empty(0, dtype=np.int64))
    assert hidden.shape == (0, model.settings.facts.hidden_size)
