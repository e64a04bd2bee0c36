"""What a sweep says while it runs."""

import pytest

from launcher.sweep.progress import Progress
from tests.launcher.sweep.sample_sweeps import row


def test_an_interruption_is_told_once_while_the_job_ends(capsys: pytest.CaptureFixture[str]):
    progress = Progress(2, [])
    progress.begin(row({"dp": "1"}))
    progress.tick()
    for _ in range(2):
        progress.tick(is_interrupted=True)
    told = capsys.readouterr().err.splitlines()[1:]
    assert told == ["interrupted: ending the job that runs (Ctrl-C again forces)"]
