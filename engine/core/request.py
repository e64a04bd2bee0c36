"""One request inside an engine core: its tokens and how far they are computed."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple

from engine.model.logit_edits import LogitEdits
from engine.protocol import OUTPUT_HORIZON
from engine.sampling import SamplingParams, TokenLogprobs


class RequestRefused(ValueError):
    """A request that cannot be run; the message says why.

    Attributes:
        reason: The kind of mistake, for counting.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class RequestKey(NamedTuple):
    """Names a request for one engine core."""

    frontend: str
    """Name and incarnation of the front end, `frontend-0.1`."""
    request_id: int


@dataclass(slots=True, eq=False)
class Request:
    """Prompt and outputs in one list; `num_computed` of them are in the cache."""

    key: RequestKey
    token_ids: list[int]
    """Prompt, then outputs."""
    num_prompt_tokens: int
    sampling: SamplingParams
    edits: LogitEdits | None = None
    """What changes its logits."""
    arrival: int = 0
    """Number of its arrival at the scheduler."""
    num_computed: int = 0
    num_cached: int = 0
    """Prompt tokens that the prefix cache gave at the first admission."""
    num_preemptions: int = 0
    external_id: str = ""
    """What the client knows it by, for log lines."""
    arrived_s: float = 0.0
    """When it came, by the engine core's clock."""
    token_s: float = 0.0
    """When its last token was chosen; 0: it has none yet."""
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Of the prompt tokens from the second on, as far as they are known; given away
    with the first output."""
    block_ids: list[int] = field(default_factory=list)
    _block_hashes: list[bytes] = field(default_factory=list)

    @property
    def order(self) -> tuple[int, int]:
        """Requests with a lower one run first."""
        return self.sampling.priority, self.arrival

    @property
    def scores_prompt(self) -> bool:
        """Whether log-probabilities of its prompt are wanted that nobody has been told."""
        return self.sampling.prompt_logprobs is not None and not self.num_outputs

    @property
    def num_outputs(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_uncomputed(self) -> int:
        return len(self.token_ids) - self.num_computed

    @property
    def num_to_prefill(self) -> int:
        """Tokens to compute before its next token can be chosen, but for the step of a decode."""
        return self.num_uncomputed - (self.num_outputs > 0)

    @property
    def num_ahead(self) -> int:
        """Tokens still to be chosen, as far as they count as work."""
        return min(self.sampling.max_tokens - self.num_outputs, OUTPUT_HORIZON)

    @property
    def known_block_hashes(self) -> Sequence[bytes]:
        """Those that `block_hashes` has given."""
        return self._block_hashes

    def block_hashes(self, num_blocks: int, block_size: int) -> list[bytes]:
        """Hashes of the first blocks, each chained to the one before: it stands for its prefix.

        SHA-256, since a collision would show one request's text to another.
        """
        for index in range(len(self._block_hashes), num_blocks):
            parent = self._block_hashes[-1] if index else b""
            tokens = array("q", self.token_ids[index * block_size : (index + 1) * block_size])
            self._block_hashes.append(sha256(parent + tokens.tobytes()).digest())
        return self._block_hashes[:num_blocks]
