"""Which tokens of which requests are computed next. Pure: no torch, no sockets, no clock."""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from operator import attrgetter

from engine.core.block_manager import BlockManager
from engine.core.request import Request, RequestKey, RequestRefused
from engine.core.step_budget import StepBudget
from engine.protocol import FinishReason, RequestOutput
from engine.sampling import TokenLogprobs

_ORDER = attrgetter("order")


@dataclass(slots=True)
class Scheduled:
    """Some next tokens of one request."""

    request: Request
    num_tokens: int

    @property
    def wants_token(self) -> bool:
        """Whether the step reaches the request's last known token, so that a new one follows."""
        return self.num_tokens == self.request.num_uncomputed


@dataclass(slots=True)
class Produced:
    """A new token of a request."""

    request: Request
    token_id: int
    finish_reason: FinishReason | None
    stop_token_id: int | None = None
    """The one of the request's `stop_token_ids` that ended it."""
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    """With the first token."""
    error: str = ""
    """With `FinishReason.error`: why there is no token after all."""

    def output(self) -> RequestOutput:
        """What the request's front end is told."""
        request = self.request
        return RequestOutput(
            request.key.request_id,
            [self.token_id] if not self.error else [],
            self.finish_reason,
            request.num_cached,
            self.error,
            logprobs=[] if self.logprobs is None else [self.logprobs],
            prompt_logprobs=self.prompt_logprobs,
            stop_token_id=self.stop_token_id,
        )


class WaitingRequests:
    """Requests in the order in which they will run, and how much work they are.

    The work is kept as a sum: there may be thousands, and it is asked for many times a second. None
    of them changes while it waits.
    """

    def __init__(self) -> None:
        self._requests: list[Request] = []
        self.num_to_prefill = 0
        self.num_ahead = 0

    def __len__(self) -> int:
        return len(self._requests)

    def first(self) -> Request:
        return self._requests[0]

    def add(self, request: Request) -> None:
        insort(self._requests, request, key=_ORDER)
        self._count(request, 1)

    def remove(self, request: Request) -> None:
        del self._requests[bisect_left(self._requests, request.order, key=_ORDER)]
        self._count(request, -1)

    def _count(self, request: Request, sign: int) -> None:
        # all of it, whatever has just been found in the cache
        num_to_prefill = len(request.token_ids) - (request.num_outputs > 0)
        self.num_to_prefill += sign * num_to_prefill
        self.num_ahead += sign * request.num_ahead


class Scheduler:
    """Continuous batching: decodes first, then prompts.

    Both by priority, then as they came. Prompts have a budget of tokens beside the decodes: longer
    ones are computed in chunks. When blocks run out the last running request gives its blocks back
    and starts again later (preemption by recompute); its tokens so far are kept. A waiting request
    never takes the place of a running one.
    """

    def __init__(
        self,
        blocks: BlockManager,
        max_num_seqs: int,
        budget: StepBudget,
        max_model_len: int,
        eos_token_ids: Collection[int],
    ) -> None:
        self._blocks = blocks
        self._max_num_seqs = max_num_seqs
        self._budget = budget
        self._max_model_len = max_model_len
        self._eos_token_ids = frozenset(eos_token_ids)
        self._waiting = WaitingRequests()
        self._running: list[Request] = []
        self._by_key: dict[RequestKey, Request] = {}
        self._num_added = 0
        self.num_preemptions = 0
        self.admitted: list[Request] = []

    @property
    def num_requests(self) -> int:
        return len(self._by_key)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    def work(self) -> tuple[int, int]:
        """Tokens to prefill and tokens to choose, of all requests, as far as they count."""
        running = self._running
        return (
            self._waiting.num_to_prefill + sum(request.num_to_prefill for request in running),
            self._waiting.num_ahead + sum(request.num_ahead for request in running),
        )

    def add(self, request: Request) -> None:
        """Takes a request.

        Raises:
            RequestRefused: It could never be run, or its key is taken.
        """
        if request.key in self._by_key:
            raise RequestRefused("duplicate", f"request {request.key} is there already")
        if len(request.token_ids) >= self._max_model_len:
            length = f"{len(request.token_ids)} prompt tokens"
            raise RequestRefused("too_long", f"{length} leave no room in {self._max_model_len}")
        self._by_key[request.key] = request
        request.arrival = self._num_added
        self._num_added += 1
        self._waiting.add(request)

    def abort(self, key: RequestKey) -> Request | None:
        """Forgets a request and frees its blocks; None: it is unknown, or has ended meanwhile."""
        request = self._by_key.get(key)
        if request is not None:
            (self._running if request in self._running else self._waiting).remove(request)
            self._forget(request)
        return request

    def abort_all_of(self, frontend: str) -> list[Request]:
        """Forgets all requests of a front end that is gone."""
        keys = [key for key in self._by_key if key.frontend == frontend]
        return [request for key in keys if (request := self.abort(key)) is not None]

    def schedule(self) -> list[Scheduled]:
        """The next step's work; empty only if there are no requests.

        `admitted` are the requests of it that run for the first time.
        """
        self.admitted = []
        scheduled = self._schedule_decodes()
        budget = self._budget.num_prompt_tokens(len(scheduled))
        scheduled += self._schedule_prompts(budget)
        assert scheduled or not self._by_key, "requests, but none can run"
        return scheduled

    def postprocess(self, scheduled: list[Scheduled], token_ids: list[int]) -> list[Produced]:
        """Takes the step's result: `token_ids` are those of the items that wanted one, in order."""
        produced = []
        tokens = iter(token_ids)
        for item in scheduled:
            request, wants_token = item.request, item.wants_token
            request.num_computed += item.num_tokens
            if wants_token:
                produced.append(self._take_token(request, next(tokens)))
        return produced

    def _schedule_decodes(self) -> list[Scheduled]:
        scheduled: list[Scheduled] = []
        index = 0
        while index < len(self._running) and len(scheduled) < self._budget.max_tokens:
            request = self._running[index]
            if request.num_uncomputed > 1:  # a prompt: it has its blocks
                index += 1
            elif self._make_room(request):
                scheduled.append(self._take_part(request, 1))
                index += 1
            # else it was preempted itself: the list is shorter now
        return scheduled

    def _make_room(self, request: Request) -> bool:
        while not self._blocks.grow(request):
            victim = self._running.pop()
            self._blocks.release(victim)
            victim.num_preemptions += 1
            self.num_preemptions += 1
            self._waiting.add(victim)
            if victim is request:
                return False
        return True

    def _schedule_prompts(self, budget: int) -> Iterator[Scheduled]:
        begun = deque(request for request in self._running if request.num_uncomputed > 1)
        while budget:
            request = self._admit_before(begun[0] if begun else None)
            if request is None:
                if not begun:
                    return
                request = begun.popleft()
            item = self._take_part(request, budget)
            budget -= item.num_tokens
            yield item

    def _admit_before(self, begun: Request | None) -> Request | None:
        """The first waiting request, running now; None: there is no room, or `begun` is first."""
        if not self._waiting or len(self._running) >= self._max_num_seqs:
            return None
        request = self._waiting.first()
        if begun is not None and begun.order < request.order:
            return None
        if not self._blocks.admit(request):
            return None
        if not request.num_preemptions:
            request.num_cached = request.num_computed
            self.admitted.append(request)
        self._waiting.remove(request)
        insort(self._running, request, key=_ORDER)
        return request

    def _take_part(self, request: Request, budget: int) -> Scheduled:
        num_tokens = min(request.num_uncomputed, budget)
        # Now, so that requests with the same prompt that are admitted next share what it computes.
        self._blocks.publish(request, num_tokens)
        return Scheduled(request, num_tokens)

    def _take_token(self, request: Request, token_id: int) -> Produced:
        request.token_ids.append(token_id)
        if request.edits is not None:
            request.edits.note(token_id)
        produced = Produced(request, token_id, None, prompt_logprobs=request.prompt_logprobs)
        request.prompt_logprobs = []
        self._finish(produced)
        if produced.finish_reason is not None:
            self._running.remove(request)
            self._forget(request)
        return produced

    def _finish(self, produced: Produced) -> None:
        """Notes whether the token is the request's last, and why."""
        request, token_id = produced.request, produced.token_id
        sampling = request.sampling
        may_stop = request.num_outputs > sampling.min_tokens
        full = len(request.token_ids) >= self._max_model_len
        if may_stop and token_id in self._eos_token_ids and not sampling.ignore_eos:
            produced.finish_reason = FinishReason.stop
        elif may_stop and token_id in sampling.stop_token_ids:
            produced.finish_reason = FinishReason.stop
            produced.stop_token_id = token_id
        elif full or request.num_outputs >= sampling.max_tokens:
            produced.finish_reason = FinishReason.length

    def _forget(self, request: Request) -> None:
        self._blocks.release(request)
        del self._by_key[request.key]
