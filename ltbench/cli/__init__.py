"""The commands of `ltbench`."""

from ltbench.cli.app import main

__all__ = ["main"]
