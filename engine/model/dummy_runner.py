"""A runner that computes nothing: for everything that is not about models."""

from collections.abc import Sequence

from engine.model.runner import Chunk


class DummyRunner:
    """Answers with `abcd...`, again and again, as the byte-level tokenizer has the letters."""

    remark = ""

    def load_weights(self) -> None:
        pass

    def allocate_cache(self) -> None:
        pass

    def warm_up(self) -> None:
        pass

    def execute(self, chunks: Sequence[Chunk]) -> list[int]:
        """The letter of each output index."""
        return [ord("a") + c.output_index % 26 for c in chunks if c.sampling is not None]
