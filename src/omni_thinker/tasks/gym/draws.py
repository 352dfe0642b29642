"""Problems of a reasoning-gym set by their numbers, drawn and checked inside the sandbox, a batch at a time."""

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from omni_thinker.isolation import IsolationError
from omni_thinker.rewards.gym import GYM

_DEADLINE_S = 600.0
_AT_ONCE = 64
_SAY_EVERY_S = 15.0
_log = logging.getLogger(__name__)


class DrawFailed(Exception):
    """The set, or its sandbox, gave nothing that is of use."""


class Draws:
    """The problems of one set, `chosen` as requests name it, kept as they are drawn.

    evaluates: its scorer may run answers as code. label: what lines on progress call it. `seconds`: processor time that
    drawing took so far."""

    def __init__(self, chosen: Mapping[str, Any], label: str, *, evaluates: bool) -> None:
        self._chosen, self._label, self._evaluates = dict(chosen), label, evaluates
        self._rows: dict[int, dict[str, Any]] = {}
        self._began = self._said = self.seconds = 0.0

    def forget(self) -> None:
        """Let go of what was drawn."""
        self._rows.clear()

    def row(self, index: int, ahead: Sequence[int]) -> dict[str, Any]:
        """{"entry", "gold"} of problem `index`, or {"fault"}: why it can't be used.

        ahead: numbers that will be wanted soon, `index` first; they are asked for together. Raises DrawFailed."""
        if index not in self._rows:
            wanted = [number for number in dict.fromkeys([index, *ahead]) if number not in self._rows][:_AT_ONCE]
            self._say_progress()
            for number, row in zip(wanted, self._drawn(wanted), strict=False):
                self._rows[number] = row
        return self._rows[index]

    def _drawn(self, indices: list[int]) -> list[dict[str, Any]]:
        reply = self._ask({"indices": indices}, evaluates=True)
        rows = _list(reply, "drawn")
        self.seconds += float(reply.get("seconds", 0.0))
        if not rows or not all(map(_is_row, rows)):
            raise DrawFailed("its problems have an unknown form")
        whole = [row for row in rows if "fault" not in row]
        faults = _list(self._ask({"golds": whole}, evaluates=self._evaluates), "faults") if whole else []
        if len(faults) != len(whole):
            raise DrawFailed("its scorer's replies have an unknown form")
        for row, fault in zip(whole, faults, strict=True):
            if fault is not None:
                row["fault"] = str(fault)[:300]
        return rows

    def _ask(self, request: Mapping[str, Any], *, evaluates: bool) -> dict[str, Any]:
        whole = {"set": self._chosen, **request}
        try:
            return GYM.call_sync(whole, _DEADLINE_S, settings=self._chosen, evaluates=evaluates)
        except IsolationError as exc:
            raise DrawFailed(str(exc)) from None

    def _say_progress(self) -> None:
        now = time.monotonic()
        if not self._rows:
            self._began = self._said = now
        elif now - self._said > _SAY_EVERY_S:
            self._said = now
            _log.warning("%s: %d problems drawn in %.0f s", self._label, len(self._rows), now - self._began)


def _list(reply: Mapping[str, Any], key: str) -> list[Any]:
    answer = reply.get(key)
    return answer if isinstance(answer, list) else []


def _is_row(row: object) -> bool:
    """Whether what a set made is a problem; programs that a model wrote may have had a hand in it."""
    if not isinstance(row, dict):
        return False
    if isinstance(row.get("fault"), str):
        return True
    entry, gold = row.get("entry"), row.get("gold")
    question = entry.get("question") if isinstance(entry, dict) else None
    texts = [question, "" if gold is None else gold]
    return all(isinstance(text, str) and not any("\ud800" <= char <= "\udfff" for char in text) for text in texts)


def commonest(reasons: Sequence[str]) -> str:
    """The reason that is given most often, of at least one."""
    return Counter(reasons).most_common(1)[0][0]
