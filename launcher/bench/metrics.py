"""What a server says of itself at `/metrics`: Flotilla's names, which are vLLM's too."""

import re
from collections import defaultdict
from dataclasses import dataclass, field

from launcher.bench.measure import skew
from launcher.bench.results import RankTokens

_SAMPLE = re.compile(r"(?:flotilla|vllm):(\w+)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
OUTPUT_TOKENS = "generation_tokens_total"
_OF_RANKS = {
    OUTPUT_TOKENS,
    "prompt_tokens_total",
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
}
_PHASES = "startup_phase_seconds"


@dataclass(slots=True)
class Page:
    """One scrape."""

    ranks: dict[int, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    """Counters of each rank by name."""
    phases_s: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    """Seconds of each phase of the start, by process."""
    has_ranks: bool = False
    """It is of a server whose ranks report, if they have not yet."""

    def total(self, name: str) -> float | None:
        """Over all ranks; None: no rank has it."""
        values = [counters[name] for counters in self.ranks.values() if name in counters]
        return sum(values) if values else None


def parse_metrics(text: str) -> Page:
    """What is of use here; everything else is skipped."""
    page = Page()
    for line in text.splitlines():
        sample = _SAMPLE.match(line)
        if sample is None:
            continue
        page.has_ranks = True
        if sample[1] not in (*_OF_RANKS, _PHASES):
            continue
        labels: dict[str, str] = dict(_LABEL.findall(sample[2] or ""))
        value = float(sample[3])
        rank = labels.get("rank", labels.get("engine", ""))
        if sample[1] == _PHASES:
            process = f"rank {rank}" if rank else labels.get("frontend", "coordinator")
            page.phases_s[process][labels.get("phase", "")] = value
        elif rank.isdigit():
            page.ranks[int(rank)][sample[1]] = value
    return page


def prefix_hit_rate(before: Page, after: Page) -> float | None:
    """Part of the prompt tokens that were found in the prefix cache between two scrapes."""
    queries = _sum("prefix_cache_queries_total", before, after)
    hits = _sum("prefix_cache_hits_total", before, after)
    return hits / queries if queries and hits is not None else None


def rank_tokens(before: Page, after: Page) -> list[RankTokens]:
    """What each rank computed between two scrapes."""

    def grown(rank: int, name: str) -> int:
        return int(_grown(name, rank, before, after) or 0)

    return [
        RankTokens(
            rank=rank,
            num_prompt_tokens=grown(rank, "prompt_tokens_total"),
            num_output_tokens=grown(rank, OUTPUT_TOKENS),
        )
        for rank in sorted(after.ranks)
    ]


def rank_skew(ranks: list[RankTokens]) -> float | None:
    return skew([each.num_output_tokens for each in ranks])


def _sum(name: str, before: Page, after: Page) -> float | None:
    """Over all ranks; None: no rank has it."""
    grown = [_grown(name, rank, before, after) for rank in after.ranks]
    return sum(known) if (known := [each for each in grown if each is not None]) else None


def _grown(name: str, rank: int, before: Page, after: Page) -> float | None:
    now = after.ranks[rank].get(name)
    if now is None:
        return None
    was = before.ranks.get(rank, {}).get(name, 0.0)
    return now - was if now >= was else now  # a rank that was started again counts from 0
