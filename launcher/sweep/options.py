"""The options of `sweep`: names, types, defaults, units and limits."""

from dataclasses import dataclass

from engine.config import option


@dataclass(slots=True, kw_only=True)
class SweepOptions:
    dir: str | None = None
    """Directory of a sweep with `action=bench`: of a new one, or of one that goes on, whose valid
    rows are kept; null: outputs/sweep/DATE_TIME-NAME."""
    timeout_s: float = option(3600.0, gt=0, le=604800)
    """Seconds that each job of a sweep may take, start and end included."""
    end_s: float = option(60.0, gt=0, le=86400)
    """Seconds that a job which took too long gets to end by itself, before it is killed."""
