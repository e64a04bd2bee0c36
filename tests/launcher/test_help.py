"""`--help`: what can be typed, and what it means."""

import re

import pytest

from launcher.config_checks import check
from launcher.config_options import Catalogue, read_groups
from launcher.help import EXAMPLES, help_text
from tests.launcher.samples import composed


@pytest.fixture
def text(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "100")
    return help_text()


def meaning(text: str, typed: str) -> str:
    """What stands beside a key or a choice, as one line."""
    match = re.search(rf"^  {re.escape(typed)} +(.*(?:\n {{20,}}.*)*)", text, re.MULTILINE)
    assert match, f"{typed} is not there"
    return " ".join(match[1].split())


def test_the_flag_prints_it(flotilla, text: str):
    assert flotilla("--help") == flotilla("-h", "dp=3") == (0, text, "")


def test_every_key_has_its_default_and_its_meaning(text: str):
    assert meaning(text, "dp=1") == "Data-parallel ranks."
    assert meaning(text, "engine.device=auto").endswith("have any. One of auto, cuda, cpu.")
    assert meaning(text, "backend.start_deadline_s=300.0").startswith("Seconds until")  # inherited
    assert meaning(text, "cluster.path=null").endswith("(cluster=file).")  # of another choice
    for option in Catalogue({}).options.values():
        if option.key not in ("balancer.policy", "model.kind", "topology.kind"):
            assert meaning(text, option.with_default())


def test_what_the_choice_of_a_group_sets_is_no_key_to_type(text: str):
    assert not re.search(r"^  (\w+\.kind|balancer\.policy)=", text, re.MULTILINE)


def test_every_choice_has_a_meaning(text: str):
    assert meaning(text, "profile=default") == "The defaults."
    assert meaning(text, "+ci=mp_head_only").startswith("Two ranks")
    for group, choices in read_groups().items():
        for choice in choices:
            assert meaning(text, Catalogue({}).written(group, choice))


def test_the_default_choice_is_the_first(text: str):
    assert re.findall(r"^  model=(\w+)", text, re.MULTILINE)[0] == "smollm2_135m"


def test_it_is_as_wide_as_the_terminal(text: str, monkeypatch: pytest.MonkeyPatch):
    assert max(len(line) for line in text.splitlines()) <= 100
    monkeypatch.setenv("COLUMNS", "160")
    assert len(help_text().splitlines()) < len(text.splitlines())


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_are_right(text: str, example: str):
    assert f"python -m launcher {example} " in text
    typed = example.split()
    if "-m" in typed:
        typed = [text.split(",")[0] for text in typed if text != "-m"]  # its first job
    check(composed(*typed))
