"""The jobs of a sweep as they were composed: what they share, in what they differ. No processes."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import msgspec
from hydra.core.override_parser.types import Quote, QuotedString

from launcher.api_keys import without_keys
from launcher.config import LaunchConfig
from launcher.config_checks import check
from launcher.errors import Refused

_OF_THE_SWEEP = ("sweep", "bench.repeat", "bench.dir")
"""Keys and sections that say how a sweep is run, and nothing of what is measured."""
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9/._-]*")
_WORDS = ("null", "true", "false", "inf", "nan")
"""What Hydra takes for something else than text."""


@dataclass(frozen=True, slots=True)
class Job:
    overrides: tuple[str, ...]
    """As `python -m launcher` takes them, sweeps resolved to one choice each."""
    config: LaunchConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Typed:
    """The command line that a sweep comes of."""

    flags: tuple[str, ...]
    """That say where configs are; each job needs them too."""
    overrides: tuple[str, ...]
    is_multirun: bool

    def again(self, directory: str) -> list[str]:
        """The command line that goes on with the sweep in a directory, less API keys."""
        typed = without_keys(self.overrides)
        others = [text for text in typed if _key(text) != "sweep.dir"]
        multirun = ["-m"] if self.is_multirun else []
        where = quoted("sweep.dir", directory)
        return ["python", "-m", "launcher", *self.flags, *multirun, *others, where]


def check_jobs(jobs: Sequence[Job]) -> None:
    """Looks at the config of every job, before the first one is run.

    Raises:
        Refused: All that is wrong, each thing once, with the job that has it first.
    """
    actions = list(dict.fromkeys(job.config.action.name for job in jobs))
    if len(actions) > 1:
        message = "action must be the same for all jobs of a sweep"
        raise Refused(f"{message}: {','.join(actions)}", f"action={actions[0]}")
    swept = swept_keys(jobs)
    texts = [text for job in jobs for text in job.overrides if _key(text) in swept]
    if without_keys(texts) != texts:  # nothing that may be written down tells the jobs apart
        raise Refused(
            "frontend.api_keys takes one value, for the whole sweep",
            "frontend.api_key_file=FILE,FILE: names of files may be shown",
        )
    refuse_all(jobs, [_problem(job) for job in jobs])


def refuse_all(jobs: Sequence[Job], problems: Sequence[Refused | None]) -> None:
    """Raises what is wrong with any of the jobs, if there is something.

    Raises:
        Refused: The same problem of several jobs is told once.
    """
    found: dict[str, Refused] = {}
    swept = swept_keys(jobs)
    for job, problem in zip(jobs, problems, strict=True):
        if problem is None or any(str(problem) == str(other) for other in found.values()):
            continue
        mine = " ".join(text for text in job.overrides if _key(text) in swept)
        found[mine] = problem
    if not found:
        return
    if len(jobs) == 1:
        raise next(iter(found.values()))
    lines = [f"{name}: {problem}" if name else str(problem) for name, problem in found.items()]
    hints = dict.fromkeys(problem.hint for problem in found.values() if problem.hint)
    raise Refused("\n".join(lines), "; ".join(hints))


def variants_of_jobs(jobs: Sequence[Job]) -> list[Job]:
    """The jobs without what says how the sweep is run; of equal ones the first.

    Raises:
        Refused: The jobs differ in how the sweep is run.
    """
    for key in swept_keys(jobs):
        if _is_of_the_sweep(key):
            raise Refused(f"{key} takes one value, for the whole sweep", f"{key}=... with one")
    variants: dict[tuple[str, ...], Job] = {}
    for job in jobs:
        kept = tuple(text for text in job.overrides if not _is_of_the_sweep(_key(text)))
        variants.setdefault(kept, replace(job, overrides=kept))
    return list(variants.values())


def swept_keys(jobs: Sequence[Job]) -> list[str]:
    """The keys whose values differ between the jobs, in the order typed."""
    values: dict[str, set[str]] = {}
    for job in jobs:
        for text in job.overrides:
            values.setdefault(_key(text), set()).add(text.partition("=")[2])
    return [key for key, different in values.items() if len(different) > 1]


def swept_values(job: Job, keys: Sequence[str]) -> dict[str, str]:
    values = {_key(text): text.partition("=")[2] for text in job.overrides}
    return {key: values[key] for key in keys if key in values}


def measured_config(config: LaunchConfig) -> dict[str, Any]:
    """All of a config that says what is measured, as plain values: equal ones measure the same."""
    values = asdict(config) if config.bench.url is None else {"bench": asdict(config.bench)}
    values.get("frontend", {}).pop("api_keys", None)  # they are not written down
    as_in_a_file: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(values))
    return without_the_sweep(as_in_a_file)


def without_the_sweep(config: dict[str, Any]) -> dict[str, Any]:
    """A config, as results have it, less what says how a sweep is run."""
    bench = {key: value for key, value in config["bench"].items() if key not in ("dir", "repeat")}
    return {key: value for key, value in config.items() if key != "sweep"} | {"bench": bench}


def quoted(key: str, value: str) -> str:
    """An override whose value Hydra takes as it stands."""
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return f"{key}={value}"
    # `${` would begin an interpolation. OmegaConf halves the backslashes before it.
    literal = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    return f"{key}={QuotedString(literal, Quote.double).with_quotes()}"


def _problem(job: Job) -> Refused | None:
    try:
        check(job.config)
    except Refused as problem:
        return problem
    return None


def _is_of_the_sweep(key: str) -> bool:
    return key in _OF_THE_SWEEP or key.partition(".")[0] in _OF_THE_SWEEP


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")
