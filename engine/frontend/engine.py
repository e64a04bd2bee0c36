"""What a front end knows of one engine process, and when to ask it or to give it up."""

import math

from engine.frontend.generation import Generation
from engine.frontend.load_balancer import RankWork
from engine.protocol import FinishReason, ProcessState, engine_identity


class Engine:
    """One incarnation of a rank. Times are the event loop's clock, in seconds.

    Attributes:
        reason: Why it is suspect or lost.
        is_reachable: It is connected.
        is_full: Its queue took no more.
        unsent_aborts: Requests that it shall give up and must still be told of, and why.
        sent_aborts: The same for those that it was told of and has not acknowledged, by message.
        next_sequence: Number of the next message to it.
        sent_s: When the last message to it was sent.
        probed_s: When it was last asked for what may have been lost.
        acknowledged: Number of the last message that it says it has.
        expected: Number of the next outputs from it.
        heard_s: When the last outputs came from it.
        trusted_s: When it was last known to be ready and connected.
        work: What it has to do; `own` is the sum over its generations.
        report_s: When it reported its load; what was sent later is not in there.
        num_queued: Those of its requests for which nothing has come yet.
        generations: Its requests in flight, in the order in which they were sent.
    """

    def __init__(self, rank: int, incarnation: int) -> None:
        self.rank = rank
        self.incarnation = incarnation
        self.identity = engine_identity(rank, incarnation)
        self.state = ProcessState.starting
        self.reason = ""
        self.is_reachable = False
        self.is_full = False
        self.unsent_aborts: dict[int, FinishReason] = {}
        self.sent_aborts: dict[int, dict[int, FinishReason]] = {}
        self.next_sequence = 0
        self.sent_s = self.probed_s = -math.inf
        self.acknowledged = -1
        self.expected = 0
        self.heard_s = self.trusted_s = -math.inf
        self.work = RankWork(rank)
        self.report_s = -math.inf
        self.num_queued = 0
        self.generations: dict[int, Generation] = {}

    @property
    def takes_work(self) -> bool:
        return self.state is ProcessState.ready and self.is_reachable and not self.is_full

    def quiet_s(self, now_s: float) -> float:
        """How long it has said nothing although it has requests."""
        if not self.generations:
            return 0.0
        oldest = next(iter(self.generations.values()))
        return now_s - max(self.heard_s, oldest.sent_s)

    def needs_probe(self, now_s: float, silence_s: float) -> bool:
        """Whether to ask it for what may have been lost.

        A gap in the numbers shows with the next message only: one is asked for when messages were
        not acknowledged, and when outputs do not come. At most one probe in `silence_s`; an engine
        that is only slow has nothing to do for it.
        """
        if not self.takes_work:  # it is asked when it is back
            return False
        is_unheard = self.acknowledged < self.next_sequence - 1
        if is_unheard and now_s - self.sent_s > silence_s:
            return True
        return min(self.quiet_s(now_s), now_s - self.probed_s) > silence_s

    def is_overdue(self, now_s: float, suspect_s: float) -> bool:
        """Whether its requests have waited long enough: it is silent, and not trusted either."""
        return min(self.quiet_s(now_s), now_s - self.trusted_s) > suspect_s

    def abort(self, request_id: int, reason: FinishReason) -> None:
        """Notes that it shall give up a request, unless it is being told so."""
        is_told = any(request_id in aborts for aborts in self.sent_aborts.values())
        if not is_told:
            self.unsent_aborts.setdefault(request_id, reason)

    def acknowledge(self, sequence: int, lost: tuple[int, int] | None) -> None:
        """Takes over which messages it has; aborts among the lost ones are to be sent again."""
        self.acknowledged = sequence
        while self.sent_aborts and (first := next(iter(self.sent_aborts))) <= sequence:
            aborts = self.sent_aborts.pop(first)
            if lost is not None and lost[0] <= first <= lost[1]:
                self.unsent_aborts |= aborts

    def is_unreported(self, generation: Generation) -> bool:
        return generation.sent_s > self.report_s

    def change_work(self, generation: Generation, change: int) -> None:
        """Notes that a generation makes more or less work than before."""
        self.work.own += change
        if generation.sent_s > self.report_s:
            self.work.unreported += change
