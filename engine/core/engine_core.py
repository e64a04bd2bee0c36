"""Scheduler and model loop of one rank: `step()` reads schedule -> run -> postprocess."""

from engine.config import Settings
from engine.core.block_manager import BlockManager
from engine.core.request import Request, RequestKey
from engine.core.scheduler import Produced, Scheduled, Scheduler
from engine.model.runner import Chunk, Runner
from engine.protocol import AddRequest


class EngineCore:
    """One rank, without its sockets."""

    def __init__(self, settings: Settings, runner: Runner) -> None:
        cache = settings.cache
        self._runner = runner
        self._scheduler = Scheduler(
            BlockManager(cache.num_blocks, cache.block_size, cache.prefix_caching),
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            max_model_len=settings.max_model_len,
            eos_token_ids=settings.facts.eos_token_ids,
        )
        self._vocab_size = settings.facts.vocab_size

    @property
    def num_requests(self) -> int:
        return self._scheduler.num_requests

    @property
    def num_preemptions(self) -> int:
        """Times a running request had to give its blocks back, since the start."""
        return self._scheduler.num_preemptions

    def add_request(self, frontend: str, message: AddRequest) -> None:
        """Takes a request of a front end.

        Raises:
            ValueError: It cannot be run; the message says why.
        """
        prompt = message.prompt_token_ids
        if not prompt or min(prompt) < 0 or max(prompt) >= self._vocab_size:
            raise ValueError(
                f"prompt token ids must be between 0 and {self._vocab_size - 1}, at least one"
            )
        key = RequestKey(frontend, message.request_id)
        self._scheduler.add(Request(key, list(prompt), len(prompt), message.sampling))

    def abort_request(self, frontend: str, request_id: int) -> None:
        self._scheduler.abort(RequestKey(frontend, request_id))

    def abort_all_of(self, frontend: str) -> None:
        self._scheduler.abort_all_of(frontend)

    def step(self) -> list[Produced]:
        """Computes one batch and gives the new tokens."""
        scheduled = self._scheduler.schedule()
        token_ids = self._runner.execute([_chunk(item) for item in scheduled])
        return self._scheduler.postprocess(scheduled, token_ids)


def _chunk(item: Scheduled) -> Chunk:
    request = item.request
    start, end = request.num_computed, request.num_computed + item.num_tokens
    return Chunk(
        token_ids=request.token_ids[start:end],
        start=start,
        block_ids=request.block_ids,
        sampling=request.sampling if item.wants_token else None,
        output_index=request.num_outputs,
    )
