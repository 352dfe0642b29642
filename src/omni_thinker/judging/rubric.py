"""Rubrics: criteria with bands of points, as rows bring them along."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from omni_thinker.judging.base import Criterion

_BAND = re.compile(r"\d+(?:\s*-\s*\d+)?")
_CLOSE = 2
"""Points by which two askings may differ and still count as saying the same: one band."""


def read_rubric(value: Any) -> list[Criterion]:
    """Criteria from a row: tables with a `name`, a `description` (or `criteria_description`) and bands ("1-2": "...").

    A plain text is a criterion without bands. Raises ValueError saying what is wrong."""
    if not isinstance(value, list) or not value:
        raise ValueError("a rubric is a list of criteria, at least one")
    rubric = [_criterion(item, number) for number, item in enumerate(value, 1)]
    names = [criterion.name for criterion in rubric]
    if len(set(names)) < len(names):
        raise ValueError("a rubric names each criterion once")
    return rubric


def _criterion(item: Any, number: int) -> Criterion:
    if isinstance(item, str) and item.strip():
        return Criterion(item, item, {})
    if not isinstance(item, Mapping) or not isinstance(item.get("name"), str) or not item["name"].strip():
        raise ValueError(f"criterion {number} needs a name")
    description = item.get("description", item.get("criteria_description", ""))
    bands = item["bands"] if isinstance(item.get("bands"), Mapping) else item
    points = {key: text for key, text in bands.items() if isinstance(key, str) and _BAND.fullmatch(key)}
    if not isinstance(description, str) or not all(isinstance(text, str) for text in points.values()):
        raise ValueError(f"criterion {number} ({item['name']}) has something else than text in it")
    return Criterion(item["name"], description, points)


def describe(rubric: Sequence[Criterion]) -> str:
    """The criteria as a judge reads them."""
    blocks = []
    for number, criterion in enumerate(rubric, 1):
        lines = [f"{number}. {criterion.name}" + (f": {criterion.description}" if criterion.description else "")]
        lines += [f"   {band} points: {text}" for band, text in criterion.bands.items()]
        blocks.append("\n".join(lines))
    return "\n".join(blocks)


def agreed_rating(
    rubric: Sequence[Criterion], askings: Sequence[Sequence[int]]
) -> tuple[float, dict[str, float], bool]:
    """(value in [0, 1], the same for each criterion, whether all askings agree to within a band).

    `askings`: points from 1 to 10 in the rubric's order, one list for each time it was asked."""
    columns = list(zip(*askings, strict=True))
    parts = {
        f"rubric/{criterion.name}": (sum(points) / len(points) - 1) / 9
        for criterion, points in zip(rubric, columns, strict=True)
    }
    steady = all(max(points) - min(points) <= _CLOSE for points in columns)
    values = [(sum(points) / len(points) - 1) / 9 for points in columns]
    return sum(values) / len(values), parts, steady
