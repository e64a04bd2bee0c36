"""Jobs as they are composed: what differs, what is refused."""

import shlex

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from launcher.errors import Refused
from launcher.sweep.jobs import (
    Job,
    Typed,
    check_jobs,
    quoted,
    swept_keys,
    swept_values,
    variants_of_jobs,
)
from tests.launcher.samples import config_of


def job(*overrides: str, **changes) -> Job:
    return Job(overrides, config_of(**changes))


def test_swept_keys_are_those_whose_values_differ():
    jobs = [job("model=tiny", "+ci=a", "dp=1"), job("model=tiny", "+ci=b", "dp=1")]
    assert swept_keys(jobs) == ["ci"]
    assert swept_values(jobs[1], ["ci"]) == {"ci": "b"}


def test_variants_have_nothing_of_how_the_sweep_is_run():
    how = ("bench.repeat=3", "sweep.dir=there", "sweep.timeout_s=9", "bench.dir=here")
    jobs = [job("dp=1", *how), job("dp=2", *how), job("dp=1", *how)]
    assert [each.overrides for each in variants_of_jobs(jobs)] == [("dp=1",), ("dp=2",)]


@pytest.mark.parametrize("key", ["bench.repeat", "sweep.timeout_s"])
def test_how_the_sweep_is_run_cannot_be_swept(key: str):
    with pytest.raises(Refused, match=f"{key} takes one value"):
        variants_of_jobs([job(f"{key}=1"), job(f"{key}=2")])


def test_all_that_is_wrong_is_told_once():
    jobs = [job("dp=1"), job("dp=0", dp=0), job("dp=0", "name=A", dp=0), job("dp=-1", dp=-1)]
    with pytest.raises(Refused) as refused:
        check_jobs(jobs)
    assert str(refused.value) == "dp=0: dp must be at least 1: 0\ndp=-1: dp must be at least 1: -1"
    assert refused.value.hint == "dp=1"


@pytest.mark.parametrize(
    "override",
    ["frontend.api_keys=[sk-%d]", "++frontend.api_keys=[sk-%d]", "frontend={api_keys:[sk-%d]}"],
)
def test_api_keys_cannot_be_swept_since_they_are_never_written_down(override: str):
    with pytest.raises(Refused, match="frontend.api_keys takes one value") as refused:
        check_jobs([job("dp=1", override % number) for number in range(2)])
    assert "sk-" not in f"{refused.value}"
    check_jobs([job(f"dp={number}", override % 7) for number in range(2)])


def test_a_single_job_is_refused_as_without_a_sweep():
    with pytest.raises(Refused, match="^dp must be at least 1: 0\nhint: dp=1$"):
        check_jobs([job("dp=0", dp=0)])


def test_the_command_line_that_goes_on_can_be_typed_as_it_stands():
    typed = Typed(
        flags=("--config-dir=my conf",),
        overrides=("dp=1,2", "sweep.dir=old", "frontend.api_keys=[secret]"),
        is_multirun=True,
    )
    again = typed.again("a directory")
    assert again[3:] == [
        *("--config-dir=my conf", "-m", "dp=1,2", "frontend.api_keys=KEYS"),
        'sweep.dir="a directory"',
    ]
    assert shlex.split(shlex.join(again)) == again


@pytest.mark.parametrize(
    ("value", "override"),
    [
        ("outputs/2026-11-24_1", "k=outputs/2026-11-24_1"),
        ("a,b=1", 'k="a,b=1"'),
        ('a"b', r'k="a\"b"'),
        ("null", 'k="null"'),
    ],
)
def test_values_are_quoted_where_hydra_would_read_them_otherwise(value: str, override: str):
    assert quoted("k", value) == override


PARSER = OverridesParser.create()
PIECES = [*"\\\"'$/.-_ 1e{}", "${", "null", "true", "inf", "NaN"]
VALUES = st.lists(st.sampled_from(PIECES)).map("".join)


@given(VALUES | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
@example("ends in a backslash\\")
@example("${oc.env:HOME}/\\${name}")
@example("1_0")
def test_a_job_is_told_every_value_as_it_is(value: str):
    override = PARSER.parse_override(quoted("k", value))
    assert OmegaConf.create({"k": override.value()}).k == value
    # and so is a job of a sweep, whose override Hydra writes anew
    [[[again]]] = BasicSweeper.split_arguments([override], max_batch_size=None)
    assert OmegaConf.create({"k": PARSER.parse_override(again).value()}).k == value
