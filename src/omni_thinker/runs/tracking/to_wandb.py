"""Weights & Biases: project, group STUDY, a run for each arm and seed."""

from collections.abc import Mapping
from typing import Any

from omni_thinker.runs.tracking.base import Place, Study


class Wandb:
    """Offline runs lie in FOLDER/wandb. A resumed study writes another folder with the same run id, which `wandb sync`
    adds to the first."""

    def __init__(self, study: Study) -> None:
        import wandb

        self._study, self._init = study, wandb.init
        self._settings = wandb.Settings(
            mode="online" if study.online else "offline",
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,
            x_disable_meta=True,
        )
        self._runs: dict[str, Any] = {}

    def log(self, place: Place, number: int, step: int, values: Mapping[str, float]) -> None:
        if place.key not in self._runs:
            self._runs[place.key] = self._begin(place)
        # wandb's own step only rises, so it counts rows; curves are drawn over ours.
        self._runs[place.key].log({"step": step, **values}, step=number)

    def flush(self) -> None:
        """Its own process has them."""

    def close(self, *, ended: bool) -> None:
        for run in self._runs.values():
            run.finish(exit_code=0 if ended else 1)

    @staticmethod
    def words(study: Study) -> str:
        runs = study.folder / "wandb" / f"offline-run-*-{study.id}-*"
        return f"project {study.project} of wandb" if study.online else f"wandb sync {runs}"

    def _begin(self, place: Place) -> Any:
        study = self._study
        run = self._init(
            project=study.project,
            group=study.name,
            job_type=place.arm,
            name=place.name(study),
            id=f"{study.id}-{place.slug}",
            tags=[place.arm, f"seed-{place.seed}"],
            dir=str(study.folder),
            config={**study.config, "arm": place.arm, "seed": place.seed},
            resume="allow" if study.online else None,  # offline it would only warn
            reinit="create_new",
            settings=self._settings,
        )
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        return run
