"""MLflow: an experiment, a parent run for the study, and a child run for each arm and seed."""

import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from omni_thinker.runs.tracking.base import Place, Study

_TAG = "omni_thinker"
"""Tag by which a resumed study finds its runs."""
_LONGEST, _MOST = 500, 100
"""Characters of a parameter, and parameters and metrics in one request: what every server takes."""


class Mlflow:
    """Offline, rows lie in the database FOLDER/mlflow.db."""

    def __init__(self, study: Study) -> None:
        from mlflow.tracking import MlflowClient

        self._study = study
        place = _place(study)
        self._client = MlflowClient(place)
        known = self._client.get_experiment_by_name(study.project)
        artifacts = (study.folder / "mlflow-artifacts").as_uri() if place == _local(study) else None
        self._experiment = known.experiment_id if known else self._client.create_experiment(study.project, artifacts)
        self._parent = self._begin(study.name, f"{study.id}", {})
        self._log_config()
        self._runs: dict[str, str] = {}

    def log(self, place: Place, number: int, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        if place.key not in self._runs:
            tags = {"mlflow.parentRunId": self._parent, "study": self._study.name, "arm": place.arm}
            tags["seed"] = str(place.seed)
            self._runs[place.key] = self._begin(place.name(self._study), f"{self._study.id}-{place.slug}", tags)
        now = int(time.time() * 1000)
        for part in _parts([Metric(name, value, now, step) for name, value in values.items()]):
            self._client.log_batch(self._runs[place.key], metrics=part)

    def flush(self) -> None:
        """Each request is answered before the next."""

    def close(self, *, ended: bool) -> None:
        for run in (*self._runs.values(), self._parent):
            self._client.set_terminated(run, "FINISHED" if ended else "KILLED")

    @staticmethod
    def words(study: Study) -> str:
        place = _place(study)
        return f"mlflow ui --backend-store-uri {place}" if place == _local(study) else place

    def _begin(self, name: str, tag: str, tags: Mapping[str, str]) -> str:
        """The run with this tag, new or resumed; its id."""
        known = self._client.search_runs([self._experiment], f"tags.{_TAG} = '{tag}'", max_results=1)
        if known:
            run: str = known[0].info.run_id
            self._client.update_run(run, status="RUNNING")
            return run
        made: str = self._client.create_run(self._experiment, run_name=name, tags={**tags, _TAG: tag}).info.run_id
        return made

    def _log_config(self) -> None:
        """The recipe as parameters of the parent, which take no second value: a changed key keeps its first."""
        from mlflow.entities import Param

        known = self._client.get_run(self._parent).data.params
        params = [Param(key, value) for key, value in _flat(self._study.config) if key not in known]
        for part in _parts(params):
            self._client.log_batch(self._parent, params=part)


def _local(study: Study) -> str:
    return f"sqlite:///{study.folder / 'mlflow.db'}"


def _place(study: Study) -> str:
    """Address of the server, or of the database on this machine."""
    return (study.online and os.environ.get("MLFLOW_TRACKING_URI")) or _local(study)


def _parts(rows: list[Any]) -> Iterator[list[Any]]:
    for begin in range(0, len(rows), _MOST):
        yield rows[begin : begin + _MOST]


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and values as texts, shortened to what a parameter takes."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)[:_LONGEST]
