"""Who may import whom, read from the code and seen in running processes.

The reasons are in docs/architecture.md. A name stands for the module or package and all in it.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OWN = ("conf", "engine", "launcher")

# What the processes share: none of it belongs to one of them.
SHARED = (
    "engine.__version__",
    "engine.access",
    "engine.checkpoints",
    "engine.config",
    "engine.errors",
    "engine.lifeline",
    "engine.latest",
    "engine.link",
    "engine.logs",
    "engine.metrics",
    "engine.model.facts",
    "engine.model.tensor_shapes",
    "engine.protocol",
    "engine.sampling",
    "engine.transport",
    "engine.wording",
)
# The planner and its parts.
PURE = (
    "launcher.addresses",
    "launcher.alternatives",
    "launcher.capacity",
    "launcher.emulation",
    "launcher.given_groups",
    "launcher.memory",
    "launcher.node_names",
    "launcher.placement",
    "launcher.planner",
    "launcher.ports",
    "launcher.processes",
    "launcher.shortage",
    "launcher.sizes",
    "launcher.strategies",
)
# Everything the planner's result could depend on besides its arguments.
IMPURE = (
    *("datetime", "time", "random", "secrets", "uuid"),
    *("glob", "io", "os", "pathlib", "platform", "psutil", "pynvml", "shutil", "sys", "tempfile"),
    *("asyncio", "multiprocessing", "signal", "socket", "ssl", "subprocess", "threading"),
    *("urllib", "zmq"),
)


@dataclass(frozen=True)
class Rule:
    """Binds the modules in `scope`, less those in `but`."""

    why: str
    scope: tuple[str, ...]
    but: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    own_only: tuple[str, ...] | None = None  # of our own packages, only these (None: any)

    def binds(self, module: str) -> bool:
        return is_in(module, self.scope) and not is_in(module, self.but)

    def allows(self, name: str) -> bool:
        if is_in(name, self.never):
            return False
        return self.own_only is None or not is_in(name, OWN) or is_in(name, self.own_only)


RULES = (
    Rule(
        "the engine knows nothing of the launcher and of how it is configured",
        scope=("engine",),
        never=("conf", "hydra", "launcher", "omegaconf"),
    ),
    Rule(
        "torch is slow to import and large: only what computes has it",
        scope=OWN,
        but=("engine.core", "engine.model", "engine.parallel"),
        never=("torch", "safetensors.torch"),
    ),
    Rule(
        "model facts are read where there is no torch",
        scope=("engine.model.facts", "engine.model.tensor_shapes"),
        never=("torch", "safetensors.torch"),
    ),
    Rule("ray is one backend among others", OWN, but=("launcher.executors.ray",), never=("ray",)),
    Rule(
        "matplotlib is slow to import: it is loaded where a report is written",
        scope=OWN,
        but=("launcher.sweep.report",),
        never=("matplotlib",),
    ),
    Rule("transformers is what the tests compare with", scope=OWN, never=("transformers",)),
    Rule(
        "processes meet only in the wire protocol",
        scope=("engine.frontend",),
        own_only=("engine.frontend", *SHARED),
    ),
    Rule(
        "processes meet only in the wire protocol",
        scope=("engine.coordinator",),
        own_only=("engine.coordinator", *SHARED),
    ),
    Rule(
        "processes meet only in the wire protocol",
        scope=("engine.core",),
        own_only=("engine.core", "engine.model", "engine.parallel", *SHARED),
    ),
    Rule("what processes share belongs to none of them", scope=SHARED, own_only=SHARED),
    Rule(
        "model code runs without any process around it",
        scope=("engine.model",),
        own_only=(
            "engine.checkpoints",
            "engine.config",
            "engine.errors",
            "engine.model",
            "engine.parallel",
            "engine.sampling",
        ),
    ),
    Rule(
        "model files are read and made without any process around it",
        scope=("engine.checkpoints",),
        own_only=(
            "engine.checkpoints",
            "engine.config",
            "engine.errors",
            "engine.model.facts",
            "engine.model.tensor_shapes",
        ),
    ),
    Rule(
        "executors see only the plan, never the configuration",
        scope=("launcher.executors",),
        own_only=(
            "engine.entrypoint",
            "engine.fork_server",
            "launcher.cluster",
            "launcher.deployment",
            "launcher.errors",
            "launcher.executors",
            "launcher.exit_codes",
            "launcher.node_names",
            "launcher.plan",
            "launcher.ports",
            "launcher.run_directory",
            "launcher.this_machine",
            *SHARED,
        ),
    ),
    Rule(
        "what executors see does not lead back to the configuration",
        scope=("launcher.executors", "launcher.cluster", "launcher.deployment", "launcher.plan"),
        never=("hydra", "launcher.config", "omegaconf"),
    ),
    Rule(
        "the plan is pure",
        scope=PURE,
        never=IMPURE,
        own_only=(
            "engine.config",
            "engine.model.facts",
            "engine.wording",
            "launcher.cluster",
            "launcher.config",
            "launcher.errors",
            "launcher.plan",
            *PURE,
        ),
    ),
)


def test_every_module_keeps_the_import_rules():
    paths = [path for package in OWN for path in sorted((ROOT / package).rglob("*.py"))]
    assert paths
    faults = [
        fault
        for path in paths
        for fault in broken_rules(module_name(path), path.read_text(), is_package(path))
    ]
    assert not faults, "\n" + "\n".join(faults)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("engine.config", "import launcher.plan"),
        ("engine.entrypoint", "def run():\n    from omegaconf import OmegaConf"),
        ("engine.frontend.client", "from engine import core"),
        ("engine.frontend.client", "from ..core.request import Request"),
        ("engine.frontend.server", "import torch.nn as nn"),
        ("engine.coordinator.process", "import_module('engine.frontend.process')"),
        ("engine.link", "from engine.coordinator.membership import Membership"),
        ("engine.checkpoints.gguf", "from safetensors.torch import save_file"),
        ("engine.model.facts", "if True:\n    import torch"),
        ("engine.model.decoder", "from engine.core import scheduler"),
        ("engine.core.process", "from transformers import AutoTokenizer"),
        ("launcher.executors.mp", "from launcher.config import LaunchConfig"),
        ("launcher.executors.mp", "import engine.core.process"),
        ("launcher.deployment", "from omegaconf import DictConfig"),
        ("launcher.planner", "import time"),
        ("launcher.planner", "from launcher import deployment"),
        ("launcher.actions.serve", "import ray"),
        ("launcher.sweep.rows", "from matplotlib.figure import Figure"),
    ],
)
def test_a_forbidden_import_is_found(module: str, source: str):
    assert len(list(broken_rules(module, source))) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("engine.core.process", "import torch\nfrom engine import model, protocol"),
        ("engine.entrypoint", "from engine.frontend.process import run"),
        ("engine.frontend.client", "from . import tokenizer\nfrom engine.model.facts import Facts"),
        ("launcher.executors.ray", "import ray\nfrom engine.entrypoint import run"),
        ("launcher.planner", "import itertools\nfrom launcher.config import LaunchConfig"),
        ("launcher.__main__", "import hydra\nfrom launcher import planner"),
    ],
)
def test_an_allowed_import_passes(module: str, source: str):
    assert not list(broken_rules(module, source))


@pytest.mark.parametrize(
    "module", ["launcher.__main__", "engine.coordinator.process", "engine.frontend.process"]
)
def test_a_process_that_does_not_compute_starts_without_heavy_packages(module: str):
    heavy = {"matplotlib", "ray", "torch", "transformers"}
    script = f"import sys, {module}; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def broken_rules(module: str, source: str, package: bool = False) -> Iterator[str]:
    """What the imports of a module's source break, one line each."""
    rules = [rule for rule in RULES if rule.binds(module)]
    for line, name in imports(module, source, package):
        why = next((rule.why for rule in rules if not rule.allows(name)), None)
        if why:
            yield f"{module} line {line} imports {name}: {why}"


def imports(module: str, source: str, package: bool) -> Iterator[tuple[int, str]]:
    """Every imported name with its line, wherever it stands in the source.

    `from a import b` gives `a.b`: b may be a module, and what is in a is bound like a.
    """
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=origin, names=names, level=level):
                parts = module.split(".")
                base = parts[: len(parts) - level + package] if level else []
                prefix = ".".join([*base, *([origin] if origin else [])])
                yield from ((node.lineno, f"{prefix}.{alias.name}") for alias in names)
            case ast.Call(
                func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def is_in(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def is_package(path: Path) -> bool:
    return path.name == "__init__.py"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if is_package(path) else parts)
