"""A runner that computes nothing: for everything that is not about models."""

import time
from collections.abc import Sequence

from engine.model.runner import Chunk, StepResult
from engine.sampling import TokenLogprobs


class DummyRunner:
    """Answers with `abcd...`, again and again, as the byte-level tokenizer has the letters.

    It is sure of every token, and alternatives are the token itself.

    Args:
        step_s: Seconds that each step takes at least.
    """

    remark = ""

    def __init__(self, step_s: float = 0.0) -> None:
        self._step_s = step_s

    def prepare_kernels(self) -> None:
        pass

    def load_weights(self) -> None:
        pass

    def allocate_cache(self) -> None:
        pass

    def warm_up(self) -> None:
        pass

    def execute(self, chunks: Sequence[Chunk]) -> StepResult:
        """The letter of each output index."""
        if self._step_s:
            time.sleep(self._step_s)
        wanted = [(c.sampling, c.output_index) for c in chunks if c.sampling is not None]
        token_ids = [ord("a") + output_index % 26 for _, output_index in wanted]
        return StepResult(
            token_ids,
            {
                index: _certain(token_ids[index], sampling.logprobs)
                for index, (sampling, _) in enumerate(wanted)
                if sampling.logprobs is not None
            },
            {
                index: [_certain(token, c.scoring.num_top) for token in c.scoring.token_ids]
                for index, c in enumerate(chunks)
                if c.scoring is not None
            },
        )


def _certain(token_id: int, num_top: int) -> TokenLogprobs:
    return TokenLogprobs(0.0, [token_id][:num_top], [0.0][:num_top])
