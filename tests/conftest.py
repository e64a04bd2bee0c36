"""What every test shares."""

import os

import pytest
from hypothesis import settings

# One thread per test process: several that compute at once would wait for each other's threads.
# Read when torch is loaded, which is after this.
os.environ["OMP_NUM_THREADS"] = "1"

# No time limit per example: machines differ, and pytest-timeout bounds the whole test.
settings.register_profile("flotilla", deadline=None)
settings.register_profile("sanitize", deadline=None, max_examples=10)  # see the Makefile
settings.load_profile("flotilla")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kernel-flags",
        default="",
        metavar="FLAGS",
        help="flags of the C compiler for the kernels' own tests, such as those of its sanitizers",
    )
