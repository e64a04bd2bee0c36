"""What an engine core needs of a model: chunks in, next tokens out. Without torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from engine.model.logit_edits import LogitEdits
from engine.sampling import SamplingParams, TokenLogprobs


class PromptScoring(NamedTuple):
    """Prompt tokens whose log-probabilities are wanted: each is told by the token before it."""

    offset: int
    """Index in the chunk of the token before the first of them."""
    token_ids: Sequence[int]
    num_top: int
    """Alternatives to tell for each."""


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
    edits: LogitEdits | None = None
    """What changes the logits of the wanted token."""
    scoring: PromptScoring | None = None


@dataclass(slots=True)
class StepResult:
    """What a step gives."""

    token_ids: list[int]
    """The next token of each chunk that has `sampling`, in order."""
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    """By index in `token_ids`, where they are asked for."""
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    """By index of the chunk, for those that have `scoring`."""
    failed: list[int] = field(default_factory=list)
    """Indices in `token_ids` where the model has made no finite logits: the token means nothing."""


class Runner(Protocol):
    """What an engine core needs of a model: each method once, in this order, then the last."""

    remark: str
    """What the user should know once it is warmed up, such as what it has to do without."""

    def prepare_kernels(self) -> None: ...

    def load_weights(self) -> None: ...

    def allocate_cache(self) -> None: ...

    def warm_up(self) -> None: ...

    def execute(self, chunks: Sequence[Chunk]) -> StepResult:
        """Computes the chunks and chooses the tokens that follow."""
        ...
