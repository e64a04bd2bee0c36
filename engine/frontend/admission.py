"""Who may come in, and when the last one has gone."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from engine.frontend.errors import Draining, Overloaded
from engine.wording import counted

logger = logging.getLogger(__name__)


class Admission:
    """Counts the requests whose answers have not been sent completely.

    Args:
        max_requests: So many at most are inside at the same time.
        on_idle: Called when draining and nobody is inside.
        on_count: Called with their number whenever it changes.
    """

    def __init__(
        self, max_requests: int, on_idle: Callable[[], None], on_count: Callable[[int], None]
    ) -> None:
        self._max_requests = max_requests
        self._on_idle = on_idle
        self._on_count = on_count
        self._is_draining = False
        self.num_inside = 0

    @contextmanager
    def entered(self) -> Iterator[None]:
        """One request being answered.

        Raises:
            Draining: Nobody comes in any more.
            Overloaded: There are too many already.
        """
        if self._is_draining:
            raise Draining("This server is about to end.", code="draining")
        if self.num_inside >= self._max_requests:
            message = f"{self.num_inside} requests are in flight: frontend.max_requests."
            raise Overloaded(message)
        self.num_inside += 1
        self._on_count(self.num_inside)
        try:
            yield
        finally:
            self.num_inside -= 1
            self._on_count(self.num_inside)
            self._tell_if_idle()

    def drain(self) -> None:
        """Lets nobody in from now on. Each call tells again when it is idle."""
        if not self._is_draining:
            logger.info("draining: %s in flight, no new ones", counted(self.num_inside, "request"))
        self._is_draining = True
        self._tell_if_idle()

    def open(self) -> None:
        self._is_draining = False

    def _tell_if_idle(self) -> None:
        if self._is_draining and not self.num_inside:
            self._on_idle()
