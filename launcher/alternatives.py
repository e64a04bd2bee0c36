"""The nearest overrides that do fit when a plan does not, each tried by the planner itself."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from engine.config import Device, DType
from engine.model.facts import ModelFacts
from launcher.config import LaunchConfig

Fits = Callable[[LaunchConfig], bool]
"""Whether the planner accepts a config."""


def alternatives(config: LaunchConfig, facts: ModelFacts, fits: Fits) -> list[str]:
    """Overrides that change one thing of a config that does not fit, and fit."""
    changes = [
        *_fewer_ranks(config, fits),
        *_other_numbers_of_workers(config, facts),
        *_other_sizes(config),
    ]
    return [override for override, wanted in changes if fits(wanted)]


def _fewer_ranks(config: LaunchConfig, fits: Fits) -> Iterator[tuple[str, LaunchConfig]]:
    """The most ranks that fit: bisected, since fewer ranks never need more."""
    low, high = 0, config.dp
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(_with_dp(config, middle)) else (low, middle)
    if low:
        local = "" if config.topology.dp_local is None else f" topology.dp_local={low}"
        yield f"dp={low}{local}", _with_dp(config, low)


def _with_dp(config: LaunchConfig, dp: int) -> LaunchConfig:
    dp_local = None if config.topology.dp_local is None else dp
    return replace(config, dp=dp, topology=replace(config.topology, dp_local=dp_local))


def _other_numbers_of_workers(
    config: LaunchConfig, facts: ModelFacts
) -> Iterator[tuple[str, LaunchConfig]]:
    """Fewer workers where GPUs lack, more where a GPU is too small for its part of the weights."""
    heads = facts.num_attention_heads
    fewer = [tp for tp in range(config.tp - 1, 0, -1) if heads % tp == 0]
    more = [tp for tp in range(config.tp + 1, 17) if heads % tp == 0]
    for tp in (*fewer[:1], *more[:3]):
        yield f"tp={tp}", replace(config, tp=tp)


def _other_sizes(config: LaunchConfig) -> Iterator[tuple[str, LaunchConfig]]:
    engine, profile = config.engine, config.profile
    if engine.device is not Device.cpu:
        yield "engine.device=cpu", replace(config, engine=replace(engine, device=Device.cpu))
    if engine.dtype is not DType.bfloat16:
        smaller = replace(engine, dtype=DType.bfloat16)
        yield "engine.dtype=bfloat16", replace(config, engine=smaller)
    if profile.kv_cache_bytes != "auto":
        smaller_cache = replace(profile, kv_cache_bytes="auto")
        yield "profile.kv_cache_bytes=auto", replace(config, profile=smaller_cache)
    if profile.max_model_len is not None:
        shorter = replace(profile, max_model_len=None)
        yield "profile.max_model_len=null", replace(config, profile=shorter)
