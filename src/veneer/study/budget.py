"""Points of equal size: a rank for each of those that share a budget of parameters."""

from __future__ import annotations

from dataclasses import replace

from veneer.config.load import resolve
from veneer.errors import UserError
from veneer.plan.parameters import plan_parameters
from veneer.study.config import Point, config_of_point, points_of
from veneer.study.context import StudyContext

__all__ = ["budget_points"]


def budget_points(context: StudyContext) -> list[Point]:
    """Return the study's points; each that sets no rank gets the one whose parameter count is closest to the budget.

    Raises:
        UserError: the adapter of a point does not fit the base.
    """
    points = list(points_of(context.study.config))
    budget = context.study.config.budget
    if budget is None:
        return points
    (budget_point,) = (point for point in points if point.name == budget)
    count = _count(context, budget_point)
    return [point if "adapter.rank" in point.changes else _with_rank(context, point, count) for point in points]


def _with_rank(context: StudyContext, point: Point, count: int) -> Point:
    """Return a point with the rank that gives the count, which is linear in the rank."""
    ranked = [replace(point, changes={**point.changes, "adapter.rank": rank}) for rank in (1, 2)]
    one, two = (_count(context, ranked_point) for ranked_point in ranked)
    rank = max(1, round(1 + (count - one) / (two - one)))
    return replace(point, changes={**point.changes, "adapter.rank": rank})


def _count(context: StudyContext, point: Point) -> int:
    """Return the trainable parameters of a point."""
    try:
        config = resolve(config_of_point(context.study, point), context.family)
        return plan_parameters(config, context.family).trainable
    except UserError as fault:
        raise UserError(fault.what, code=fault.code, where=f"point {point.name!r}", remedy=fault.remedy) from None
