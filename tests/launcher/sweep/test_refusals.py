"""Sweeps that are refused before the first job is run, and leave nothing."""

import fcntl
import os
from pathlib import Path

import pytest

from launcher.sweep.rows import encode
from tests.launcher.sweep.sample_sweeps import row, stage, sweep


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Nothing may be written into the working directory."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    yield
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "message", "hint"),
    [
        (["dp=1,2,0"], "dp=0: dp must be at least 1: 0", "dp=1"),
        (["dp=1,x"], "dp must be a whole number: x", "dp=1"),
        (["dp=1,2", "namee=a"], "there is no option namee: namee=a", "name=a"),
        (
            ["profile.max_model_len=512,9999"],
            "profile.max_model_len=9999: profile.max_model_len must be at most the model's limit",
            "profile.max_model_len=2048",
        ),
        (
            ["bench.input.mean=16,3000"],
            "bench.input.mean=3000: the load has up to 3064 tokens in a session",
            "bench.input.mean=... or",
        ),
        (["bench=quick,trace"], "bench=trace: bench.trace.path must be a file", "bench.trace.path"),
        (["bench.dir=there"], "bench.dir is of one benchmark", "sweep.dir=there"),
        (["bench.repeat=1,2"], "bench.repeat takes one value", "bench.repeat=..."),
        (["hydra.sweep.dir=there"], "hydra.sweep.dir is not read", "sweep.dir=DIR"),
        (["action=serve", "dp=1,2"], "action=serve stays until it is ended", "-m action=bench"),
        (["action=plan,bench"], "action must be the same for all jobs", "action=plan"),
        (["+ci=glob(nothing*)"], "no choice fits, nothing was run", ""),
        (["sweep.dir=/proc/there"], "sweep.dir cannot be written: /proc/there", "sweep.dir=DIR"),
        (["sweep.timeout_s=0"], "sweep.timeout_s must be more than 0", "sweep.timeout_s=3600.0"),
    ],
)
def test_a_sweep_is_refused_before_its_first_job(
    flotilla, overrides: list[str], message: str, hint: str
):
    code, out, said = flotilla("-m", "action=bench", "model=tiny", *overrides)
    assert (code, out) == (2, "")
    told, _, hinted = said.partition("\nhint: ")
    assert told.startswith(message)
    assert hinted.startswith(hint)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}", "is no sweep.json"),
        (b'{"version": 99}', "has version 99 of its form, this launcher knows 1"),
        (
            encode(sweep([row({"dp": "8"}, [stage()])])).replace(b"dp=8/0", b"job-001"),
            "sweep.dir holds rows that this sweep does not have",
        ),
        (encode(sweep([row({"dp": "8"}, [stage()])])), "directories that are none of its own"),
    ],
)
def test_another_sweep_is_not_overwritten(flotilla, tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "sweep.json"
    path.write_bytes(content)
    code, _, said = flotilla("-m", "action=bench", "model=tiny", "dp=1", f"sweep.dir={tmp_path}")
    assert code == 2
    assert message in said
    assert "\nhint: sweep.dir=... of a new one" in said
    assert path.read_bytes() == content


def test_a_directory_that_another_sweep_uses_is_refused(flotilla, tmp_path: Path):
    lock = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    where = (f"sweep.dir={tmp_path}", "sweep.end_s=0.2")
    code, _, said = flotilla("-m", "action=bench", "model=tiny", *where)
    os.close(lock)
    assert code == 2
    assert f"sweep.dir is in use by another sweep: {tmp_path}\n" in said


def test_options_of_a_sweep_are_of_no_use_without_one(flotilla):
    code, _, said = flotilla("action=plan", "model=tiny", "sweep.dir=there")
    assert code == 0
    assert said == "warning: sweep.dir=there has no effect without a sweep of benchmarks\n"
