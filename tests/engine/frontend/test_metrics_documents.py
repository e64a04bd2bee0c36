"""The dashboard and the page about metrics name what there is."""

import json
import re
from pathlib import Path
from typing import Any

from engine.metrics import DERIVED, METRICS, Kind, Metric

DOCS = Path(__file__).parents[3] / "docs"
SENDER_LABELS = {"model_name", "rank", "frontend", "le"}


def shown_names(metric: Metric) -> set[str]:
    """As Prometheus knows the metric."""
    name = f"flotilla:{metric.name}"
    match metric.kind:
        case Kind.counter:
            return {f"{name}_total"}
        case Kind.gauge:
            return {name}
        case Kind.histogram:
            return {f"{name}_bucket", f"{name}_sum", f"{name}_count"}


ALL = (*METRICS.values(), *DERIVED)
NAMES = {name: metric for metric in ALL for name in shown_names(metric)}


def expressions() -> list[str]:
    dashboard = json.loads((DOCS / "grafana" / "flotilla.json").read_text())
    panels: list[dict[str, Any]] = dashboard["panels"]
    variables = [each["query"] for each in dashboard["templating"]["list"]]
    return variables + [target["expr"] for panel in panels for target in panel.get("targets", [])]


def test_every_metric_of_the_dashboard_exists():
    used = {name for text in expressions() for name in re.findall(r"flotilla:\w+", text)}
    assert used
    assert used <= NAMES.keys()


def test_the_dashboard_shows_every_metric():
    text = "\n".join(expressions())
    missing = [
        metric.name
        for metric in ALL
        if not any(re.search(rf"{name}\b", text) for name in shown_names(metric))
    ]
    assert not missing


def test_labels_of_the_dashboard_exist():
    for text in expressions():
        metrics = [NAMES[name] for name in re.findall(r"flotilla:\w+", text)]
        own = {label for metric in metrics for label in metric.labels}
        for group in re.findall(r"by \(([^)]*)\)", text):
            assert set(group.replace(" ", "").split(",")) <= own | SENDER_LABELS, text


def test_the_page_names_every_metric_with_its_kind_and_labels():
    lines = (DOCS / "metrics.md").read_text().splitlines()
    rows = {line.split("`")[1]: line for line in lines if line.startswith("| `")}
    for metric in ALL:
        suffix = "_total" * (metric.kind is Kind.counter)
        row = rows.pop(metric.name + suffix)
        assert f"| {metric.kind.value} |" in row
        assert all(f"`{label}`" in row for label in metric.labels)
        assert metric.help.rstrip(".") in row
    assert not rows
