import timeit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import metrics
from engine.config import Role
from engine.metrics import DERIVED, METRICS, Kind, Metric, Metrics, MetricValue


def value_of(counted: Metrics, metric: Metric, labels: tuple[str, ...] = ()) -> MetricValue:
    (value,) = [
        each for each in counted.values() if (each.name, each.labels) == (metric.name, labels)
    ]
    return value


def test_counters_add_up_per_label_value():
    counted = Metrics(Role.frontend)
    counted.add(metrics.HTTP_REQUESTS, labels=("/v1/models", "200"))
    counted.add(metrics.HTTP_REQUESTS, 2, ("/v1/models", "200"))
    counted.add(metrics.HTTP_REQUESTS, labels=("/v1/models", "404"))
    assert value_of(counted, metrics.HTTP_REQUESTS, ("/v1/models", "200")).value == 3
    assert value_of(counted, metrics.HTTP_REQUESTS, ("/v1/models", "404")).value == 1


def test_a_gauge_is_what_it_was_set_to():
    counted = Metrics(Role.engine)
    counted.set(metrics.KV_CACHE_USAGE, 0.5)
    counted.set(metrics.KV_CACHE_USAGE, 0.25)
    assert value_of(counted, metrics.KV_CACHE_USAGE).value == 0.25


def test_an_observation_falls_into_the_bucket_whose_bound_it_does_not_exceed():
    counted = Metrics(Role.engine)
    bounds = metrics.ITERATION_TOKENS.bounds
    for value in (1, 8, 9, bounds[-1], bounds[-1] + 1):
        counted.observe(metrics.ITERATION_TOKENS, value)
    counts = value_of(counted, metrics.ITERATION_TOKENS).counts
    assert counts[:3] == (1, 1, 1)
    assert counts[-2:] == (1, 1)


@given(st.lists(st.tuples(st.floats(0, 1e4), st.integers(0, 100))))
def test_a_histogram_holds_every_observation_once(observed: list[tuple[float, int]]):
    bulk, single = Metrics(Role.engine), Metrics(Role.engine)
    for value, count in observed:
        bulk.observe(metrics.STEP_TIME, value, count)
        for _ in range(count):
            single.observe(metrics.STEP_TIME, value)
    one, other = value_of(bulk, metrics.STEP_TIME), value_of(single, metrics.STEP_TIME)
    assert one.counts == other.counts
    assert sum(one.counts) == sum(count for _, count in observed)
    assert one.value == pytest.approx(other.value)


@pytest.mark.parametrize("role", Role)
def test_metrics_without_labels_are_zero_from_the_start(role: Role):
    there = {each.name for each in Metrics(role).values()}
    wanted = {
        each.name for each in METRICS.values() if each.role in (role, None) and not each.labels
    }
    assert there == wanted


def test_metrics_of_another_role_are_refused():
    with pytest.raises(KeyError):
        Metrics(Role.frontend).add(metrics.PROMPT_TOKENS)


def test_definitions_are_sound():
    for metric in (*METRICS.values(), *DERIVED):
        assert (metric.kind is Kind.histogram) == bool(metric.bounds)
        assert list(metric.bounds) == sorted(set(metric.bounds))
        assert not {"model_name", "rank", "frontend", "le"} & set(metric.labels)
        assert metric.help.endswith(".")


def test_an_observation_costs_about_a_microsecond_at_most():
    counted = Metrics(Role.engine)
    number = 20_000
    best = min(
        timeit.repeat(
            lambda: counted.observe(metrics.INTER_TOKEN_LATENCY, 0.0123), number=number, repeat=5
        )
    )
    assert best / number < 5e-6  # measured: 0.3 us; the rest is for slow machines
