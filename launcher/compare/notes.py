"""What else differs between two runs: machine, code, and what was asked for."""

from collections.abc import Iterator

from engine.wording import counted
from launcher.compare.matching import override_values
from launcher.compare.runs import Run

_OF_THE_RUN = ("action", "bench.dir", "compare", "hydra", "name", "frontend.port")
"""Keys that say nothing of what was measured."""
_GIB = 2**30


def notes_on(first: Run, second: Run) -> list[str]:
    """A line for each difference."""
    return [
        *_machines(first, second),
        *_code(first, second),
        *_overrides(first, second),
        *_bottlenecks(first, second),
    ]


def _machines(first: Run, second: Run) -> Iterator[str]:
    one, other = first.environment, second.environment
    for what, a, b in (
        ("CPU", one.cpu, other.cpu),
        ("number of CPUs", str(one.num_cpus), str(other.num_cpus)),
        ("memory", f"{one.memory_bytes / _GIB:.0f} GiB", f"{other.memory_bytes / _GIB:.0f} GiB"),
        ("GPUs", ", ".join(one.gpus) or "none", ", ".join(other.gpus) or "none"),
    ):
        if a != b:
            yield f"another machine, {what}: {a}, then {b}"


def _code(first: Run, second: Run) -> Iterator[str]:
    one, other = first.environment, second.environment
    if one.git_commit != other.git_commit:
        yield f"another commit: {_short(one.git_commit)}, then {_short(other.git_commit)}"
    elif one.git_commit is not None and one.git_commit.endswith("-dirty"):
        yield f"commit {_short(one.git_commit)}: both had changes of their own"
    for name in dict.fromkeys((*one.versions, *other.versions)):
        a, b = one.versions.get(name, "none"), other.versions.get(name, "none")
        if a != b:
            yield f"another version of {name}: {a}, then {b}"


def _bottlenecks(first: Run, second: Run) -> Iterator[str]:
    for which, run in (("first", first), ("second", second)):
        stages = [
            stage for each in run.variants for results in each.results for stage in results.stages
        ]
        if num_bound := sum(stage.client.is_bottleneck for stage in stages):
            of = f"{num_bound} of {counted(len(stages), 'stage')} of the {which}"
            yield f"the client may be the bottleneck in {of}"


def _short(commit: str | None) -> str:
    if commit is None:
        return "none"
    name, _, dirty = commit.partition("-")
    return f"{name[:12]}-{dirty}" if dirty else name[:12]


def _overrides(first: Run, second: Run) -> Iterator[str]:
    """Keys with one value in each run, and not the same."""
    one, other = _common(first), _common(second)
    for key in dict.fromkeys((*one, *other)):
        a, b = one.get(key, "not set"), other.get(key, "not set")
        if a != b:
            yield f"another {key}: {a}, then {b}"


def _common(run: Run) -> dict[str, str]:
    """What all variants of a run were asked for alike."""
    swept = {key for variant in run.variants for key in variant.swept}
    return {
        key: value
        for key, value in override_values(run.variants[0].overrides).items()
        if key not in swept and key not in _OF_THE_RUN and key.partition(".")[0] not in _OF_THE_RUN
    }
