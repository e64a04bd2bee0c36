"""The page of a report in a browser: it renders, complains of nothing and asks nobody."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from launcher.sweep.report import write_report
from launcher.sweep.rows import Outcome
from tests.launcher.sweep.sample_sweeps import grid, row, sweep

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
END_S = 90

pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="there is no Chromium"),
    pytest.mark.timeout(180),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sweep")
    rows = grid({"dp": ["1", "2"], "frontend.count": ["1", "2"]}, num_repetitions=2)
    crashed = row(
        {"dp": "4", "frontend.count": "1"},
        outcome=Outcome.crashed,
        said="<img src=http://a.test/x>",
    )
    write_report(sweep([*rows, crashed]), directory)
    return directory / "report.html"


def browse(page: Path, profile: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    return subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"),
            *("--enable-logging=stderr", "--v=0", "--host-resolver-rules=MAP * ~NOTFOUND"),
            *(*flags, page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=END_S,
        check=True,
    )


def requested(log: Path) -> set[str]:
    """What pages asked the network for; requests of the browser's own services have no origin."""
    events = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    return {
        params["url"]
        for params in events
        if params.get("initiator", "not an origin") != "not an origin"
    }


def test_it_renders_without_complaints_and_without_network(page: Path, tmp_path: Path):
    log = tmp_path / "net.json"
    done = browse(page, tmp_path / "profile", "--dump-dom", f"--log-net-log={log}")
    assert "CONSOLE" not in done.stderr, done.stderr
    assert "Sweep of dp, frontend.count" in done.stdout
    assert "python -m launcher model=tiny dp=2 frontend.count=2" in done.stdout
    assert done.stdout.count('<img src="data:image/svg+xml;base64,') == 8
    assert "&lt;img src=http://a.test/x&gt;" in done.stdout
    assert requested(log) == set()


def test_a_page_that_asks_the_network_would_be_noticed(tmp_path: Path):
    asking, log = tmp_path / "asking.html", tmp_path / "net.json"
    asking.write_text('<img src="http://other.test/x.png"><script>undefined_function()</script>')
    done = browse(asking, tmp_path / "profile", "--dump-dom", f"--log-net-log={log}")
    assert requested(log) == {"http://other.test/x.png"}
    assert "CONSOLE" in done.stderr


def test_every_plot_is_drawn(page: Path, tmp_path: Path):
    """Asked of the browser by a script beside the page, which itself allows none."""
    source = re.sub(r"<meta http-equiv=.Content-Security-Policy.*?>", "", page.read_text())
    script = (
        "<script>addEventListener('load', () => { document.title = JSON.stringify("
        "[...document.images].map(each => each.complete && each.naturalWidth > 300)"
        ".concat(document.documentElement.scrollWidth <= innerWidth)) })</script>"
    )
    asking = tmp_path / "asking.html"
    asking.write_text(source.replace("</body>", f"{script}</body>"))
    done = browse(asking, tmp_path / "profile", "--dump-dom", "--window-size=700,900")
    found = re.search(r"<title>(.*?)</title>", done.stdout)
    assert found is not None
    assert json.loads(found[1]) == [True] * 9
