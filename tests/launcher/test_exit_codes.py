"""What an exit code says."""

import signal

from launcher.exit_codes import how_it_ended


def test_an_exit_code_says_how_a_process_has_ended():
    assert how_it_ended(3) == "exit code 3"
    assert how_it_ended(-signal.SIGKILL) == "killed by SIGKILL"


def test_signals_without_a_name_have_their_number():
    number = signal.SIGRTMIN + 5
    assert how_it_ended(-number) == f"killed by signal {number}"
