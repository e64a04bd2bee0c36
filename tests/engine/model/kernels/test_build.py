"""Building the kernels: once, for us alone, and what happens where it cannot be done."""

import os
import platform
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.config import Kernels, Quantization
from engine.errors import KernelError
from engine.model.kernels import binding
from engine.model.kernels.build import PATHS, InstructionPath, build, usable_paths
from engine.model.kernels.operators import NativeOperators
from engine.model.operators import make_operators
from engine.model.torch_operators import TorchOperators
from tests.engine.settings import dummy_settings

pytestmark = pytest.mark.timeout(300)

QUICK = ("-O0",)
"""Flags of a build that is only looked at."""
PLAIN = PATHS[-1]
CPU = torch.device("cpu")
OLD_COMPILER = """#!/bin/sh
case " $* " in *" {flag} "*) echo "gcc: error: unknown: {flag}" >&2; exit 1;; esac
exec {gcc} "$@"
"""
BUILD_AND_LOAD = """
import sys
import torch
from engine.model.kernels.binding import best_library
print("ready", flush=True)
sys.stdin.readline()
print(best_library(torch.float32).path_name)
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the directory that will hold the kernels."""
    base = tmp_path / "cache"
    base.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_CACHE_HOME", str(base))
    return base / "flotilla" / "kernels"


@pytest.fixture
def no_compiler(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PATH with nothing in it, and no library that is open already."""
    empty = tmp_path / "empty"
    empty.mkdir()
    binding._open.cache_clear()
    monkeypatch.setenv("PATH", str(empty))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def known_to_the_compiler() -> list[InstructionPath]:
    """Every path that this machine's compiler can build, be it only for other processors."""
    return list(PATHS) if platform.machine() == "x86_64" else usable_paths()


def test_a_library_is_built_once_and_found_again(cache):
    first = build(PLAIN, QUICK)
    inode = first.stat().st_ino
    assert build(PLAIN, QUICK) == first
    assert first.stat().st_ino == inode
    assert first.parent.parent == cache


def test_flags_and_paths_have_libraries_of_their_own(cache):
    files = {build(path, QUICK) for path in known_to_the_compiler()}
    assert len({*files, build(PLAIN, (*QUICK, "-g"))}) == len(files) + 1


def test_a_library_belongs_to_the_features_that_it_is_for(cache):
    assert build(PLAIN, QUICK) != build(replace(PLAIN, needs=frozenset({"avx2"})), QUICK)


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o000])
def test_nobody_else_can_write_a_library_whatever_the_umask(cache, umask):
    before = os.umask(umask)
    try:
        file = build(PLAIN, QUICK)
    finally:
        os.umask(before)
    assert mode(file) == 0o600
    assert [mode(directory) for directory in file.parents[:3]] == [0o700] * 3


def test_what_others_can_write_is_not_loaded(cache):
    file = build(PLAIN, QUICK)
    base = cache.parent.parent
    forbidden = [(path, 0o020) for path in (file, file.parent, cache, cache.parent)]
    for path, bit in [*forbidden, (base, 0o002)]:
        before = mode(path)
        path.chmod(before | bit)
        with pytest.raises(KernelError, match=f"others than this user can write {path},") as error:
            build(PLAIN, QUICK)
        assert f"chmod go-w {path}" in error.value.hint
        path.chmod(before)
    for usual in (0o770, 0o1777):  # of a group, and of all like /tmp
        base.chmod(usual)
        assert build(PLAIN, QUICK) == file


def test_a_truncated_library_is_built_anew(cache):
    file = build(PLAIN, QUICK)
    whole = file.read_bytes()
    os.truncate(file, len(whole) // 2)
    assert build(PLAIN, QUICK) == file
    assert file.stat().st_size == len(whole)


def test_two_processes_that_build_at_once_both_load_the_library(cache):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BUILD_AND_LOAD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        output, _ = process.communicate()
        assert output.strip() == usable_paths()[0].name
        assert process.returncode == 0
    [directory] = [path for path in cache.iterdir() if path.is_dir()]
    assert {path.name for path in cache.iterdir()} == {directory.name, f"{directory.name}.lock"}


@pytest.mark.parametrize("path", known_to_the_compiler(), ids=lambda path: path.name)
def test_the_compiler_has_nothing_to_warn_of(cache, path):
    assert build(path, ("-Wall", "-Wextra", "-Werror")).stat().st_size > 0


def test_the_compilers_message_is_shown(cache):
    with pytest.raises(KernelError, match="cannot build the kernels: .*-fno-such-flag") as error:
        build(PLAIN, ("-fno-such-flag",))
    assert "engine.kernels=torch" in error.value.hint
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_the_first_error_is_shown_not_how_the_compiler_came_there(cache):
    with pytest.raises(KernelError, match=r"cannot build the kernels: [^ ]*\.h:.* error: "):
        build(PLAIN, ("-Duint16_t=struct",))


def test_a_cache_that_cannot_be_made_is_said_to_be_so(cache):
    cache.parent.write_text("in its place")
    with pytest.raises(KernelError, match="cannot write the cache") as error:
        build(PLAIN, QUICK)
    assert "XDG_CACHE_HOME" in error.value.hint


@pytest.mark.usefixtures("no_compiler")
def test_no_compiler_is_an_error_with_a_hint():
    with pytest.raises(KernelError, match="neither gcc nor cc is in PATH") as error:
        build(PLAIN)
    assert "install gcc" in error.value.hint


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_torch_does_the_work_and_one_warning_says_so(caplog):
    operators = make_operators(dummy_settings(kernels=Kernels.auto), torch.float32, CPU, 1)
    assert isinstance(operators, TorchOperators)
    [record] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "neither gcc nor cc" in record.getMessage()
    assert "neither gcc nor cc" in operators.remark


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_native_kernels_are_refused():
    with pytest.raises(KernelError, match="neither gcc nor cc"):
        make_operators(dummy_settings(kernels=Kernels.native), torch.float32, CPU, 1)


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_weights_of_8_bits_are_refused():
    settings = dummy_settings(kernels=Kernels.auto, quantization=Quantization.int8)
    with pytest.raises(KernelError, match="neither gcc nor cc"):
        make_operators(settings, torch.float32, CPU, 1)


def test_what_an_old_compiler_does_not_know_is_done_without(cache, tmp_path, monkeypatch, caplog):
    best, *others = usable_paths()
    if not others:
        pytest.skip("there is but one path here")
    script = tmp_path / "bin" / "gcc"
    script.parent.mkdir()
    script.write_text(OLD_COMPILER.format(flag=best.flags[-1], gcc=shutil.which("gcc")))
    script.chmod(0o700)
    monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)
    binding._open.cache_clear()
    operators = make_operators(dummy_settings(kernels=Kernels.native), torch.float32, CPU, 1)
    assert operators.name == f"native ({others[0].name})"
    [record] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert f"no kernels for {best.name}: " in record.getMessage()
    assert f"unknown: {best.flags[-1]}" in record.getMessage()


@pytest.mark.parametrize("kernels", [Kernels.auto, Kernels.native])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_with_a_compiler_native_kernels_are_used(kernels, dtype):
    settings = replace(dummy_settings(), kernels=kernels)
    operators = make_operators(settings, dtype, CPU, 1)
    assert isinstance(operators, NativeOperators)
    assert operators.name == f"native ({usable_paths()[0].name})"
    assert operators.remark == ""


def test_torch_can_be_asked_for():
    operators = make_operators(dummy_settings(kernels=Kernels.torch), torch.float32, CPU, 1)
    assert isinstance(operators, TorchOperators)
    assert operators.remark == ""
