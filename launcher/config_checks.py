"""What a config of the right shape can still have wrong: limits, options that need each other."""

import dataclasses
import math
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import Any

from engine.config import ModelKind
from launcher.bench.checks import broken_bench_rules
from launcher.compare.checks import broken_compare_rules
from launcher.config import (
    Action,
    AutoClusterOptions,
    EmulatedClusterOptions,
    ExistingClusterOptions,
    FileClusterOptions,
    LaunchConfig,
    MpOptions,
    PlanFormat,
    RayOptions,
    SmokeFormat,
    StatusFormat,
    Strategy,
    TopologyKind,
)
from launcher.config_errors import Problem, refusal
from launcher.config_options import default_of
from launcher.ports import EPHEMERAL, MOST, num_ports_needed, parse_ports
from launcher.sizes import parse_bytes

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
KEY = re.compile(r"[\x21-\x7e]+")
"""An API key, as a header carries it after `Bearer `."""
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#@]+", re.ASCII)
"""Scheme, host and perhaps a port, as browsers send it."""
LIMITS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "ge": ("at least", lambda value, limit: value >= limit),
    "gt": ("more than", lambda value, limit: value > limit),
    "le": ("at most", lambda value, limit: value <= limit),
}
MODEL_OPTIONS = {
    "path": ModelKind.path,
    "repo": ModelKind.hub,
    "revision": ModelKind.hub,
    "seed": ModelKind.tiny,
}
"""Options of `model` that one choice alone reads."""
READ = {
    Action.status: ("action", "name", "ci", "status"),
    Action.stop: ("action", "name", "ci", "stop"),
    Action.bench: ("action", "name", "ci", "bench"),
    Action.compare: ("action", "ci", "compare"),
}
"""Keys and sections that the actions without a plan read (bench: on `bench.url`); `ci` can bring a
name."""


def check(config: LaunchConfig) -> None:
    """Looks at every limit and every rule that needs neither the model nor the cluster.

    Raises:
        Refused: All that is wrong, with overrides that mend it.
    """
    rules = _names if needs_no_plan(config) else _broken_rules
    problems = [*_out_of_range(config, ""), *rules(config)]
    if config.action is Action.bench:
        problems += broken_bench_rules(config.bench)
    if config.action is Action.compare:
        problems += broken_compare_rules(config.compare)
    if problems:
        raise refusal(problems)


def needs_no_plan(config: LaunchConfig) -> bool:
    """Whether the action is on something that runs already, or that was measured."""
    if config.action is Action.bench:
        return config.bench.url is not None
    return config.action in READ


def without_effect(config: LaunchConfig) -> list[str]:
    """A line for each option that was set and is not read."""
    model, default = config.model, type(config.model)()
    lines = [
        f"model.{name}={getattr(model, name)} has no effect with model={model.kind.name}"
        for name, kind in MODEL_OPTIONS.items()
        if kind is not model.kind and getattr(model, name) != getattr(default, name)
    ]
    lines += _placement_without_effect(config)
    if config.plan.format is not PlanFormat.table and config.action is not Action.plan:
        lines.append(f"plan.format={config.plan.format.name} has no effect without action=plan")
    if config.status.format is not StatusFormat.table:
        format = config.status.format.name
        lines.append(f"status.format={format} has no effect without action=status")
    if config.stop.force:
        lines.append("stop.force=true has no effect without action=stop")
    if config.smoke.format is not SmokeFormat.table and config.action is not Action.smoke:
        lines.append(f"smoke.format={config.smoke.format.name} has no effect without action=smoke")
    lines += _bench_without_effect(config)
    if config.compare.runs:
        lines.append(
            f"compare.runs=[{','.join(config.compare.runs)}] has no effect without action=compare"
        )
    return lines


def not_read(action: Action, overrides: Sequence[str]) -> list[str]:
    """A line for each override that an action without a plan does not read."""
    keys = {text: text.lstrip("+~").partition("=")[0].partition(".")[0] for text in overrides}
    lines = [text for text, key in keys.items() if key not in (*READ[action], "hydra")]
    of = "bench.url" if action is Action.bench else f"action={action.name}"
    return [f"{text} has no effect with {of}" for text in lines]


def _bench_without_effect(config: LaunchConfig) -> Iterator[str]:
    bench = config.bench
    if config.action is not Action.bench:
        if bench.url is not None:
            yield f"bench.url={bench.url} has no effect without action=bench"
    elif bench.url is None:
        for name in ("model", "api_key_file", "pid"):
            if getattr(bench, name) is not None:
                yield f"bench.{name}={getattr(bench, name)} has no effect without bench.url"


def _placement_without_effect(config: LaunchConfig) -> Iterator[str]:
    backend, cluster, topology = config.backend, config.cluster, config.topology
    is_found = isinstance(cluster, AutoClusterOptions | ExistingClusterOptions)
    if isinstance(backend, RayOptions) and backend.address is not None and not is_found:
        address = f"backend.address={backend.address}"
        yield f"{address} has no effect with cluster={cluster.choice}"
    if topology.kind is TopologyKind.head_only and topology.strategy is not Strategy.fill:
        strategy = f"topology.strategy={topology.strategy.name}"
        yield f"{strategy} has no effect with topology=head_only"
    if config.ports != EPHEMERAL and isinstance(backend, MpOptions):
        yield f"ports={config.ports} has no effect with backend=mp"


def _out_of_range(section: Any, prefix: str) -> Iterator[Problem]:
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        key = prefix + field.name
        if dataclasses.is_dataclass(value):
            yield from _out_of_range(value, key + ".")
        elif isinstance(value, list):
            for each in value:
                yield from _out_of_limits(key, each, field, "each number of ")
        else:
            yield from _out_of_limits(key, value, field)


def _out_of_limits(
    key: str, value: Any, field: dataclasses.Field[Any], of: str = ""
) -> Iterator[Problem]:
    default = default_of(field)
    works = f"[{','.join(map(str, default or [1]))}]" if isinstance(default, list) else default
    if isinstance(value, float) and not math.isfinite(value):
        yield Problem(f"{of}{key} must be a finite number: {value}", f"{key}={works}")
    elif value is not None and not isinstance(value, Enum):
        for limit, bound in field.metadata.items():
            words, holds = LIMITS[limit]
            if not holds(value, bound):
                least = "null" if limit == "gt" else bound  # which itself is too little
                override = f"{key}={least if works is None else works}"
                yield Problem(f"{of}{key} must be {words} {bound}: {value}", override)


def _broken_rules(config: LaunchConfig) -> Iterator[Problem]:
    yield from _names(config)
    yield from _missing_sources(config)
    yield from _backend(config)
    yield from _ranks_on_head(config)
    yield from _ports(config)
    yield from _web(config)
    yield from _batch_and_cache(config)
    if config.tp > 1 and config.action is not Action.plan:
        message = f"tp must be 1 with action={config.action.name}, more can only be planned yet"
        yield Problem(f"{message}: {config.tp}", "tp=1")
    yield from _silence(config)
    if config.health.min_ranks > config.dp > 0:
        yield Problem(
            f"health.min_ranks must be at most dp ({config.dp}): {config.health.min_ranks}",
            f"health.min_ranks={config.dp}",
        )


def _names(config: LaunchConfig) -> Iterator[Problem]:
    if not NAME.fullmatch(config.name):
        slug = re.sub(r"[^a-z0-9]+", "-", config.name.lower()).strip("-")[:40] or "flotilla"
        rule = "lower-case letters, digits and hyphens, no hyphen first, at most 40"
        yield Problem(f"name must be {rule}: {config.name}", f"name={slug}")
    if not config.frontend.host:
        yield Problem("frontend.host must be an address: (empty)", "frontend.host=127.0.0.1")


def _missing_sources(config: LaunchConfig) -> Iterator[Problem]:
    model, cluster = config.model, config.cluster
    if model.kind is ModelKind.path and not model.path:
        yield Problem("model.path must be a directory with model=path: null", "model.path=DIR")
    if model.kind is ModelKind.hub and not model.repo:
        yield Problem(
            "model.repo must be a repository with model=hub: null", "model.repo=OWNER/NAME"
        )
    if not isinstance(cluster, FileClusterOptions):
        return
    if not cluster.path:
        yield Problem("cluster.path must be a file with cluster=file: null", "cluster.path=FILE")
    if config.action is not Action.plan:
        message = "cluster=file is an inventory to plan for, it cannot"
        yield Problem(f"{message} run: action={config.action.name}", "action=plan")


def _backend(config: LaunchConfig) -> Iterator[Problem]:
    if not isinstance(config.backend, MpOptions):
        return
    topology, cluster = config.topology.kind, config.cluster
    if topology is not TopologyKind.head_only:
        must = f"ray with topology={topology.name}, mp uses the head alone"
        yield Problem(f"backend must be {must}: mp", "topology=head_only, or backend=ray")
    elif isinstance(cluster, ExistingClusterOptions | EmulatedClusterOptions):
        must = f"ray with cluster={cluster.choice}, mp uses this machine as it is"
        yield Problem(f"backend must be {must}: mp", "cluster=auto, or backend=ray")


def _ranks_on_head(config: LaunchConfig) -> Iterator[Problem]:
    dp, dp_local = config.dp, config.topology.dp_local
    if config.topology.kind is TopologyKind.split and dp == 1:
        yield Problem("dp must be at least 2 with topology=split: 1", "topology=head_only, or dp=2")
        return
    if dp_local is None:
        return
    match config.topology.kind:
        case TopologyKind.head_only if dp_local != dp:
            must, works = f"dp ({dp}) with topology=head_only", dp
        case TopologyKind.remote_only if dp_local != 0:
            must, works = "0 with topology=remote_only", 0
        case _ if not 0 <= dp_local <= dp:
            must, works = f"between 0 and dp ({dp})", min(max(0, dp_local), dp)
        case _:
            return
    yield Problem(f"topology.dp_local must be {must}: {dp_local}", f"topology.dp_local={works}")


def _ports(config: LaunchConfig) -> Iterator[Problem]:
    try:
        ports = parse_ports(config.ports)
    except ValueError:
        rule = f"{EPHEMERAL}, or a range such as 40000-40031"
        yield Problem(f"ports must be {rule}: {config.ports or '(empty)'}", f"ports={EPHEMERAL}")
        return
    if ports is None:
        return
    first, last = ports
    needed = num_ports_needed(config.frontend.count)
    if last - first + 1 < needed:
        from_first = min(first, MOST - needed + 1)
        message = f"ports must hold {needed} ports with frontend.count={config.frontend.count}"
        override = f"ports={from_first}-{from_first + needed - 1}"
        yield Problem(f"{message}: {config.ports}", override)
    if first <= config.frontend.port <= last:
        free = next(port for port in (8000, first - 1, last + 1) if not first <= port <= last)
        message = f"frontend.port must not be one of ports ({config.ports})"
        yield Problem(f"{message}: {config.frontend.port}", f"frontend.port={free}")


def _silence(config: LaunchConfig) -> Iterator[Problem]:
    """Silence has to be told from a heartbeat that is late, and from a look that is."""
    silence, heartbeat = config.health.silence_s, config.health.heartbeat_s
    if silence < 2 * heartbeat:
        yield Problem(
            f"health.silence_s must be at least twice health.heartbeat_s ({heartbeat}): {silence}",
            f"health.silence_s={5 * heartbeat}",
        )
    elif config.coordinator.interval_s > silence / 4:
        yield Problem(
            f"coordinator.interval_s must be at most a quarter of health.silence_s ({silence}):"
            f" {config.coordinator.interval_s}",
            f"health.silence_s={4 * config.coordinator.interval_s:g}",
        )


def _web(config: LaunchConfig) -> Iterator[Problem]:
    if not all(KEY.fullmatch(key) for key in config.frontend.api_keys):  # never repeated
        rule = "printable ASCII without spaces, each at least one character"
        yield Problem(f"frontend.api_keys must be {rule}", "frontend.api_keys=[KEY]")
    for origin in config.frontend.cors_origins:
        if origin != "*" and not ORIGIN.fullmatch(origin):
            rule = "origins such as https://chat.example.org, or *"
            yield Problem(
                f"frontend.cors_origins must be {rule}: {origin}",
                "'frontend.cors_origins=[https://chat.example.org]'",
            )


def _batch_and_cache(config: LaunchConfig) -> Iterator[Problem]:
    profile = config.profile
    if 0 < profile.max_num_batched_tokens < profile.max_num_seqs:
        # Each running request takes at least one token of a step.
        yield Problem(
            "profile.max_num_batched_tokens must be at least profile.max_num_seqs"
            f" ({profile.max_num_seqs}): {profile.max_num_batched_tokens}",
            f"profile.max_num_seqs={profile.max_num_batched_tokens}",
        )
    if profile.kv_cache_bytes != "auto" and not _is_size(profile.kv_cache_bytes):
        shown = shlex.quote(profile.kv_cache_bytes)
        yield Problem(
            f"profile.kv_cache_bytes must be auto or a size such as 512MiB: {shown}",
            "profile.kv_cache_bytes=auto",
        )


def _is_size(text: str) -> bool:
    try:
        return parse_bytes(text) > 0
    except ValueError:
        return False
