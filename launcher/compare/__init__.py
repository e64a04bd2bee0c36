"""Comparing (`action=compare`): is one benchmark, or one sweep, worse than another?"""
