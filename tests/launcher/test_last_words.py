"""What is shown of a log when its process has ended."""

from launcher.last_words import last_words

ROUTINE = "2026-11-24 02:00:00,123 INFO    engine-0 engine.core.process: ready"
WARNING = "2026-11-24 02:00:01,000 WARNING engine-0 engine.link: something is odd"
ERROR = "2026-11-24 02:00:02,000 ERROR   engine-0 engine.entrypoint: engine-0 failed"
TRACEBACK = ["Traceback (most recent call last):", '  File "x.py", line 1', "ValueError: no"]


def test_what_is_routine_is_left_out():
    shown = last_words([ROUTINE, WARNING, ROUTINE, ROUTINE, ERROR, *TRACEBACK, ROUTINE])
    assert shown.splitlines()[1:] == [f"    {line}" for line in (WARNING, ERROR, *TRACEBACK)]


def test_of_many_lines_the_last_are_shown():
    shown = last_words([f"line {index}" for index in range(100)]).splitlines()
    assert len(shown) == 21
    assert shown[-1] == "    line 99"


def test_a_log_that_tells_nothing_is_said_to():
    assert last_words([ROUTINE]) == "\n    (no warning and no error in its log)"
    assert last_words([], "exit code 1") == "\n    (nothing of its log is here)"
    guess = "\n    (no warning and no error in its log; killed from outside?)"
    assert last_words([ROUTINE], "killed by SIGKILL") == guess
