"""Golden files, command lines, runtime directories.

`pytest tests/launcher --update-golden` writes the golden files anew; review the diff.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
UPDATE = "--update-golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(UPDATE, action="store_true", help="write the golden files anew")


@pytest.fixture(autouse=True)
def no_cluster_of_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the tests plan for does not depend on where they run."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # where an address would be looked for


@pytest.fixture
def assert_golden(pytestconfig: pytest.Config) -> Callable[[str, str], None]:
    """Compares a text with a golden file."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        # The option exists only if this folder is named on the command line.
        if pytestconfig.getoption(UPDATE, default=False):
            path.write_text(text)
        assert text == path.read_text(), f"{path} differs: see {__file__} for how to renew it"

    return compare


@pytest.fixture
def flotilla(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs the command line in this process: exit code, stdout, stderr."""

    def run_with(*arguments: str) -> tuple[int, str, str]:
        from launcher.__main__ import run

        monkeypatch.setattr(sys, "argv", ["flotilla", *arguments])
        code = run()
        return code, *capsys.readouterr()

    return run_with


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A runtime directory of the test's own; short, since socket paths are."""
    with tempfile.TemporaryDirectory(prefix="fl") as path:
        yield Path(path)
