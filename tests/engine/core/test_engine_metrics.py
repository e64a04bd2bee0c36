"""What an engine core counts and reports of its work, with the runner that computes nothing."""

import pytest

from engine.core.engine_core import EngineCore
from engine.core.engine_metrics import EngineMetrics
from engine.core.request import Request, RequestKey
from engine.core.scheduler import Produced
from engine.metrics import MetricValue
from engine.model.dummy_runner import DummyRunner
from engine.protocol import AddRequest, FinishReason
from engine.sampling import SamplingParams
from tests.engine.settings import dummy_settings


def make_core(**changes) -> EngineCore:
    return EngineCore(dummy_settings(**changes), DummyRunner())


def add(core: EngineCore, request_id: int, num_prompt: int, num_outputs: int) -> None:
    sampling = SamplingParams(num_outputs, temperature=0.0, ignore_eos=True)
    core.add_request("frontend-0.1", AddRequest(0, request_id, [5] * num_prompt, sampling))


def values_of(core: EngineCore) -> dict[str, MetricValue]:
    return {".".join((v.name, *v.labels)): v for v in core.metrics().values()}


def test_the_load_follows_the_work():
    core = make_core(max_num_seqs=1, cache={"num_blocks": 8})
    assert core.load(3, 2).rank == 3
    assert core.load(3, 2).incarnation == 2
    add(core, 0, 20, 4)
    add(core, 1, 30, 2)
    load = core.load(0, 1)
    assert (load.num_waiting, load.num_running) == (2, 0)
    assert (load.waiting_tokens, load.output_tokens) == (50, 6)
    assert load.kv_usage == 0
    core.step()
    load = core.load(0, 1)
    assert (load.num_waiting, load.num_running) == (1, 1)
    assert (load.waiting_tokens, load.output_tokens) == (30, 5)
    assert load.kv_usage == 2 / 8
    assert load.step_s > 0
    while core.num_requests:
        core.step()
    load = core.load(0, 1)
    assert (load.num_waiting, load.num_running, load.waiting_tokens) == (0, 0, 0)
    assert (load.output_tokens, load.kv_usage) == (0, 0)


def test_requests_tokens_and_the_prefix_cache_are_counted():
    core = make_core()
    for request_id in range(2):  # the second finds the first one's full block
        add(core, request_id, 20, 4)
        while core.num_requests:
            core.step()
    add(core, 2, 5, 9)
    core.step()
    core.end_request("frontend-0.1", 2, FinishReason.abort)
    values = values_of(core)
    assert values["prompt_tokens"].value == 45
    assert values["generation_tokens"].value == 9
    assert values["prefix_cache_queries"].value == 45
    assert values["prefix_cache_hits"].value == 16
    assert values["request_success.length"].value == 2
    assert values["request_success.abort"].value == 1
    assert sum(values["time_to_first_token_seconds"].counts) == 3
    assert sum(values["inter_token_latency_seconds"].counts) == 6
    assert sum(values["request_queue_time_seconds"].counts) == 3
    assert sum(values["e2e_request_latency_seconds"].counts) == 2
    assert values["num_requests_running"].value == 0


def test_a_request_that_a_stop_string_ended_counts_as_stopped():
    core = make_core()
    add(core, 0, 20, 9)
    core.step()
    core.end_request("frontend-0.1", 0, FinishReason.stop)
    core.end_request("frontend-0.1", 0, FinishReason.abort)  # once
    values = values_of(core)
    assert values["request_success.stop"].value == 1
    assert "request_success.abort" not in values
    assert sum(values["e2e_request_latency_seconds"].counts) == 1


def test_refusals_are_counted_by_reason():
    core = make_core()
    for prompt, num_outputs in (([], 1), ([-1], 1), ([1] * 512, 1)):
        sampling = SamplingParams(num_outputs)
        try:
            core.add_request("frontend-0.1", AddRequest(0, 0, prompt, sampling))
        except ValueError:
            continue
        raise AssertionError(prompt)
    values = values_of(core)
    assert values["refused_requests.token_ids"].value == 2
    assert values["refused_requests.too_long"].value == 1


def test_each_request_is_logged_under_the_clients_id(caplog):
    core = make_core()
    sampling = SamplingParams(2, temperature=0.0, ignore_eos=True)
    with caplog.at_level("DEBUG", "engine.core"):
        core.add_request("frontend-0.1", AddRequest(0, 7, [5], sampling, "from-a-client"))
        add(core, 8, 3, 99)
        core.step()
        core.step()
        core.end_request("frontend-0.1", 8, FinishReason.abort)
    assert caplog.messages == [
        "request from-a-client: 1 prompt tokens",
        "request frontend-0.1/8: 3 prompt tokens",
        "request from-a-client: length, 2 tokens",
        "request frontend-0.1/8: abort, 2 tokens",
    ]


def test_times_are_taken_from_arrival_to_first_token_and_between_tokens():
    metrics = EngineMetrics(prefix_caching=True)
    requests = [
        Request(RequestKey("f", index), [1, 2, 3], 3, SamplingParams(4), arrived_s=10.0 + index)
        for index in range(2)
    ]
    both = [Produced(request, 7, None) for request in requests]
    metrics.note_step(12.0, 13.0, 6, both, requests)
    metrics.note_step(13.0, 13.5, 2, both, [])
    last = [Produced(requests[0], 7, FinishReason.stop)]
    metrics.note_step(13.5, 14.0, 1, last, [])
    sums = {value.name: value for value in metrics.values.values()}
    assert sums["time_to_first_token_seconds"].value == 3.0 + 2.0
    assert sums["request_queue_time_seconds"].value == 2.0 + 1.0
    assert sums["inter_token_latency_seconds"].value == 0.5 + 0.5 + 0.5
    assert sum(sums["inter_token_latency_seconds"].counts) == 3
    assert sums["e2e_request_latency_seconds"].value == 4.0
    assert sums["iteration_tokens_total"].value == 6 + 2 + 1
    assert sums["step_seconds"].value == 2.0
    assert metrics.step_s == pytest.approx(((1.0 * 0.9 + 0.5 * 0.1) * 0.9) + 0.5 * 0.1)
