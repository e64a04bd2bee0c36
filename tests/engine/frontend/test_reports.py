from engine.config import Role
from engine.frontend.reports import Reports
from engine.metrics import CPU_SECONDS, HTTP_SENT, Metrics
from engine.protocol import MetricsReport, MetricsSnapshot

MAX_AGE_S = 3.0


def own(number: int, incarnation: int = 1) -> MetricsReport:
    """The front end's report of that number: what it counts grows with it."""
    return report("frontend-0", number, incarnation)


def report(name: str, number: int, incarnation: int = 1, age_s: float = 0.0) -> MetricsReport:
    counted = Metrics(Role.frontend)
    counted.set(CPU_SECONDS, number / 100)
    counted.set(HTTP_SENT, 1000 * number)
    return MetricsReport(name, incarnation, Role.frontend, None, counted.values(), age_s)


def shown(reports: Reports, now_s: float) -> dict[str, float]:
    """Bytes sent by process."""
    return {
        each.name: next(value.value for value in each.values if value.name == HTTP_SENT.name)
        for each in reports.shown(now_s)
    }


def test_a_scrape_is_never_empty():
    reports = Reports(MAX_AGE_S)
    reports.take_own(own(1), 0.0)
    assert shown(reports, 0.0) == {"frontend-0": 1000}


def test_its_own_are_shown_as_the_others_see_them():
    reports = Reports(MAX_AGE_S)
    reports.take_own(own(1), 0.0)
    reports.take_own(own(2), 1.0)
    reports.take_snapshot(MetricsSnapshot([own(1), report("frontend-1", 7)]), 1.1)
    reports.take_own(own(3), 2.0)
    assert shown(reports, 2.0) == {"frontend-0": 1000, "frontend-1": 7000}


def test_ages_go_on_after_the_snapshot():
    reports = Reports(MAX_AGE_S)
    reports.take_own(own(1), 0.0)
    reports.take_snapshot(MetricsSnapshot([report("frontend-1", 7, age_s=0.5)]), 1.0)
    ages = {each.name: each.age_s for each in reports.shown(2.5)}
    assert ages == {"frontend-0": 2.5, "frontend-1": 2.0}


def test_what_was_published_long_ago_is_shown_no_more():
    reports = Reports(MAX_AGE_S)
    reports.take_snapshot(MetricsSnapshot([own(1), report("frontend-1", 7)]), 1.0)
    reports.take_own(own(5), 4.0)
    assert shown(reports, 1.0 + MAX_AGE_S) == {"frontend-0": 1000, "frontend-1": 7000}
    assert shown(reports, 1.1 + MAX_AGE_S) == {"frontend-0": 5000}


def test_its_own_do_not_go_back_when_the_coordinator_speaks_again():
    reports = Reports(MAX_AGE_S)
    reports.take_own(own(5), 10.0)
    assert shown(reports, 10.0) == {"frontend-0": 5000}
    reports.take_snapshot(MetricsSnapshot([own(4)]), 10.1)
    assert shown(reports, 10.1) == {"frontend-0": 5000}
    reports.take_snapshot(MetricsSnapshot([own(6)]), 11.1)
    assert shown(reports, 11.1) == {"frontend-0": 6000}
    reports.take_snapshot(MetricsSnapshot([report("frontend-1", 7)]), 12.1)
    reports.take_own(own(7), 12.1)
    assert shown(reports, 12.1) == {"frontend-0": 7000, "frontend-1": 7000}


def test_the_report_of_the_incarnation_before_is_not_its_own():
    reports = Reports(MAX_AGE_S)
    reports.take_own(own(1, incarnation=2), 0.0)
    reports.take_snapshot(MetricsSnapshot([own(99, incarnation=1)]), 0.1)
    assert shown(reports, 0.1) == {"frontend-0": 1000}
