"""How far a benchmark is."""

from launcher.bench.messages import Progress
from launcher.bench.progress import Ticker


def test_work_that_is_done_tells_how_long_the_rest_takes():
    ticker = Ticker("stage 1 of 2, concurrency 4", num_requests=64)
    line = ticker.line(Progress(num_done=16, num_failed=2, num_parts=1000), elapsed_s=4)
    assert line == ("stage 1 of 2, concurrency 4: 16 of 64 requests, 250 tok/s, 2 failed, ETA 12 s")


def test_before_the_first_answer_nothing_is_foretold():
    assert Ticker("s", 1).line(Progress(0, 0, 0), 0) == "s: 0 of 1 request, 0 tok/s"


def test_sessions_by_the_clock_take_as_long_as_their_arrivals():
    ticker = Ticker("s", 64, last_start_s=30)
    assert ticker.line(Progress(2, 0, 20), 10).endswith("ETA 20 s")
    # The last one has come, and there is a queue.
    assert ticker.line(Progress(16, 0, 20), 40).endswith("ETA 120 s")


def test_a_pipe_gets_a_line_only_now_and_then(capsys):
    ticker = Ticker("s", 64)
    ticker.tell(Progress(1, 0, 1))
    ticker.clear()
    assert capsys.readouterr().err == ""
