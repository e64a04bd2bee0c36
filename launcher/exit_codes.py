"""What an exit code says of the end of a process."""

import signal


def how_it_ended(exit_code: int) -> str:
    """`exit code 1`, or with a negative one `killed by SIGKILL`."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:  # real-time signals have no names
        return f"killed by signal {-exit_code}"
