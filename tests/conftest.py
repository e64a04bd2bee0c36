"""What every test shares."""

import os

from hypothesis import settings

# One thread per test process: several that compute at once would wait for each other's threads.
# Read when torch is loaded, which is after this.
os.environ["OMP_NUM_THREADS"] = "1"

# No time limit per example: machines differ, and pytest-timeout bounds the whole test.
settings.register_profile("flotilla", deadline=None)
settings.load_profile("flotilla")
