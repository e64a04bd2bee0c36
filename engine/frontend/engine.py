"""What a front end knows of one engine process, and when to ask it or to give it up."""

import math

from engine.frontend.generation import Generation
from engine.frontend.load_balancer import RankWork
from engine.protocol import FinishReason, ProcessState, engine_identity


class Engine:
    """One incarnation of a rank. Times are the event loop's clock, in seconds.

    Attributes:
        reason: Why it is suspect or lost.
        is_reachable: It can be sent messages.
        is_connected: It has answered since then, and left no question unanswered for too long.
        is_full: Its queue took no more.
        unsent_aborts: Requests that it shall give up and must still be told of, and why.
        sent_aborts: The same for those that it was told of and has not acknowledged, by message.
        told_aborts: All of them.
        next_sequence: Number of the next message to it.
        sent_s: When the last message to it was sent.
        probed_s: When it was last asked for what may have been lost.
        asked_s: Since when it owes the answer to that; None: it owes none.
        acknowledged: Number of the last message that it says it has.
        expected: Number of the next outputs from it.
        heard_s: When the last outputs came from it.
        trusted_s: When it was last known to be ready and within reach, and owed no answer.
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
        self.is_connected = False
        self.is_full = False
        self.unsent_aborts: dict[int, FinishReason] = {}
        self.sent_aborts: dict[int, dict[int, FinishReason]] = {}
        self.told_aborts: set[int] = set()
        self.next_sequence = 0
        self.sent_s = self.probed_s = -math.inf
        self.asked_s: float | None = None
        self.acknowledged = -1
        self.expected = 0
        self.heard_s = self.trusted_s = -math.inf
        self.work = RankWork(rank)
        self.report_s = -math.inf
        self.num_queued = 0
        self.generations: dict[int, Generation] = {}

    @property
    def takes_work(self) -> bool:
        return self.takes_messages and self.is_connected

    @property
    def takes_messages(self) -> bool:
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
        if not self.takes_messages:  # it is asked when it is back
            return False
        is_unheard = self.acknowledged < self.next_sequence - 1
        if is_unheard and now_s - self.sent_s > silence_s:
            return True
        return min(self.quiet_s(now_s), now_s - self.probed_s) > silence_s

    def note_probe(self, now_s: float) -> None:
        """Notes that it was asked."""
        self.probed_s = now_s
        if self.asked_s is None:
            self.asked_s = now_s

    def is_unanswering(self, now_s: float, suspect_s: float) -> bool:
        """Whether it has owed an answer for so long."""
        return self.asked_s is not None and now_s - self.asked_s > suspect_s

    def is_overdue(self, now_s: float, suspect_s: float) -> bool:
        """Whether its requests have waited long enough: it is silent, and not trusted either."""
        return min(self.quiet_s(now_s), now_s - self.trusted_s) > suspect_s

    def abort(self, request_id: int, reason: FinishReason) -> None:
        """Notes that it shall give up a request, unless it is being told so."""
        if request_id not in self.told_aborts:
            self.unsent_aborts.setdefault(request_id, reason)

    def note_aborts_sent(self, sequence: int) -> None:
        """Notes that the message of this number tells it all that was unsent."""
        self.sent_aborts[sequence] = self.unsent_aborts
        self.told_aborts.update(self.unsent_aborts)
        self.unsent_aborts = {}

    def acknowledge(self, sequence: int, lost: tuple[int, int] | None) -> None:
        """Takes over which messages it has; aborts among the lost ones are to be sent again."""
        self.acknowledged = sequence
        while self.sent_aborts and (first := next(iter(self.sent_aborts))) <= sequence:
            aborts = self.sent_aborts.pop(first)
            self.told_aborts.difference_update(aborts)
            if lost is not None and lost[0] <= first <= lost[1]:
                self.unsent_aborts |= aborts

    def is_unreported(self, generation: Generation) -> bool:
        return generation.sent_s > self.report_s

    def change_work(self, generation: Generation, change: int) -> None:
        """Notes that a generation makes more or less work than before."""
        self.work.own += change
        if generation.sent_s > self.report_s:
            self.work.unreported += change
