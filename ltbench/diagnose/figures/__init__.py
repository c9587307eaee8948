"""Figures of the larger diagnostics, from their tables."""
