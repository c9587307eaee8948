"""Gradients of every class of a batch at the cost of about one extra backward pass."""

from __future__ import annotations

from ltbench.class_gradients.engine import ClassGradients, Engine, Pass

__all__ = ["ClassGradients", "Engine", "Pass"]
