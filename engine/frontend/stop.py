"""Stop strings, looked for in text that comes piece by piece."""

from collections.abc import Sequence


class StopMatcher:
    """Finds the first stop string in a stream of text, however the text is cut into pieces.

    First is the one that is complete first; of two that end at the same place the longer. Text that
    may be the beginning of a stop string is held back until more text decides.

    Args:
        includes_stop: The text ends after the stop string, else before it.

    Attributes:
        found: The stop string; None: not yet.
    """

    def __init__(self, stops: Sequence[str], includes_stop: bool = False) -> None:
        assert all(stops), "an empty stop string matches everywhere"
        self._stops = tuple(stops)
        self._includes_stop = includes_stop
        self._held = ""
        self.found: str | None = None

    @property
    def stopped(self) -> bool:
        return self.found is not None

    def add(self, piece: str) -> str:
        """Text that may be sent now; nothing any more once `stopped`."""
        if not self._stops:
            return piece
        if self.stopped:
            return ""
        text = self._held + piece
        match = _first_match(text, self._stops)
        if match is not None:
            self.found = text[match[0] : match[1]]
            self._held = ""
            return text[: match[self._includes_stop]]
        safe = len(text) - _longest_beginning(text, self._stops)
        self._held = text[safe:]
        return text[:safe]

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


def _first_match(text: str, stops: Sequence[str]) -> tuple[int, int] | None:
    """Where the stop string that is complete first begins and ends."""
    found = [(start + len(stop), start) for stop in stops if (start := text.find(stop)) >= 0]
    if not found:
        return None
    end, start = min(found)
    return start, end


def _longest_beginning(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of the text with which a stop string begins."""
    longest = min(len(text), max(map(len, stops)) - 1)
    ends = (length for length in range(longest, 0, -1) if _begins(text, length, stops))
    return next(ends, 0)


def _begins(text: str, length: int, stops: Sequence[str]) -> bool:
    return any(stop.startswith(text[-length:]) for stop in stops)
