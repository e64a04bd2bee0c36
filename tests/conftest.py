"""What every test shares."""

from hypothesis import settings

# No time limit per example: machines differ, and pytest-timeout bounds the whole test.
settings.register_profile("flotilla", deadline=None)
settings.load_profile("flotilla")
