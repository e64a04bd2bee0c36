"""Which tensors of a checkpoint make up the decoder's parts, and where it gets them from."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from engine.model.facts import ModelFacts
from engine.model.tensor_shapes import tensor_shapes

EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"


class Matrix(NamedTuple):
    """The weight of one linear layer: those of a checkpoint's modules, one below the other."""

    modules: tuple[str, ...]
    """Names, such as `model.layers.0.self_attn.o_proj`."""
    gated: bool = False
    """Two of them: a gate, and what it lets through."""

    @property
    def weights(self) -> list[str]:
        return [f"{module}.weight" for module in self.modules]

    @property
    def biases(self) -> list[str]:
        return [f"{module}.bias" for module in self.modules]


def qkv(layer: int) -> Matrix:
    return _joined(f"model.layers.{layer}.self_attn", ("q", "k", "v"))


def out(layer: int) -> Matrix:
    return _joined(f"model.layers.{layer}.self_attn", ("o",))


def gate_up(layer: int) -> Matrix:
    return _joined(f"model.layers.{layer}.mlp", ("gate", "up"), gated=True)


def down(layer: int) -> Matrix:
    return _joined(f"model.layers.{layer}.mlp", ("down",))


def head(facts: ModelFacts) -> Matrix:
    return Matrix(("model.embed_tokens" if facts.tie_word_embeddings else "lm_head",))


def matrices(facts: ModelFacts) -> Iterator[Matrix]:
    """Of all linear layers, in the order in which they compute."""
    for layer in range(facts.num_hidden_layers):
        yield from (qkv(layer), out(layer), gate_up(layer), down(layer))
    yield head(facts)


def vectors(facts: ModelFacts) -> dict[str, tuple[int, ...]]:
    """Shapes of the norms' weights and of the biases, by name."""
    return {name: shape for name, shape in tensor_shapes(facts).items() if len(shape) == 1}


class Weights(Protocol):
    """The parameters of one model, in the wanted type and on the wanted device."""

    def tensor(self, name: str) -> torch.Tensor:
        """The embedding, or one of the `vectors`, by its name in the checkpoint."""
        ...

    def matrix(self, matrix: Matrix) -> Any:
        """The weight of a linear layer, as the operators that it belongs to take it."""
        ...


def bias(weights: Weights, matrix: Matrix) -> torch.Tensor:
    """[columns of the matrix]."""
    return stacked([weights.tensor(name) for name in matrix.biases])


def stacked(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The tensors, one below the other; one alone is not copied."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def _joined(prefix: str, names: tuple[str, ...], gated: bool = False) -> Matrix:
    return Matrix(tuple(f"{prefix}.{name}_proj" for name in names), gated)
