"""Which variants of two runs are the same."""

from collections.abc import Sequence
from typing import NamedTuple

from launcher.compare.runs import Run
from launcher.sweep.rows import Outcome
from launcher.sweep.variants import Variant


class Pair(NamedTuple):
    name: str
    """In what it differs from other variants; empty: there is one."""
    first: Variant
    second: Variant


def matched(first: Run, second: Run) -> tuple[list[Pair], list[str], list[str]]:
    """Variants are the same if they agree in every key that either run sweeps.

    Returns:
        What both have valid results of; a line for each variant that only one has, or that was not
        always valid; a line for each whose results are valid in the first alone.
    """
    keys = list(
        dict.fromkeys(
            key for run in (first, second) for variant in run.variants for key in variant.swept
        )
    )
    of_first, of_second = _by_name(first.variants, keys), _by_name(second.variants, keys)
    pairs, lines, no_longer_valid = [], [], []
    for name, one in of_first.items():
        other = of_second.get(name)
        if other is None:
            lines.append(f"only the first has {name or 'its variant'}")
        elif one.results and other.results:
            pairs.append(Pair(name, one, other))
            lines += _partly_valid(name, one, other)
        elif one.results:
            row = other.rows[0]
            no_longer_valid.append(f"{name}: {row.outcome.value.replace('_', ' ')}: {row.said}")
        elif other.results:
            lines.append(f"only the second has valid results of {name}")
        else:
            lines.append(f"neither has valid results of {name}")
    lines += [f"only the second has {name}" for name in of_second if name not in of_first]
    return pairs, lines, no_longer_valid


def override_values(overrides: Sequence[str]) -> dict[str, str]:
    """Values by key; of a key typed twice the last."""
    split = (text.partition("=") for text in overrides)
    return {key.lstrip("+"): value for key, _, value in split}


def _by_name(variants: Sequence[Variant], keys: Sequence[str]) -> dict[str, Variant]:
    named = {}
    for variant in variants:
        values = {**override_values(variant.overrides), **variant.swept}
        named[" ".join(f"{key}={values[key]}" for key in keys if key in values)] = variant
    return named


def _partly_valid(name: str, first: Variant, second: Variant) -> list[str]:
    lines = []
    for which, variant in (("first", first), ("second", second)):
        num_valid = sum(row.outcome is Outcome.valid for row in variant.rows)
        if num_valid < len(variant.rows):
            lines.append(
                f"{num_valid} of {len(variant.rows)} jobs of {name} are valid in the {which}"
            )
    return lines
