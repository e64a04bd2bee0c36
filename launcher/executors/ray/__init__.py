"""Carries a plan out on a Ray cluster. Nothing outside this package imports ray."""
