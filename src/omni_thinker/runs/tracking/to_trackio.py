"""Trackio: project, group STUDY, a run for each arm and seed."""

from collections.abc import Mapping
from contextvars import copy_context
from typing import Any

from omni_thinker.runs.tracking.base import Place, Study


class Trackio:
    """Rows lie in FOLDER/trackio, unless they go to a Space or a server."""

    def __init__(self, study: Study) -> None:
        import trackio

        self._study, self._init = study, trackio.init
        self._runs: dict[str, Any] = {}

    def log(self, place: Place, number: int, step: int, values: Mapping[str, float]) -> None:
        if place.key not in self._runs:
            self._runs[place.key] = self._begin(place, fresh=number == 0)
        self._runs[place.key].log(dict(values), step=step)

    def flush(self) -> None:
        """A thread of its own writes them, at most half a second later."""

    def close(self, *, ended: bool) -> None:
        for run in self._runs.values():
            run.finish()

    @staticmethod
    def words(study: Study) -> str:
        place = "" if study.online else f"TRACKIO_DIR={study.folder / 'trackio'} "
        return f"{place}trackio show --project {study.project}"

    def _begin(self, place: Place, *, fresh: bool) -> Any:
        study = self._study
        # It ends the run of before where a context has one, so each run gets a context.
        return copy_context().run(
            self._init,
            project=study.project,
            name=place.name(study),
            group=study.name,
            config={**study.config, "arm": place.arm, "seed": place.seed, "study_id": study.id},
            resume="never" if fresh else "allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
