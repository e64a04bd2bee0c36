"""A plan for people (a table) and for programs (JSON). The one file that writes to stdout."""

import os
import sys
from collections.abc import Mapping
from itertools import zip_longest

import msgspec
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from engine.config import ProcessSpec
from engine.wording import counted
from launcher.cluster import Node
from launcher.plan import DeploymentPlan, PlacementGroup, encode
from launcher.sizes import format_bytes

PIPED_WIDTH = 120
"""Columns of a table that no terminal shows."""


def show(text: str) -> None:
    """Writes to stdout; a reader that has seen enough (`| head`) is no error."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # So that the flush at exit does not fail. Source: Python's docs, note on SIGPIPE.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def as_json(plan: DeploymentPlan) -> str:
    """The same plan gives the same text."""
    return msgspec.json.format(encode(plan), indent=2).decode() + "\n"


def as_table(plan: DeploymentPlan) -> str:
    """The plan node by node, in colours if stdout is a terminal."""
    width = None if sys.stdout.isatty() else PIPED_WIDTH
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        console.print(_table(plan))
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def _table(plan: DeploymentPlan) -> RenderableType:
    """Title, processes node by node, key settings, warnings, digest."""
    title = (
        f"{plan.name}: backend={plan.backend} topology={plan.topology} dp={plan.dp} tp={plan.tp}"
    )
    warnings = [Text(f"warning: {line}", style="yellow") for line in plan.warnings]
    return Group(
        Text(title, style="bold"),
        _processes(plan),
        _settings(plan),
        *warnings,
        Text(f"digest {plan.digest}", style="dim"),
    )


def _processes(plan: DeploymentPlan) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 2, 0, 0))
    for heading in ("node", "process", "local rank", "placement group", "devices", "threads"):
        table.add_column(heading, overflow="fold")
    groups = {group.name: group for group in plan.groups}
    for node in plan.nodes:
        here = [process for process in plan.processes if process.node == node.id]
        rows = [(process.name, *_engine(process, groups)) for process in here] or [("none",)]
        for label, row in zip_longest(_node(node), rows, fillvalue=()):
            table.add_row(label or "", *row)
        table.add_section()
    return table


def _node(node: Node) -> tuple[str, ...]:
    """Lines: what it is, what it has."""
    memory = format_bytes(node.memory_bytes) if node.memory_bytes else "memory unknown"
    gpus = counted(node.gpus, "GPU")
    if node.gpu_memory_bytes:
        gpus += f" of {format_bytes(node.gpu_memory_bytes)}"
    name = f"{node.id} (head)" if node.head and node.id != "head" else node.id
    return f"{name} {node.address}", f"  {counted(node.cpus, 'CPU')}, {memory}", f"  {gpus}"


def _engine(process: ProcessSpec, groups: Mapping[str, PlacementGroup]) -> tuple[str, ...]:
    """Local rank, placement group, devices, threads; nothing for other processes."""
    if not process.workers:
        return ()
    group = groups[process.workers[0].group]
    resources = " ".join(f"{name}={count}" for name, count in group.bundles[0].resources.items())
    devices = [str(device) for worker in process.workers for device in worker.devices]
    return (
        f"{process.local_rank} of {process.num_local_ranks}",
        f"{group.strategy} {len(group.bundles)} x {resources}",
        "cuda " + ",".join(devices) if devices else "cpu",
        str(process.workers[0].num_threads),
    )


def _settings(plan: DeploymentPlan) -> Table:
    settings, cache = plan.settings, plan.settings.cache
    tokens = cache.num_blocks * cache.block_size
    cache_bytes = tokens * settings.facts.kv_bytes_per_token(settings.dtype.value)
    requests = counted(settings.max_num_seqs, "request")
    weights = format_bytes(settings.facts.weight_bytes(settings.dtype.value))
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in (
        ("model", f"{settings.model_name}, {settings.facts.architecture}, weights {weights}"),
        ("computes on", f"{settings.device.value} in {settings.dtype.value}"),
        ("cache of a rank", f"{counted(tokens, 'token')}, {format_bytes(cache_bytes)}"),
        ("max_model_len", str(settings.max_model_len)),
        ("a step", f"{requests}, {counted(settings.max_num_batched_tokens, 'token')}"),
        ("listens on", f"{settings.frontend.host}:{settings.frontend.port}"),
        ("environment", " ".join(plan.passed_environment) or "nothing passed"),
    ):
        table.add_row(Text(name, style="dim"), value)
    return table
