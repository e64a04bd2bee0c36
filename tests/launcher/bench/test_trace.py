"""Trace files in Mooncake's format."""

from pathlib import Path

import pytest

from launcher.bench.trace import Entry, parse_trace, read_trace
from launcher.errors import Refused

GOOD = '{"timestamp": 27, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}'


def test_requests_come_in_the_order_of_their_time():
    early = '{"timestamp": 3, "input_length": 1, "output_length": 2, "more": "is skipped"}'
    assert parse_trace([GOOD, "\n", early], "f") == [Entry(3, 1, 2), Entry(27, 6955, 52, [46, 47])]


def test_no_more_is_read_than_wanted():
    assert len(parse_trace([GOOD, GOOD, "nonsense"], "f", limit=2)) == 2


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("nonsense", "JSON is malformed"),
        ('{"timestamp": 1, "input_length": 5}', "missing required field `output_length`"),
        ('{"timestamp": 1, "input_length": "5", "output_length": 1}', "got `str` - at `$.input_le"),
        ('{"timestamp": 1, "input_length": 0, "output_length": 1}', "at least 1: 0"),
        ('{"timestamp": -1, "input_length": 1, "output_length": 1}', "at least 0: -1"),
    ],
)
def test_a_wrong_line_is_named(line: str, why: str):
    with pytest.raises(Refused, match=r"a/file line 3 is no request of a trace: ") as refused:
        parse_trace([GOOD, "", line], "a/file")
    assert why in str(refused.value)
    assert '"input_length": 128' in refused.value.hint


def test_a_file_without_requests_or_that_is_not_there_is_refused(tmp_path: Path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(Refused, match="holds no request"):
        read_trace(str(empty))
    with pytest.raises(Refused, match=r"cannot be read: .*none.jsonl \(No such file"):
        read_trace(str(tmp_path / "none.jsonl"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Refused, match="it is not text"):
        read_trace(str(tmp_path / "binary"))
