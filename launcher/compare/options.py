"""The options of `compare`: names, types, defaults, limits."""

from dataclasses import dataclass, field
from enum import Enum

from engine.config import option


class CompareFormat(Enum):
    table = "table"
    markdown = "markdown"
    json = "json"


@dataclass(slots=True, kw_only=True)
class CompareOptions:
    runs: list[str] = field(default_factory=list)
    """Two results of benchmarks, or two sweeps: their directories or files. `action=compare` says
    whether the second is worse than the first."""
    tolerance: float = option(0.05, ge=0)
    """Part of a figure by which the second may be worse; 0.05: five percent."""
    metrics: list[str] = field(default_factory=list)
    """Figures that are compared; none: output_tok_s, ttft_ms.p50, tpot_ms.p50, e2e_ms.p50. There
    are output_tok_s, total_tok_s, req_s, goodput_req_s, prefix_hit_rate,
    rank_skew, pss_mib, cpus, and ttft_ms, tpot_ms, itl_ms and e2e_ms with .mean, .p50, .p90, .p99
    or .max."""
    format: CompareFormat = CompareFormat.table
    """How `action=compare` prints: table, markdown, json."""
