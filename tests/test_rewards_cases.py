"""Small inputs from public reports of wrong verdicts, which aren't part of the repository."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from omni_thinker.isolation import shutdown
from omni_thinker.recipe import RewardSpec
from omni_thinker.rewards import make_reward, score_texts
from omni_thinker.types import Problem

_OWN = ("id", "response", "answer", "expected", "why", "source", "now")


@pytest.fixture(autouse=True, scope="module")
def _closed() -> Iterator[None]:
    yield
    shutdown()


@pytest.mark.parametrize(("name", "part"), [("math", "math"), ("short_answer", "short_answer"), ("code", "unit_tests")])
def test_public_cases_are_as_expected(shared_data: Path, name: str, part: str) -> None:
    path = shared_data.parent / "cases" / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"no {path}")
    rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    reward = make_reward(RewardSpec(gate=(), sum={part: 1.0}), judge=None)

    async def scored() -> list[float | None]:
        limit = asyncio.Semaphore(4)

        async def one(row: dict[str, Any]) -> float | None:
            data = {key: value for key, value in row.items() if key not in _OWN}
            # The rows say in words which setting they are about.
            data |= {"letters_ok": "choices" in row and "without letters_ok" not in row["why"]}
            async with limit:
                problem = Problem(row["id"], "case", "", row.get("answer"), data)
                [score] = await score_texts(reward, problem, [row["response"]])
            return score.value

        return list(await asyncio.gather(*map(one, rows)))

    wrong = [row["id"] for row, value in zip(rows, asyncio.run(scored()), strict=True) if value != row["expected"]]
    assert len(wrong) <= 0.02 * len(rows), wrong
