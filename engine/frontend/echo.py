"""A prompt as the beginning of its own answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.frontend.transcript import ScoredToken
from engine.sampling import TokenLogprobs


@dataclass(frozen=True)
class Echo:
    """What an answer repeats of its prompt.

    Attributes:
        offsets: Where each token's text begins in `text`, in characters.
    """

    text: str
    offsets: list[int]

    def tokens(
        self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs]
    ) -> list[ScoredToken]:
        """The prompt's tokens with their scores.

        Args:
            logprobs: For each token from the second on.
        """
        return list(map(ScoredToken, token_ids, [None, *logprobs], self.offsets))
