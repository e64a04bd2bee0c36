"""A plan as a table: node by node, what is alike in one row."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from engine.config import ProcessSpec, Quantization, Role, may_be_native
from engine.wording import counted
from launcher.cluster import Node
from launcher.plan import DeploymentPlan, PlacementGroup
from launcher.sizes import format_bytes

HEADINGS = ("node", "process", "local rank", "placement group", "devices", "threads")
GROUP = HEADINGS.index("placement group")
"""Left out where nobody makes placement groups: with `backend=mp`."""
MAX_ALIKE = 2
"""Nodes that are alike and stand together; more of them share a row."""
MAX_RANKS = 8
"""Ranks of a node that have a row each."""
MAX_IDLE = 4
"""Nodes without ranks that have a row each; of more, so many are named."""

Cells = tuple[str, ...]


def plan_table(plan: DeploymentPlan) -> RenderableType:
    """Title, processes node by node, key settings, warnings, digest."""
    title = (
        f"{plan.name}: backend={plan.backend} topology={plan.topology} dp={plan.dp} tp={plan.tp}"
    )
    warnings = [Text(f"warning: {line}", style="yellow") for line in plan.warnings]
    return Group(
        Text(title, style="bold"),
        Text(_where(plan)),
        _processes(plan),
        _settings(plan),
        *warnings,
        Text(f"digest {plan.digest}", style="dim"),
    )


def _where(plan: DeploymentPlan) -> str:
    """How many ranks the head has, and how many other nodes have the rest."""
    homes = Counter(process.node for process in plan.processes if process.role is Role.engine)
    on_head = homes.pop(plan.head, 0)
    parts = [f"{counted(on_head, 'rank')} on the head"]
    if homes:
        others = f"{counted(homes.total(), 'rank')} on {counted(len(homes), 'other node')}"
        parts = [*parts, others] if on_head else [others]
    of_ranks = {worker.node for process in plan.processes for worker in process.workers}
    idle = sum(not node.head and node.id not in of_ranks for node in plan.nodes)
    parts += [f"{counted(idle, 'other node')} without ranks"] * bool(idle)
    return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class _Section:
    """Nodes that are alike and stand together, with the processes of each."""

    nodes: list[Node]
    processes: list[list[ProcessSpec]]


def _processes(plan: DeploymentPlan) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 2, 0, 0))
    shown = [i for i in range(len(HEADINGS)) if i != GROUP or plan.backend != "mp"]
    for i in shown:
        table.add_column(HEADINGS[i], overflow="fold")
    for label, rows in _rows(plan):
        for text, row in itertools.zip_longest(label, rows, fillvalue=()):
            cells = (text or "", *row)
            table.add_row(*(cells[i] for i in shown if i < len(cells)))
        table.add_section()
    return table


def _rows(plan: DeploymentPlan) -> Iterator[tuple[Sequence[str], Sequence[Cells]]]:
    """The lines that name the nodes, and the rows beside them."""
    here: dict[str, list[ProcessSpec]] = defaultdict(list)
    for process in plan.processes:
        for node_id in dict.fromkeys((process.node, *(each.node for each in process.workers))):
            here[node_id].append(process)
    has_workers = {worker.node for process in plan.processes for worker in process.workers}
    groups = {group.name: group for group in plan.groups}
    used = [node for node in plan.nodes if node.head or node.id in has_workers]
    for section in _sections(used, here, groups):
        yield _label(section.nodes), list(_section_rows(section, groups))
    idle = [node for node in plan.nodes if not node.head and node.id not in has_workers]
    if len(idle) > MAX_IDLE:
        names = ", ".join(node.id for node in idle[:MAX_IDLE])
        yield (names, f"  and {len(idle) - MAX_IDLE} more"), [("none",)]
        return
    for node in idle:
        yield _label([node]), [("none",)]


def _sections(
    nodes: Sequence[Node],
    here: dict[str, list[ProcessSpec]],
    groups: dict[str, PlacementGroup],
) -> Iterator[_Section]:
    def looks(node: Node) -> tuple[object, ...]:
        shapes = [_cells(process, node, groups)[1:] for process in here[node.id]]
        return node.head, _hardware(node), shapes

    for _, run in itertools.groupby(nodes, key=looks):
        alike = list(run)
        size = len(alike) if len(alike) > MAX_ALIKE else 1
        for start in range(0, len(alike), size):
            members = alike[start : start + size]
            yield _Section(members, [here[node.id] for node in members])


def _section_rows(section: _Section, groups: dict[str, PlacementGroup]) -> Iterator[Cells]:
    node, processes = section.nodes[0], section.processes[0]
    engines = [process for process in processes if process.role is Role.engine]
    num_own = sum(process.node == node.id for process in engines)
    if len(section.nodes) == 1 and len(engines) <= MAX_RANKS or num_own < len(engines):
        yield from (_cells(process, node, groups) for process in processes)
        return
    for process in processes:
        if process.role is not Role.engine:
            yield (process.name,)
    if engines:
        _, local, group, devices, threads = _cells(engines[0], node, groups)
        if len(engines) > 1:
            local = f"0 to {len(engines) - 1} of {len(engines)}"
        name = f"{engines[0].name} to {section.processes[-1][-1].name}"
        yield name, local, group, _ids(engines, node) or devices, threads


def _label(nodes: Sequence[Node]) -> Sequence[str]:
    """Lines: what it is, what it has."""
    first, last = nodes[0], nodes[-1]
    name = f"{first.id} (head)" if first.head and first.id != "head" else first.id
    if len(nodes) == 1:
        return f"{name} {first.address}", *(f"  {line}" for line in _hardware(first))
    each = f"  {len(nodes)} nodes, each"
    return f"{name} to {last.id}", each, *(f"  {line}" for line in _hardware(first))


def _hardware(node: Node) -> tuple[str, str]:
    memory = format_bytes(node.memory_bytes) if node.memory_bytes else "memory unknown"
    gpus = counted(node.gpus, "GPU")
    if node.gpus and node.gpu_memory_bytes:
        gpus += f" of {format_bytes(node.gpu_memory_bytes)}"
    return f"{counted(node.cpus, 'CPU')}, {memory}", gpus


def _cells(process: ProcessSpec, node: Node, groups: dict[str, PlacementGroup]) -> Cells:
    """Name and, of engines, local rank, placement group, devices on the node, threads."""
    if not process.workers:
        return (process.name,)
    group = groups[process.workers[0].group]
    bundles = [bundle for bundle in group.bundles if bundle.node == node.id]
    resources = " ".join(f"{name}={count}" for name, count in bundles[0].resources.items())
    local = f"{process.local_rank} of {process.num_local_ranks}"
    if len(bundles) < len(group.bundles):
        share = f"{len(bundles)} of {counted(len(group.bundles), 'worker')}"
        local = f"{local}, {share}" if process.node == node.id else share
    num_gpus = sum(bundle.resources.get("GPU", 0) for bundle in bundles)
    return (
        process.name,
        local,
        f"{group.strategy} {len(group.bundles)} x {resources}",
        _ids([process], node) or (counted(num_gpus, "GPU") if num_gpus else "cpu"),
        str(next(each.num_threads for each in process.workers if each.node == node.id)),
    )


def _ids(processes: Sequence[ProcessSpec], node: Node) -> str:
    """The GPU ids that are known before the start."""
    workers = [each for process in processes for each in process.workers if each.node == node.id]
    devices = [device for worker in workers for device in worker.devices]
    if len(processes) > 1 and devices:
        return f"cuda {devices[0]} to {devices[-1]}"
    return "cuda " + ",".join(map(str, devices)) if devices else ""


def _settings(plan: DeploymentPlan) -> Table:
    settings, cache = plan.settings, plan.settings.cache
    tokens = cache.num_blocks * cache.block_size
    padded = may_be_native(settings.kernels, settings.device, settings.dtype)
    cache_bytes = tokens * settings.facts.kv_bytes_per_token(settings.dtype.value, padded)
    requests = counted(settings.max_num_seqs, "request")
    dtype, quantization = settings.dtype.value, settings.quantization
    weights = format_bytes(settings.facts.weight_bytes(dtype))
    computes = f"{settings.device.value} in {dtype}"
    if quantization is not Quantization.none:
        weights = format_bytes(settings.facts.packed_bytes(dtype, quantized=True))
        computes += f", weights in {quantization.value}"
    listens = f"{settings.frontend.host}:{settings.frontend.port}"
    if plan.ports:
        listens += f", for other nodes ports {plan.ports[0]} to {plan.ports[1]}"
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in (
        ("model", f"{settings.model_name}, {settings.facts.architecture}, weights {weights}"),
        ("computes on", computes),
        ("cache of a rank", f"{counted(tokens, 'token')}, {format_bytes(cache_bytes)}"),
        ("max_model_len", str(settings.max_model_len)),
        ("a step", f"{requests}, {counted(settings.max_num_batched_tokens, 'token')}"),
        ("listens on", listens),
        ("environment", " ".join(plan.passed_environment) or "nothing passed"),
    ):
        table.add_row(Text(name, style="dim"), value)
    return table
