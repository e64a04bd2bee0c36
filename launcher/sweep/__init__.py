"""Sweeps (`-m action=bench ...`): many configs measured one after the other, and their report."""
