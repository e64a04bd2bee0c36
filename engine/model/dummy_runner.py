"""A runner that computes nothing: for everything that is not about models."""

import time
from collections.abc import Sequence

from engine.model.runner import Chunk


class DummyRunner:
    """Answers with `abcd...`, again and again, as the byte-level tokenizer has the letters.

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

    def execute(self, chunks: Sequence[Chunk]) -> list[int]:
        """The letter of each output index."""
        if self._step_s:
            time.sleep(self._step_s)
        return [ord("a") + c.output_index % 26 for c in chunks if c.sampling is not None]
