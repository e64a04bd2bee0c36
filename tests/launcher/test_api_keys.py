"""API keys: where they come from, and where they must never be seen."""

import os
from pathlib import Path

import pytest

from engine.access import Access
from engine.frontend.key_check import KeyCheck
from launcher.api_keys import read_access, without_keys
from launcher.config import FrontendConfig
from launcher.errors import Refused
from launcher.plan import encode
from tests.launcher.samples import config_of, plan_for

KEY = "sk-secret-of-the-test"


def key_file(directory: Path, content: str, mode: int = 0o600) -> str:
    path = directory / "keys"
    path.write_text(content)
    path.chmod(mode)
    return str(path)


def refusal(path: str) -> Refused:
    with pytest.raises(Refused) as caught:
        read_access(FrontendConfig(api_key_file=path))
    return caught.value


def test_keys_of_the_config_and_of_a_file_are_taken_together(tmp_path: Path):
    path = key_file(tmp_path, "two\n\n  three  \ntwo\none\n")
    access = read_access(FrontendConfig(api_keys=["one"], api_key_file=path))
    assert access.api_keys == ("one", "two", "three")


@pytest.mark.parametrize("typed", [f"frontend.api_keys=[{KEY}]", f"++frontend.api_keys=[a,{KEY}]"])
def test_overrides_are_written_down_without_keys(typed: str):
    written = without_keys(["dp=2", typed, "model.path=/x/api_keys/model"])
    assert written[0] == "dp=2"
    assert written[1].endswith("frontend.api_keys=KEYS")
    assert written[2] == "model.path=/x/api_keys/model"


def test_without_keys_all_is_open():
    assert read_access(FrontendConfig()) == Access()
    assert KeyCheck(()).is_open


def test_a_file_that_only_its_owner_may_read_but_not_write_is_taken(tmp_path: Path):
    assert read_access(FrontendConfig(api_key_file=key_file(tmp_path, "one", 0o400))).api_keys


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o602, 0o700, 0o666])
def test_a_file_with_another_mode_is_refused(tmp_path: Path, mode: int):
    path = key_file(tmp_path, KEY, mode)
    problem = refusal(path)
    assert f"must have mode 0600, nobody else may read keys: {path} (mode {mode:04o})" in str(
        problem
    )
    assert problem.hint == f"chmod 600 {path}"


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_a_key_is_refused(tmp_path: Path, content: str):
    assert "holds no key" in str(refusal(key_file(tmp_path, content)))


@pytest.mark.parametrize("line", ["sk secret", "sk-sécret", "sk\x00secret"])
def test_what_no_header_can_carry_is_refused_and_not_repeated(tmp_path: Path, line: str):
    problem = refusal(key_file(tmp_path, f"one\n\n{line}\n"))
    assert "line 3" in str(problem)
    assert "cret" not in f"{problem} {problem.hint}"


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path):
    assert "No such file" in str(refusal(str(tmp_path / "nowhere")))
    os.mkfifo(tmp_path / "fifo", 0o600)
    assert "must be a file" in str(refusal(str(tmp_path / "fifo")))  # and does not wait


def test_no_key_is_in_the_plan():
    config = config_of(frontend__api_keys=[KEY], frontend__api_key_file="/etc/keys")
    plan = plan_for(config)
    assert KEY.encode() not in encode(plan)
    assert b"api_key" not in encode(plan)
    assert plan == plan_for(config_of())  # the digest too


def test_no_key_is_in_what_is_printed_of_it():
    assert KEY not in repr(Access((KEY,)))


@pytest.mark.parametrize(
    ("host", "is_told"),
    [("127.0.0.1", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("::", True)],
)
def test_listening_wider_than_this_machine_without_a_key_is_told(host: str, is_told: bool):
    def told(**keys: object) -> bool:
        warnings = plan_for(config_of(frontend__host=host, **keys)).warnings
        return any("no key is asked for" in line for line in warnings)

    assert told() is is_told
    assert not told(frontend__api_keys=[KEY])
    assert not told(frontend__api_key_file="/etc/keys")


@pytest.mark.parametrize(
    ("header", "is_admitted"),
    [
        (b"Bearer one", True),
        (b"bearer two", True),
        (b"Bearer  two", True),
        (b"Bearer three", False),
        (b"Bearer", False),
        (b"", False),
        (b"one", False),
        (b"Basic one", False),
        (b"Bearer one two", False),
        (b"Bearer \xff\x00", False),
    ],
)
def test_which_headers_open_the_door(header: bytes, is_admitted: bool):
    assert KeyCheck(("one", "two")).admits(header) is is_admitted
