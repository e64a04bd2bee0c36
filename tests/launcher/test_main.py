"""The command line from its arguments to its exit code."""

import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

from engine import __version__
from launcher.errors import StartFailed
from launcher.executors.base import Means
from launcher.plan import DeploymentPlan

ROOT = Path(__file__).parents[2]
HYDRA_VARIABLE = "HYDRA_FULL_ERROR"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a launcher that has its own cache."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}


@pytest.fixture
def launcher(tmp_path: Path, environment: dict[str, str]):
    """Runs the real thing in an empty directory."""
    empty = tmp_path / "empty"
    empty.mkdir()

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "launcher", *arguments],
            cwd=empty,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert list(empty.iterdir()) == []  # whatever happens, it leaves nothing behind
        return done

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dpp=2"], "there is no option dpp: dpp=2\nhint: dp=2\n"),
        (
            ["topology=head_onyl"],
            "topology must be one of auto, head_only, remote_only, split: head_onyl\n"
            "hint: topology=head_only\n",
        ),
        (["dp=two"], "dp must be a whole number: two\nhint: dp=1\n"),
        (["+foo=1"], "there is no option foo: +foo=1\n"
                     "hint: python -m launcher --help explains every option\n"),
        (["dp=0", "name=X"], "dp must be at least 1: 0\n"
                             "name must be lower-case letters, digits and hyphens, no hyphen"
                             " first, at most 40: X\nhint: dp=1 name=x\n"),
        (
            ["model=tiny", "profile.max_model_len=99999"],
            "profile.max_model_len must be at most the model's limit (2048): 99999\n"
            "hint: profile.max_model_len=2048\n",
        ),
        (["model=path", "model.path=/no/such/model"], "model.path does not exist: /no/such/model\n"
            "hint: model.path=DIR with config.json, safetensors files and tokenizer.json\n"),
    ],
)  # fmt: skip
def test_a_refusal_ends_with_2_and_two_lines(launcher, arguments: list[str], message: str):
    done = launcher(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


def test_the_plan_as_a_table(launcher):
    done = launcher("action=plan", "model=tiny", "dp=2", "model.path=unused")
    assert done.returncode == 0
    assert "engine-1" in done.stdout
    assert done.stderr == "warning: model.path=unused has no effect with model=tiny\n"


def test_the_plan_as_json(launcher):
    done = launcher("action=plan", "model=tiny", "dp=2", "plan.format=json")
    assert (done.returncode, done.stderr) == (0, "")
    plan = json.loads(done.stdout)
    assert [process["name"] for process in plan["processes"]] == [
        *("coordinator", "frontend-0", "engine-0", "engine-1")
    ]
    assert plan["passed_environment"] == ["XDG_CACHE_HOME"] or set(os.environ) & set(
        plan["passed_environment"]
    )


def test_an_inventory_can_be_planned(launcher, tmp_path: Path):
    path = tmp_path / "nodes.yaml"
    path.write_text("nodes: [{id: a, head: true, cpus: 4, gpus: 1, gpu_memory_bytes: 8GiB}]")
    arguments = ["cluster=file", f"cluster.path={path}", "model=tiny", "engine.device=cuda"]
    assert launcher(*arguments, "action=plan").returncode == 0
    done = launcher(*arguments, "action=plan", "dp=2")
    assert done.returncode == 2
    assert done.stderr == (
        "dp=2 tp=1 topology=head_only engine.device=cuda does not fit: room for 1 of 2 ranks on the"
        " head; a rank takes 1 GPU\n    a: 1 GPU: room for 1 rank\n"
        "hint: dp=1, or engine.device=cpu\n"
    )
    assert launcher(*arguments).stderr == (
        "cluster=file is an inventory to plan for, it cannot run: action=serve\nhint: action=plan\n"
    )


def test_a_plan_for_emulated_nodes_starts_nothing(launcher):
    nodes = ["cluster=emulated", "cluster.nodes=3", "cluster.cpus_per_node=1"]
    done = launcher("action=plan", "model=tiny", "topology=split", "dp=4", *nodes)
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 ranks on the head, 2 ranks on 2 other nodes\n" in done.stdout


@pytest.mark.parametrize("where", [0, 3])
def test_a_sweep_leaves_no_directory(launcher, where: int):
    arguments = ["action=plan", "model=tiny", "dp=1,2"]
    done = launcher(*arguments[:where], "-m", *arguments[where:])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("digest ") == 2


def test_a_reader_that_has_seen_enough_is_no_error(environment: dict[str, str]):
    arguments = ["action=plan", "model=tiny", "plan.format=json"]
    with subprocess.Popen(
        [sys.executable, "-m", "launcher", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_hydra_flags_work(launcher):
    assert launcher("--cfg", "job", "dp=3").stdout.splitlines()[2] == "dp: 3"
    assert "head_only" in launcher("--info", "defaults").stdout
    assert launcher("--info", "defaults", "topology=x").returncode == 2


def test_the_version_is_flotillas(launcher):
    done = launcher("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"flotilla {__version__}\n", "")


def test_what_stands_beside_version_is_refused(launcher):
    done = launcher("--version", "dp=2", "extra")
    refusal = "--version takes nothing beside it: dp=2 extra\nhint: --version\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", refusal)


@pytest.mark.parametrize("arguments", [["--cfg", "job"], ["--version"]])
def test_nothing_heavy_is_imported_to_show_a_thing(
    environment: dict[str, str], arguments: list[str]
):
    script = (
        f"import contextlib, sys; sys.argv[1:] = {arguments}; from launcher.__main__ import run\n"
        "with contextlib.suppress(SystemExit): run()\n"
        "heavy = {'torch', 'ray', 'transformers', 'numpy', 'rich', 'psutil'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, b"\n")  # sys.exit("") prints an empty line


def test_a_bug_shows_its_traceback(environment: dict[str, str]):
    script = (
        "import sys; sys.argv[1:] = []; import launcher.__main__ as main;"
        "main.check = lambda config: 1 / 0; main.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("ZeroDivisionError: division by zero")


def ctrl_c(environment: dict[str, str], *command: str) -> tuple[int, str]:
    """Exit code and stderr of Python that a terminal would have started."""
    done = subprocess.run(
        [sys.executable, *command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    return done.returncode, done.stderr


def test_ctrl_c_while_it_imports_is_told_in_one_line(environment: dict[str, str], tmp_path: Path):
    stub = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
    (tmp_path / "hydra.py").write_text(stub)
    imports_it = {**environment, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    assert ctrl_c(imports_it, "-m", "launcher") == (130, "interrupted\n")


def test_ctrl_c_before_there_is_a_job_is_told_in_one_line(environment: dict[str, str]):
    script = (
        "import os, signal, sys; sys.argv[1:] = []; import launcher.__main__ as main;"
        "main.register = lambda: os.kill(os.getpid(), signal.SIGINT); main.main()"
    )
    assert ctrl_c(environment, "-c", script) == (130, "interrupted\n")


def serving(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, serve) -> None:
    """Puts a function in the place of `launcher.actions.serve.serve`."""
    module = types.ModuleType("launcher.actions.serve")
    module.serve = serve  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "launcher.actions.serve", module)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_serve_gets_the_plan_and_the_deadline_and_gives_the_exit_code(
    flotilla, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    calls = []

    def serve(plan: DeploymentPlan, means: Means) -> int:
        calls.append((plan.name, plan.dp, means.start_deadline_s, HYDRA_VARIABLE in os.environ))
        return 7

    serving(monkeypatch, tmp_path, serve)
    code, _, err = flotilla("model=dummy", "dp=64", "name=one", "backend.start_deadline_s=5")
    assert (code, calls) == (7, [("one", 64, 5.0, False)])
    assert HYDRA_VARIABLE not in os.environ
    assert err.startswith("warning: 64 ranks should have 64 CPUs on head")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            StartFailed("engine-0 ended", "look at its log"),
            1,
            "engine-0 ended\nhint: look at its log\n",
        ),
        (KeyboardInterrupt(), 128 + signal.SIGINT, "interrupted\n"),
    ],
)
def test_how_serving_fails_is_the_exit_code(
    flotilla,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: BaseException,
    code: int,
    message: str,
):
    def serve(plan: DeploymentPlan, means: Means) -> int:
        raise error

    serving(monkeypatch, tmp_path, serve)
    assert flotilla("model=tiny") == (code, "", message)


def test_a_reader_that_leaves_early_is_no_error(environment: dict[str, str]):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "--cfg", "job"],
        env=environment,
        cwd=ROOT,
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")
