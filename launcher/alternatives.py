"""The nearest overrides that do fit when a plan does not, each tried by the planner itself."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from engine.config import Device, DType, Quantization
from engine.model.facts import ModelFacts
from launcher.config import LaunchConfig, MpOptions, RayOptions, Strategy, TopologyKind
from launcher.placement import ranks_on_head
from launcher.shortage import Room

Fits = Callable[[LaunchConfig], bool]
"""Whether the planner accepts a config."""
Change = tuple[str, LaunchConfig]
"""An override, and the config that it gives."""

_MAX_TRIES = 32
"""Numbers of ranks that are tried one by one."""


def alternatives(config: LaunchConfig, facts: ModelFacts, room: Room, fits: Fits) -> list[str]:
    """Overrides that change one thing of a config that does not fit, and fit.

    Args:
        config: What does not fit.
        facts: Of the model.
        room: What there is room for.
        fits: Asks the planner.
    """
    changes = [
        *_fewer_ranks(config, room, fits),
        *_first(_other_shares_of_the_head(config, room), fits),
        *_other_placement(config),
        *_other_numbers_of_workers(config, facts),
        *_other_sizes(config),
    ]
    return [override for override, wanted in changes if fits(wanted)]


def _first(changes: Iterable[Change], fits: Fits) -> Iterator[Change]:
    """The nearest that fits."""
    fitting = next((change for change in changes if fits(change[1])), None)
    if fitting:
        yield fitting


def _fewer_ranks(config: LaunchConfig, room: Room, fits: Fits) -> Iterator[Change]:
    """The most ranks that fit; with fewer of them on the head if that makes it more."""
    kept, asked = _most_ranks(config, room, fits), ranks_on_head(config)
    is_split = config.topology.kind in (TopologyKind.split, TopologyKind.auto)
    if is_split and room.on_head is not None and asked is not None and room.on_head < asked:
        topology = replace(config.topology, dp_local=room.on_head)
        moved = _most_ranks(replace(config, topology=topology), room, fits)
        if moved and (kept is None or moved[1].dp > kept[1].dp):
            wanted = moved[1]
            kept = f"dp={wanted.dp} topology.dp_local={wanted.topology.dp_local}", wanted
    if kept:
        yield kept


def _most_ranks(config: LaunchConfig, room: Room, fits: Fits) -> Change | None:
    most = config.dp - 1 if room.ranks is None else min(config.dp - 1, room.ranks)
    fewest = 2 if config.topology.kind is TopologyKind.split else 1
    if config.topology.strategy is Strategy.strict:  # one more rank can be what makes it even
        fewer = range(most, max(fewest - 1, most - _MAX_TRIES), -1)
        return next(_first((_with_dp(config, dp) for dp in fewer), fits), None)
    low, high = 0, most + 1  # bisected, since fewer ranks never need more
    if most and fits(_with_dp(config, most)[1]):
        low = most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(_with_dp(config, middle)[1]) else (low, middle)
    return _with_dp(config, low) if low >= fewest else None


def _with_dp(config: LaunchConfig, dp: int) -> Change:
    """With `dp_local` as it is, as far as that is possible."""
    local = config.topology.dp_local
    if local is None or (local <= dp and config.topology.kind is not TopologyKind.head_only):
        return f"dp={dp}", replace(config, dp=dp)
    topology = replace(config.topology, dp_local=dp)
    return f"dp={dp} topology.dp_local={dp}", replace(config, dp=dp, topology=topology)


def _other_shares_of_the_head(config: LaunchConfig, room: Room) -> Iterator[Change]:
    """Other numbers of ranks on the head, the nearest first."""
    asked, dp = ranks_on_head(config), config.dp
    if config.topology.kind not in (TopologyKind.split, TopologyKind.auto) or asked is None:
        return
    numbers = {min(room.on_head or 0, dp), max(0, dp - (room.elsewhere or 0))}
    if config.topology.strategy is Strategy.strict:
        numbers |= {number for number in range(1, dp + 1) if dp % number == 0} | {0}
    for number in sorted(numbers - {asked}, key=lambda number: (abs(number - asked), number)):
        topology = replace(config.topology, dp_local=number)
        yield f"topology.dp_local={number}", replace(config, topology=topology)


def _other_placement(config: LaunchConfig) -> Iterator[Change]:
    topology = config.topology
    if topology.kind is not TopologyKind.auto:
        anywhere = replace(topology, kind=TopologyKind.auto, dp_local=None)
        override, wanted = "topology=auto", replace(config, topology=anywhere)
        if topology.dp_local is not None:
            override += " topology.dp_local=null"
        if isinstance(config.backend, MpOptions):
            ray = RayOptions(start_deadline_s=config.backend.start_deadline_s)
            override, wanted = f"{override} backend=ray", replace(wanted, backend=ray)
        yield override, wanted
    others = [Strategy.fill] * (topology.strategy in (Strategy.strict, Strategy.spread))
    others += [Strategy.span] * (config.tp > 1 and topology.strategy is not Strategy.span)
    for strategy in others:
        changed = replace(topology, strategy=strategy)
        yield f"topology.strategy={strategy.name}", replace(config, topology=changed)


def _other_numbers_of_workers(config: LaunchConfig, facts: ModelFacts) -> Iterator[Change]:
    """Fewer workers where GPUs lack, more where a GPU is too small for its part of the weights."""
    heads = facts.num_attention_heads
    fewer = [tp for tp in range(config.tp - 1, 0, -1) if heads % tp == 0]
    more = [tp for tp in range(config.tp + 1, 17) if heads % tp == 0]
    for tp in (*fewer[:1], *more[:3]):
        yield f"tp={tp}", replace(config, tp=tp)


def _other_sizes(config: LaunchConfig) -> Iterator[Change]:
    engine, profile = config.engine, config.profile
    if engine.device is not Device.cpu:
        yield "engine.device=cpu", replace(config, engine=replace(engine, device=Device.cpu))
    if engine.threads is not None:
        yield "engine.threads=null", replace(config, engine=replace(engine, threads=None))
    if engine.dtype is not DType.bfloat16:
        smaller = replace(engine, dtype=DType.bfloat16)
        yield "engine.dtype=bfloat16", replace(config, engine=smaller)
    if engine.quantization is Quantization.none:
        rounded = replace(engine, quantization=Quantization.int8)
        yield "engine.quantization=int8", replace(config, engine=rounded)
    if profile.kv_cache_bytes != "auto":
        smaller_cache = replace(profile, kv_cache_bytes="auto")
        yield "profile.kv_cache_bytes=auto", replace(config, profile=smaller_cache)
    if profile.max_model_len is not None:
        shorter = replace(profile, max_model_len=None)
        yield "profile.max_model_len=null", replace(config, profile=shorter)
