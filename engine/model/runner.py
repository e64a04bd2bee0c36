"""What an engine core needs of a model: chunks in, next tokens out. Without torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.sampling import SamplingParams


@dataclass(slots=True)
class Chunk:
    """New tokens of one sequence in one step."""

    token_ids: Sequence[int]
    """The tokens to compute: one for a decode."""
    start: int
    """Position of the first of them: so many tokens are in the cache already."""
    block_ids: list[int]
    """Cache blocks of the sequence, in order; they hold `start + len(token_ids)` tokens or more."""
    sampling: SamplingParams | None
    """How to choose the next token; None: more prompt follows, no token is wanted."""
    output_index: int = 0
    """Number of the wanted token among the sequence's outputs."""


class Runner(Protocol):
    """What an engine core needs of a model: each method once, in this order, then `execute`."""

    remark: str
    """What the user should know once it is warmed up, such as what it has to do without."""

    def prepare_kernels(self) -> None: ...

    def load_weights(self) -> None: ...

    def allocate_cache(self) -> None: ...

    def warm_up(self) -> None: ...

    def execute(self, chunks: Sequence[Chunk]) -> list[int]:
        """Computes the chunks and gives the next token of each that has `sampling`, in order."""
        ...
