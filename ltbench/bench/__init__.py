"""Measurements: each compares pipelines that run in turn in one process, as ratios."""
