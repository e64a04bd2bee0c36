"""The checks of one front end, held against a deployment that runs."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest

from engine.core.reference import Reference
from launcher.plan import DeploymentPlan
from launcher.smoke.client import Client
from launcher.smoke.front_end import FrontEndChecks, parse_metrics
from launcher.smoke.reference import ReferenceProcess
from launcher.smoke.results import CheckFailed, Recorder, Result, verdict
from tests.running import serving

ANSWER_S = 20.0


@dataclass(frozen=True)
class Deployment:
    plan: DeploymentPlan
    socket: str
    reference: Reference


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    """Two ranks of the tiny model."""
    soon = "coordinator.metrics_interval_s=0.1"  # each check of an aborted request waits for them
    with (
        TemporaryDirectory(prefix="fl") as runtime,
        serving("model=tiny", "dp=2", soon, runtime_directory=Path(runtime)) as (launcher, client),
    ):
        plan = msgspec.convert(client.get("/plan").json()["plan"], DeploymentPlan)
        reference = ReferenceProcess(plan, "Gravity is", 8).run(60)
        yield Deployment(plan, str(launcher.directory / "frontend-0.http"), reference)


def results(deployment: Deployment, compared: bool = True) -> list[Result]:
    recorder = Recorder()
    reference = deployment.reference if compared else None
    client = Client(deployment.socket, ANSWER_S)
    FrontEndChecks(*(recorder, client, "frontend-0", deployment.plan, reference, ANSWER_S)).run()
    return recorder.results


def failures(deployment: Deployment) -> dict[str, str]:
    return {each.subject: each.said for each in results(deployment) if not each.passed}


def test_everything_is_as_it_should_be(deployment: Deployment):
    seen = results(deployment)
    assert all(result.passed for result in seen), seen
    of_ranks = ("unstreamed", "greedy tokens", "streamed", "aborted")
    assert [result.subject for result in seen] == [
        *(f"{check}, frontend-0" for check in ("ready", "plan", "bad request")),
        *(f"{check}, frontend-0, rank {rank}" for rank in (0, 1) for check in of_ranks),
    ]
    assert verdict(seen) == "smoke test passed: 11 checks"


def test_other_tokens_than_a_single_process_gives_are_told(deployment: Deployment):
    reference = deployment.reference
    text = reference.text
    other = msgspec.structs.replace(reference, text="other")
    assert failures(replace(deployment, reference=other)) == {
        f"greedy tokens, frontend-0, rank {rank}": f"text: expected 'other', seen {text!r}"
        for rank in (0, 1)
    }


def test_after_a_tie_tokens_may_be_others(deployment: Deployment):
    first = msgspec.structs.replace(
        deployment.reference, num_certain=1, text=deployment.reference.text[:1]
    )
    seen = results(replace(deployment, reference=first))
    assert {each.said for each in seen if each.check == "greedy tokens"} == {
        "1 token as a single process gives, then a tie"
    }


def test_without_a_reference_the_rest_is_checked(deployment: Deployment):
    seen = results(deployment, compared=False)
    assert all(result.passed for result in seen), seen
    assert [each.check for each in seen if each.rank == 1] == ["unstreamed", "streamed", "aborted"]


def test_another_number_of_tokens_is_told(deployment: Deployment):
    more = msgspec.structs.replace(deployment.reference, num_tokens=0)
    said = failures(replace(deployment, reference=more))["unstreamed, frontend-0, rank 0"]
    assert "expected status 200, seen 400" in said


def test_another_plan_is_told(deployment: Deployment):
    plan = msgspec.structs.replace(deployment.plan, digest="0", dp=3)
    said = failures(replace(deployment, plan=plan))
    assert said["ready, frontend-0"] == "ready ranks: expected [0, 1, 2], seen [0, 1]"
    assert said["plan, frontend-0"] == (f"digest: expected '0', seen {deployment.plan.digest!r}")
    assert "invalid_rank" in said["unstreamed, frontend-0, rank 2"]


def test_a_rank_that_has_answered_before_the_client_leaves_is_told(deployment: Deployment):
    settings = deployment.plan.settings
    room_for_one = len(deployment.reference.prompt_token_ids) + 1
    plan = msgspec.structs.replace(
        deployment.plan, settings=replace(settings, max_model_len=room_for_one)
    )
    assert failures(replace(deployment, plan=plan)) == {
        f"aborted, frontend-0, rank {rank}": "expected the request of a client that left aborted, "
        f"seen 5 answered whole: profile.max_model_len ({room_for_one}) may be too small"
        for rank in (0, 1)
    }


def test_a_front_end_that_is_gone_is_one_failure(deployment: Deployment):
    assert failures(replace(deployment, socket="/nowhere")) == {
        "ready, frontend-0": "GET /ready: nobody listens any more"
    }


def test_a_reference_that_takes_too_long_is_told_and_ended(deployment: Deployment):
    process = ReferenceProcess(deployment.plan, "Gravity is", 8)
    began_s = time.monotonic()
    with pytest.raises(CheckFailed, match=r"within 0\.01 s \(backend\.start_deadline_s\)"):
        process.run(0.01)
    assert time.monotonic() - began_s < 30


def test_a_reference_that_cannot_be_computed_says_why(deployment: Deployment, tmp_path: Path):
    settings = deployment.plan.settings
    model = replace(settings.model, kind=type(settings.model.kind).path, path=str(tmp_path / "no"))
    plan = msgspec.structs.replace(deployment.plan, settings=replace(settings, model=model))
    with pytest.raises(CheckFailed, match=r"it said: model\.path does not exist"):
        ReferenceProcess(plan, "Gravity is", 8).run(60)


def test_samples_of_a_page_are_read():
    page = """\
# HELP flotilla:a Text {with="braces"} 1
flotilla:a{model_name="say \\"} 2",rank="1"} 3.0
flotilla:b_total{rank="0"} 1e+06
"""
    assert list(parse_metrics(page)) == [
        ("flotilla:a", {"model_name": 'say \\"} 2', "rank": "1"}, 3.0),
        ("flotilla:b_total", {"rank": "0"}, 1e6),
    ]
