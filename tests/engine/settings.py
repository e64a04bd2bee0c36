"""Settings for tests and benchmarks, without a plan: small limits, every field open to be set."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.checkpoints.sources import model_directory, read_facts
from engine.config import (
    BalancerOptions,
    CacheSettings,
    CoordinatorOptions,
    Device,
    DType,
    FrontendOptions,
    HealthOptions,
    Kernels,
    LogOptions,
    ModelKind,
    ModelOptions,
    Quantization,
    RestartOptions,
    Settings,
)


def make_settings(directory: Path, **changes: Any) -> Settings:
    """Float32 on a CPU, a few requests of 512 tokens; `cache` takes a dict of changes."""
    cache = CacheSettings(block_size=16, num_blocks=512, prefix_caching=True)
    settings = Settings(
        name="test",
        dp=1,
        tp=1,
        model=ModelOptions(kind=ModelKind.path, path=str(directory)),
        model_name="test",
        facts=read_facts(directory),
        dtype=DType.float32,
        device=Device.cpu,
        kernels=Kernels.auto,
        quantization=Quantization.none,
        seed=0,
        max_model_len=512,
        max_num_seqs=64,
        max_num_batched_tokens=1024,
        max_step_s=0.15,
        cache=replace(cache, **changes.pop("cache", {})),
        frontend=FrontendOptions(port=0),
        balancer=BalancerOptions(),
        health=HealthOptions(),
        coordinator=CoordinatorOptions(),
        restart=RestartOptions(),
        log=LogOptions(),
        drain_s=5.0,
    )
    return replace(settings, **changes)


def dummy_settings(**changes: Any) -> Settings:
    """Of the runner that computes nothing."""
    directory = model_directory(ModelOptions(kind=ModelKind.tiny))
    return make_settings(directory, model=ModelOptions(kind=ModelKind.dummy), **changes)
