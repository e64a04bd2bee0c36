"""Scheduler and model loop of one rank: `step()` reads schedule -> run -> postprocess."""

import logging
import time
from collections.abc import Iterable, Sequence

from engine.config import DType, Settings
from engine.core.block_manager import BlockManager
from engine.core.engine_metrics import EngineMetrics
from engine.core.request import Request, RequestKey, RequestRefused
from engine.core.scheduler import Produced, Scheduled, Scheduler
from engine.core.step_budget import StepBudget
from engine.metrics import (
    KV_CACHE_USAGE,
    NUM_PREEMPTIONS,
    NUM_REQUESTS_RUNNING,
    NUM_REQUESTS_WAITING,
    WAITING_TOKENS,
    Metrics,
)
from engine.model.logit_edits import edits_of
from engine.model.runner import Chunk, PromptScoring, Runner
from engine.protocol import AddRequest, FinishReason, RankLoad

logger = logging.getLogger(__name__)


class EngineCore:
    """One rank, without its sockets."""

    def __init__(self, settings: Settings, runner: Runner) -> None:
        cache = settings.cache
        self._runner = runner
        self._blocks = BlockManager(cache.num_blocks, cache.block_size, cache.prefix_caching)
        self._budget = StepBudget(settings.max_num_batched_tokens, settings.max_step_s)
        self._scheduler = Scheduler(
            self._blocks,
            max_num_seqs=settings.max_num_seqs,
            budget=self._budget,
            max_model_len=settings.max_model_len,
            eos_token_ids=settings.facts.eos_token_ids,
        )
        self._eos_token_ids = settings.facts.eos_token_ids
        self._vocab_size = settings.facts.vocab_size
        self._dtype = settings.dtype
        self._metrics = EngineMetrics(cache.prefix_caching)

    @property
    def num_requests(self) -> int:
        return self._scheduler.num_requests

    @property
    def num_preemptions(self) -> int:
        """Times a running request had to give its blocks back, since the start."""
        return self._scheduler.num_preemptions

    def load(self, rank: int, incarnation: int) -> RankLoad:
        """What there is to do, now."""
        scheduler = self._scheduler
        waiting_tokens, output_tokens = scheduler.work()
        return RankLoad(
            rank,
            incarnation,
            scheduler.num_waiting,
            scheduler.num_running,
            waiting_tokens,
            output_tokens,
            kv_usage=self._kv_usage,
            step_s=self._metrics.step_s,
        )

    def metrics(self) -> Metrics:
        """Everything counted so far."""
        values, scheduler = self._metrics.values, self._scheduler
        values.set(NUM_REQUESTS_RUNNING, scheduler.num_running)
        values.set(NUM_REQUESTS_WAITING, scheduler.num_waiting)
        values.set(WAITING_TOKENS, scheduler.work()[0])
        values.set(KV_CACHE_USAGE, self._kv_usage)
        values.set(NUM_PREEMPTIONS, scheduler.num_preemptions)
        return values

    def add_request(self, frontend: str, message: AddRequest) -> None:
        """Takes a request of a front end.

        Raises:
            RequestRefused: It cannot be run; the message says why.
        """
        prompt, sampling = message.prompt_token_ids, message.sampling
        request = Request(
            RequestKey(frontend, message.request_id),
            list(prompt),
            len(prompt),
            sampling,
            edits_of(sampling, prompt, self._eos_token_ids),
            external_id=message.external_id or f"{frontend}/{message.request_id}",
            arrived_s=time.perf_counter(),
        )
        try:
            limits = f"between 0 and {self._vocab_size - 1}"
            if not prompt or not self._has(prompt):
                raise RequestRefused(
                    "token_ids", f"prompt token ids must be {limits}, at least one"
                )
            if not self._has((*sampling.stop_token_ids, *sampling.logit_bias)):
                names = "token ids of stop_token_ids and logit_bias"
                raise RequestRefused("token_ids", f"{names} must be {limits}")
            self._scheduler.add(request)
        except RequestRefused as refusal:
            self._metrics.note_refused(refusal.reason)
            logger.debug("request %s: refused: %s", request.external_id, refusal)
            raise
        logger.debug("request %s: %d prompt tokens", request.external_id, len(prompt))

    def end_request(self, frontend: str, request_id: int, reason: FinishReason) -> None:
        """Forgets a request that its front end has ended; one that has ended here is no error."""
        request = self._scheduler.abort(RequestKey(frontend, request_id))
        if request is not None:
            self._note_ended([request], reason)

    def abort_all_of(self, frontend: str) -> None:
        self._note_ended(self._scheduler.abort_all_of(frontend), FinishReason.abort)

    def step(self) -> list[Produced]:
        """Computes one batch and gives the new tokens."""
        began_s = time.perf_counter()
        scheduled = self._scheduler.schedule()
        result = self._runner.execute([_chunk(item) for item in scheduled])
        for index, scores in result.prompt_logprobs.items():
            scheduled[index].request.prompt_logprobs += scores
        produced = self._scheduler.postprocess(scheduled, result.token_ids)
        for index, logprobs in result.logprobs.items():
            produced[index].logprobs = logprobs
        for index in result.failed:
            self._fail(produced[index])
        ended_s = time.perf_counter()
        num_tokens = sum([item.num_tokens for item in scheduled])
        self._budget.note(num_tokens, len(scheduled), ended_s - began_s)
        self._metrics.note_step(began_s, ended_s, num_tokens, produced, self._scheduler.admitted)
        if logger.isEnabledFor(logging.DEBUG):
            for item in produced:
                if item.finish_reason is not None:
                    _log_ended(item.request, item.finish_reason)
        return produced

    def _has(self, token_ids: Sequence[int]) -> bool:
        """Whether the vocabulary has all of them."""
        return all(0 <= token_id < self._vocab_size for token_id in token_ids)

    def _fail(self, item: Produced) -> None:
        """Ends a request for which the model has computed no numbers."""
        request = item.request
        self._scheduler.abort(request.key)  # unless the token that means nothing has ended it
        request.token_ids.pop()
        self._blocks.unpublish(request)
        item.finish_reason, item.stop_token_id = FinishReason.error, None
        item.logprobs, item.prompt_logprobs = None, []
        item.error = f"The model's logits are not finite, computed in {self._dtype.value}: "
        if self._dtype is DType.float32:
            item.error += "are the weights damaged?"
        else:
            item.error += (
                "a value has grown too large for that; engine.dtype=float32 has more room."
            )
        logger.error("request %s: %s", request.external_id, item.error)

    @property
    def _kv_usage(self) -> float:
        return 1.0 - self._blocks.num_free / self._blocks.num_blocks

    def _note_ended(self, requests: Iterable[Request], reason: FinishReason) -> None:
        now_s = time.perf_counter()
        for request in requests:
            self._metrics.note_ended(request, reason, now_s)
            _log_ended(request, reason)


def _log_ended(request: Request, reason: FinishReason) -> None:
    logger.debug(
        "request %s: %s, %d tokens", request.external_id, reason.value, request.num_outputs
    )


def _chunk(item: Scheduled) -> Chunk:
    request = item.request
    start, end = request.num_computed, request.num_computed + item.num_tokens
    return Chunk(
        token_ids=request.token_ids[start:end],
        start=start,
        block_ids=request.block_ids,
        sampling=request.sampling if item.wants_token else None,
        output_index=request.num_outputs,
        edits=request.edits,
        scoring=_scoring(request, start, end),
    )


def _scoring(request: Request, start: int, end: int) -> PromptScoring | None:
    """What of the prompt is scored when the tokens from `start` to `end` are computed.

    A preempted request may have scores already of tokens that it computes again.
    """
    num_top = request.sampling.prompt_logprobs
    if num_top is None or not request.scores_prompt:
        return None
    begin, end = max(start, len(request.prompt_logprobs)), min(end, request.num_prompt_tokens - 1)
    if begin >= end:
        return None
    return PromptScoring(begin - start, request.token_ids[begin + 1 : end + 1], num_top)
