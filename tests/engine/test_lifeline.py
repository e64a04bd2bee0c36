import os
import subprocess
import sys

import pytest

from engine.lifeline import FAREWELL, Lifeline, frame


def test_the_payload_arrives_whole_however_it_is_cut():
    reading, writing = os.pipe()
    data = frame(b"x" * 1000)
    for begin in range(0, len(data), 7):
        os.write(writing, data[begin : begin + 7])
    assert Lifeline(reading).payload() == b"x" * 1000
    os.close(writing)
    os.close(reading)


def test_an_end_before_the_whole_payload_is_told():
    reading, writing = os.pipe()
    os.write(writing, frame(b"x" * 1000)[:500])
    os.close(writing)
    with pytest.raises(EOFError, match="the launcher ended"):
        Lifeline(reading).payload()
    os.close(reading)


@pytest.mark.parametrize(("last", "was_told"), [(FAREWELL, "True"), (b"", "False")])
def test_a_process_knows_whether_it_was_told_to_end(last: bytes, was_told: str):
    reading, writing = os.pipe()
    code = f"""
import threading
from engine.lifeline import Lifeline
ended = threading.Event()
lifeline = Lifeline({reading})
lifeline.watch(ended.set, grace_s=30)
ended.wait(30)
print(lifeline.was_told)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code], pass_fds=[reading], stdout=subprocess.PIPE, text=True
    )
    os.close(reading)
    os.write(writing, last)
    os.close(writing)
    out, _ = child.communicate(timeout=30)
    assert out.strip() == was_told


def test_a_process_that_does_not_listen_is_ended_after_the_grace():
    reading, writing = os.pipe()
    code = f"""
import threading
from engine.lifeline import Lifeline
Lifeline({reading}).watch(lambda: print("told", flush=True), grace_s=0.2)
threading.Event().wait(60)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code], pass_fds=[reading], stdout=subprocess.PIPE
    )
    os.close(reading)
    os.close(writing)
    out, _ = child.communicate(timeout=30)
    assert out == b"told\n"
    assert child.returncode == 1
