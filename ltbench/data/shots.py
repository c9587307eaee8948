"""Shot groups: classes with many, a medium number of, or few training images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from ltbench.errors import UserError

GROUPS = ("many", "medium", "few")


ShotRule = Literal["strict", "inclusive"] | tuple[int, int]


def shot_groups(
    class_counts: Sequence[int], rule: str | tuple[int, int] = "strict"
) -> dict[str, list[int]]:
    """Return the classes of the groups many, medium and few, by number of training images.

    Args:
        class_counts: training images of each class [C].
        rule: ``"strict"`` (> 100, 20..100, < 20), ``"inclusive"`` (>= 100, 21..99, <= 20), or
            the smallest and largest count (low, high) of a medium class.

    Returns:
        Indices of the classes of each group; a group may be empty.

    Raises:
        UserError: the rule is unknown, or low > high.
    """
    low, high = shot_bounds(rule)
    groups: dict[str, list[int]] = {name: [] for name in GROUPS}
    for k, count in enumerate(class_counts):
        groups["many" if count > high else "few" if count < low else "medium"].append(k)
    return groups


def shot_bounds(rule: str | tuple[int, int]) -> tuple[int, int]:
    """Return the smallest and largest number of training images of a medium class.

    Raises:
        UserError: the rule is unknown, or low > high.
    """
    known: dict[Any, tuple[int, int]] = {"strict": (20, 100), "inclusive": (21, 99)}
    if isinstance(rule, str) and rule not in known:
        raise UserError(f"`shot_rule`: expected strict, inclusive or (low, high), found `{rule}`")
    low, high = known[rule] if isinstance(rule, str) else rule
    if low > high:
        raise UserError(f"`shot_rule`: expected (low, high) with low <= high, found {rule}")
    return low, high


def thirds(class_counts: Sequence[int]) -> tuple[int, int] | None:
    """Return the rule that puts about a third of the classes into each group, if there is one.

    Args:
        class_counts: training images of each class [C].
    """
    ordered = sorted(class_counts)
    third = len(ordered) // 3
    rule = (ordered[third], ordered[-1 - third]) if third else None
    return rule if rule and all(shot_groups(class_counts, rule).values()) else None
