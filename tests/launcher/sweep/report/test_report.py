"""A report as files: tables, plots, and a page for every outcome."""

import base64
import csv
import io
import re
import subprocess
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import msgspec
import pytest

from launcher.sweep.report import write_report
from launcher.sweep.report.plots import MAX_AXES
from launcher.sweep.rows import Outcome, Row
from tests.launcher.sweep.sample_sweeps import grid, row, stage, sweep

KEYS = {"dp": ["1", "2"], "frontend.count": ["1", "2"]}
SAID = {
    Outcome.invalid: "3 requests failed: HTTP 503",
    Outcome.refused: "dp must be at least 1: 0",
    Outcome.crashed: "ended by signal 9 <script>alert(1)</script>",
    Outcome.timed_out: "no end after 600 s",
    Outcome.not_run: "interrupted",
}
PNG = b"\x89PNG\r\n\x1a\n"


def bad_rows() -> list[Row]:
    rows = []
    for dp, (outcome, said) in enumerate(SAID.items(), 8):
        stages = [stage(4)] if outcome is Outcome.invalid else []
        rows.append(row({"dp": str(dp), "frontend.count": "1"}, stages, outcome=outcome, said=said))
    return rows


def read_csv(directory: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((directory / "sweep.csv").read_text())))


class Page(HTMLParser):
    """What a page holds, read without a browser."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.source = (directory / "report.html").read_text()
        self.images: list[Mapping[str, str | None]] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.headings: list[str] = []
        self.words: list[str] = []
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "img":
            self.images.append(given)
        if tag == "a":
            self.links.append(given["href"] or "")
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(tag)
        if given.get("id"):
            self.ids.append(given["id"] or "")
        assert tag not in ("script", "link", "iframe", "object")

    def handle_data(self, data: str) -> None:
        self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)


class Report(NamedTuple):
    directory: Path
    lines: list[str]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Of four variants, measured twice in two stages, and of jobs that ended in every other way."""
    directory = tmp_path_factory.mktemp("sweep")
    rows = [*grid(KEYS, concurrencies=(1, 4), num_repetitions=2, has_slo=True), *bad_rows()]
    whole = sweep(rows, slo={"ttft_ms": 500.0, "tpot_ms": 50.0})
    return Report(directory, write_report(whole, directory))


def test_a_sweep_becomes_tables_plots_and_a_page(report: Report):
    directory, lines = report
    assert len(read_csv(directory)) == 4 * 2 + len(SAID)
    names = {path.stem for path in directory.glob("*.png")}
    assert names == {
        *("throughput-latency", "rank-tokens"),
        *(f"by-{key}-{kind}" for key in (*KEYS, "concurrency") for kind in ("rates", "times")),
    }
    assert all(path.read_bytes().startswith(PNG) for path in directory.glob("*.png"))
    page = Page(directory)
    assert len(page.images) == len(names)
    assert "python -m launcher model=tiny dp=2 frontend.count=2" in page.text
    assert "TTFT at most 500 ms, TPOT at most 50 ms" in page.text
    assert "2ddc0acdb922f8b16da07d801dcfcaa25344be2c" in page.text  # the commit
    assert "f26fc753c7e84012" in page.text  # the plan's digest
    assert "AMD EPYC" in page.text
    assert "python -m launcher -m action=bench" in page.text
    assert [line for line in lines if line.startswith("serve it: ")] == [
        "serve it: python -m launcher model=tiny dp=2 frontend.count=2"
    ]
    assert lines[-1] == f"report: {directory / 'report.html'}"
    assert not list(directory.glob("*.partial"))


def test_a_page_needs_nothing_else_and_can_be_read_aloud(report: Report):
    page = Page(report.directory)
    assert "default-src 'none'" in page.source
    assert all(
        (image["src"] or "").startswith("data:image/svg+xml;base64,") for image in page.images
    )
    assert all(len(image["alt"] or "") > 40 for image in page.images)
    assert len(set(page.ids)) == len(page.ids)
    assert page.headings[0] == "h1"
    assert "h1" not in page.headings[1:]
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert all(link.startswith(("#", "./")) for link in page.links)
    assert not re.search(r"url\(|@import|https?://", page.source)


def test_the_terminal_has_a_line_for_each_variant(report: Report):
    table = [line for line in report.lines if re.match(r" ?\d+ ", line)]
    assert [line.split()[0] for line in table] == [str(number) for number in range(1, 10)]
    assert "2 valid" in table[0]
    assert "±" in table[0]
    assert table[3].endswith("best")
    for line, (outcome, said) in zip(table[4:], SAID.items(), strict=True):
        assert outcome.value.replace("_", " ") in line
        assert line.endswith(said)


def test_what_is_not_valid_is_shown_with_why(report: Report):
    page = Page(report.directory)
    for outcome, said in SAID.items():
        assert outcome.value.replace("_", " ") in page.text
        assert page.text.count(said) >= 2  # beside its variant, and beside its log
    assert "<script>" not in page.source
    by_outcome = {each["outcome"]: each for each in read_csv(report.directory)}
    assert by_outcome["crashed"]["said"] == SAID[Outcome.crashed]
    assert by_outcome["not_run"]["exit_code"] == ""


def test_without_valid_rows_there_is_a_report_of_why(tmp_path: Path):
    lines = write_report(sweep(bad_rows()), tmp_path)
    assert "best: none, no variant has valid results" in lines
    assert not list(tmp_path.glob("*.png"))
    page = Page(tmp_path)
    assert "no variant has valid results" in page.text
    assert page.images == []
    assert len(read_csv(tmp_path)) == len(SAID)


def test_a_sweep_without_rows_has_a_report_too(tmp_path: Path):
    lines = write_report(sweep([]), tmp_path)
    assert "best: none, no variant has valid results" in lines
    assert "no jobs" in Page(tmp_path).text


def test_one_row_is_enough(tmp_path: Path):
    write_report(sweep([row({}, [stage(4)])]), tmp_path)
    assert {path.stem for path in tmp_path.glob("*.png")} == {"throughput-latency", "rank-tokens"}
    page = Page(tmp_path)
    assert "no SLO is set" in page.text
    assert "bench.slo.ttft_ms=MS" in page.text
    assert "measured once" in page.text


def test_a_server_that_tells_little_is_no_problem(tmp_path: Path):
    bare = msgspec.structs.replace(
        stage(4), ttft_ms=None, tpot_ms=None, itl_ms=None, ranks=[], rank_skew=None,
        processes=[], prefix_hit_rate=None,
    )  # fmt: skip
    common = ("action=bench", "bench.url=http://127.0.0.1:1")
    lines = write_report(
        sweep([row({"x": value}, [bare], common=common) for value in ("a", "b")]), tmp_path
    )
    assert not any(line.startswith("serve it") for line in lines)
    assert "a server that ran already" in Page(tmp_path).text
    assert not (tmp_path / "rank-tokens.png").exists()


def test_what_is_no_text_harms_neither_terminal_nor_files(tmp_path: Path):
    said = "\x1b[31mred\x1b[0m \udcff"
    rows = [
        row({"model.path": value}, [stage(4)]) for value in ("a\x00--b", "$\\frac{", "\udcff <&>")
    ]
    crashed = row({"model.path": "c"}, outcome=Outcome.crashed, said=said)
    lines = write_report(sweep([*rows, crashed]), tmp_path)
    assert not any("\x1b" in line for line in lines)
    for image in Page(tmp_path).images:
        _, _, encoded = (image["src"] or "").partition("base64,")
        ElementTree.fromstring(base64.b64decode(encoded))
    assert len(read_csv(tmp_path)) == 4


def test_stages_have_columns_of_their_own(tmp_path: Path):
    write_report(sweep(grid({"dp": ["1", "2"]}, concurrencies=(1, 4))), tmp_path)
    first = read_csv(tmp_path)[0]
    assert float(first["concurrency 4: output_tok_s"]) > float(first["concurrency 1: output_tok_s"])
    assert first["dp"] == "1"
    assert "stage" not in first


def test_single_stages_share_columns(tmp_path: Path):
    rows = [row({"bench.concurrency": f"[{number}]"}, [stage(number)]) for number in (1, 4)]
    write_report(sweep(rows), tmp_path)
    assert [each["stage"] for each in read_csv(tmp_path)] == ["concurrency 1", "concurrency 4"]
    assert all(float(each["ttft_ms.p50"]) > 0 for each in read_csv(tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_hundreds_of_rows_of_many_keys_stay_a_page_that_opens(tmp_path: Path):
    values = {
        "profile.max_num_seqs": [str(8 * i) for i in range(1, 16)],
        "model": ["a" * 60, "$b^_"],
    }
    flags = {f"flag_{number}": ["true"] for number in range(MAX_AXES)}
    rows = grid({**values, "dp": ["1", "2", "4", "8"], **flags}, concurrencies=(1, 4))
    rows[0] = row({**rows[0].swept, **dict.fromkeys(flags, "false")}, [stage(1), stage(4)])
    write_report(sweep(rows), tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 8 * 2**20
    assert len(list(tmp_path.glob("*.png"))) <= 2 * MAX_AXES + 2
    assert "profile.max_num_seqs" in Page(tmp_path).text.partition("Not plotted")[2]


def test_the_same_sweep_gives_the_same_bytes(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_report(sweep(grid({"dp": ["1", "2"]}, concurrencies=(4,))), tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_plots_look_the_same_whatever_the_users_matplotlib_is_set_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)
    write_report(sweep([row({"x": "$"}, [stage(4)])]), tmp_path)
    assert matplotlib.rcParams["text.usetex"]


def test_nothing_that_draws_is_loaded_before_a_report_is_written():
    script = (
        "import sys, launcher.sweep.report, launcher.__main__;"
        "print(*sorted({'matplotlib', 'jinja2'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
