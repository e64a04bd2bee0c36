"""Metrics of one process: what they are called, how they are counted, how they travel.

Pure: no sockets, no clock. A process counts into `Metrics`, its link sends `values()` to the
coordinator, front ends render what the coordinator publishes (engine/frontend/exposition.py).
"""

import msgspec


class MetricValue(msgspec.Struct, frozen=True, array_like=True):
    """One metric with one set of label values."""

    name: str
    labels: tuple[str, ...]
    """Values of the metric's own labels, in its order; rank, front end and model come by sender."""
    value: float
    """Of a counter or gauge; of a histogram the sum of what was observed."""
    counts: tuple[int, ...] = ()
    """Of a histogram: observations in each bucket, the last being those above all bounds."""
