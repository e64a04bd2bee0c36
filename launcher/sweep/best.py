"""Which variant of a sweep is the one to serve."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from engine.wording import counted
from launcher.sweep.metrics import METRICS, Metric
from launcher.sweep.variants import Point

_NOT_SERVED = ("action", "bench", "compare", "hydra", "smoke")
"""Keys and sections that serving does not read."""


SLO_HINT = "to set an SLO: bench.slo.ttft_ms=MS bench.slo.tpot_ms=MS; then most goodput is best"


@dataclass(frozen=True, slots=True)
class Best:
    point: Point
    metric: Metric
    """That it has most of."""
    has_slo: bool
    meets_slo: bool
    """At least one request was within it; True without an SLO."""
    num_rivals: int | None
    """Other variants whose repetitions overlap with its own; None: it was measured once."""

    @property
    def why(self) -> str:
        """`highest goodput under the SLO: 12.50 req/s, 98% of the requests`."""
        value = self.point.median(self.metric) or 0.0
        if not self.has_slo:
            return f"highest output: {value:.1f} tok/s; no SLO is set"
        if not self.meets_slo:
            return f"no request was within the SLO; highest output: {value:.1f} tok/s"
        requests = self.point.median(METRICS["req_s"]) or value
        within = min(1.0, value / requests)
        return f"highest goodput under the SLO: {value:.2f} req/s, {within:.0%} of the requests"

    @property
    def certainty(self) -> str:
        """Whether measuring again could choose another one."""
        match self.num_rivals:
            case None:
                return "measured once: the spread is not known, bench.repeat=3 shows it"
            case 0:
                return "ahead of all other variants by more than the spread of the repetitions"
            case number:
                others = counted(number, "other variant")
                return f"the repetitions of {others} overlap with its own: they may be as good"

    @property
    def hints(self) -> list[str]:
        return [self.certainty, *([] if self.has_slo else [SLO_HINT])]

    @property
    def command(self) -> str | None:
        """What serves it; None: it was a server that ran already."""
        return serving_command(self.point.variant.overrides)


def best_point(points: Sequence[Point]) -> Best | None:
    """Of most goodput; where no SLO is set, or nothing meets it, of most output. None: no points.

    Of equal ones the first.
    """
    goodput, output = METRICS["goodput_req_s"], METRICS["output_tok_s"]
    has_slo = any(point.median(goodput) is not None for point in points)
    meets_slo = not has_slo or any(point.median(goodput) for point in points)
    metric = goodput if has_slo and meets_slo else output
    of = [
        (point, value, point.median(output) or 0.0)
        for point in points
        if (value := point.median(metric)) is not None
    ]
    if not of:
        return None
    point, _, _ = max(of, key=lambda each: each[1:])
    return Best(point, metric, has_slo, meets_slo, _num_rivals(point, metric, points))


def _num_rivals(best: Point, metric: Metric, points: Sequence[Point]) -> int | None:
    spread = best.spread(metric)
    if spread is None or spread.num == 1:
        return None
    rivals = {
        point.variant.number
        for point in points
        if (other := point.spread(metric)) is not None and other.high >= spread.low
    }
    return len(rivals - {best.variant.number})


def serving_command(overrides: Sequence[str]) -> str | None:
    """The command line that serves what was measured with these overrides.

    None: it was a server that ran already.
    """
    keys = {text: text.lstrip("+~").partition("=")[0] for text in overrides}
    if "bench.url" in keys.values():
        return None
    served = [text for text, key in keys.items() if key.partition(".")[0] not in _NOT_SERVED]
    if "ci" in keys.values():  # these configs choose another action
        served.insert(0, "action=serve")
    return shlex.join(["python", "-m", "launcher", *served])
