"""What the options of `compare` can have wrong."""

import difflib
from collections.abc import Iterator

from launcher.compare.options import CompareOptions
from launcher.config_errors import Problem
from launcher.sweep.metrics import METRICS


def broken_compare_rules(options: CompareOptions) -> Iterator[Problem]:
    """All that is wrong, each with an override that mends it."""
    if len(options.runs) != 2:
        given = ",".join(options.runs)
        message = f"compare.runs must be two results or two sweeps: [{given}]"
        yield Problem(message, "compare.runs=[A,B]")
    for key in options.metrics:
        if key not in METRICS:
            close = difflib.get_close_matches(key, METRICS, n=1, cutoff=0.3)
            works = f"compare.metrics=[{(close or ['output_tok_s'])[0]}]"
            yield Problem(f"compare.metrics has a figure that there is not: {key}", works)
