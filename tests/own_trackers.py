"""Trackers of a user's own, named in recipes as `python:own_trackers:CLASS`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

from omni_thinker.runs.tracking.base import Place, Study


class Recorder:
    """Writes down each call."""

    def __init__(self, study: Study) -> None:
        self._study, self._file = study, (study.folder / "recorder.jsonl").open("a", encoding="utf-8")
        self._say("made", study.name, study.id, study.project)

    def _say(self, *words: object) -> None:
        self._file.write(json.dumps(words) + "\n")
        self._file.flush()

    def log(self, place: Place, number: int, step: int, values: Mapping[str, float]) -> None:
        self._say("log", place.name(self._study), number, step, dict(values))

    def flush(self) -> None:
        self._file.flush()

    def close(self, *, ended: bool) -> None:
        self._say("close", ended)

    @staticmethod
    def words(study: Study) -> str:
        return f"cat {study.folder / 'recorder.jsonl'}"


class Failing(Recorder):
    """Its server is gone after the second row."""

    def log(self, place: Place, number: int, step: int, values: Mapping[str, float]) -> None:
        if number == 2:
            raise ConnectionError("no route to the tracker\nat all")
        super().log(place, number, step, values)


class Hanging(Recorder):
    """Never answers."""

    def log(self, place: Place, number: int, step: int, values: Mapping[str, float]) -> None:
        time.sleep(1000)


class Dying(Recorder):
    """Takes its process along."""

    def log(self, place: Place, number: int, step: int, values: Mapping[str, float]) -> None:
        import os

        os.abort()
