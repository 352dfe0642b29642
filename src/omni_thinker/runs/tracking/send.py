"""Sends each row of a run to each tracker once, over all processes that ever worked at the run."""

import contextlib
import json
import os
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import ValidationError

from omni_thinker.errors import UserError, printable
from omni_thinker.plugins import Registry
from omni_thinker.recipe.track import TrackSpec
from omni_thinker.runs.json_text import write_json
from omni_thinker.runs.tracking.base import Place, Study, Tracker, values_of
from omni_thinker.runs.tracking.follow import Follower

FOLDER = "track"
"""Folder of a run for what is known of its trackers, and by default for what they write."""
SENT = "sent.json"
_HERE = "omni_thinker.runs.tracking"
TRACKERS = Registry(
    "tracker",
    {
        "trackio": f"{_HERE}.to_trackio:Trackio",
        "wandb": f"{_HERE}.to_wandb:Wandb",
        "tensorboard": f"{_HERE}.to_tensorboard:TensorBoard",
        "mlflow": f"{_HERE}.to_mlflow:Mlflow",
    },
)
"""What `track.to` may name, besides `python:MODULE:CLASS`."""
_LONGEST = 200
"""Characters of a tracker's complaint."""


def check_trackers(spec: TrackSpec) -> None:
    """Raises UserError for a tracker that isn't known, or whose package isn't installed."""
    for name in spec.to:
        TRACKERS.find(name, "track.to")
    if missing := [name for name in spec.to if name in TRACKERS and find_spec(name) is None]:
        packages = f"package {missing[0]}" if len(missing) == 1 else f"packages {', '.join(missing)}"
        raise UserError(f"needs the {packages}: pip install 'omni-thinker[{','.join(missing)}]'", key="track.to")
    if len(set(spec.to)) < len(spec.to):
        raise UserError("names one of them twice", key="track.to")


def read_spec(run: Path) -> tuple[TrackSpec, dict[str, Any]]:
    """The table `[track]` of a run's recipe, and the whole recipe as tables. Raises UserError naming the file."""
    file = run / "recipe.toml"
    try:
        recipe = tomllib.loads(file.read_text("utf-8"))
        return TrackSpec.model_validate(recipe.get("track", {})), recipe
    except FileNotFoundError:
        raise UserError("holds no run", file=run) from None
    except (OSError, ValueError, ValidationError) as exc:
        raise UserError(f"can't be read: {exc}", file=file) from None


class Sender:
    """Belongs to one run directory. One process at a time may send (`process.held`)."""

    def __init__(self, run: Path, spec: TrackSpec, recipe: Mapping[str, Any], warn: Callable[[str], None]) -> None:
        """recipe: the run's, as tables. warn: told in a line when a tracker fails."""
        self._run, self._spec, self._warn = run.resolve(), spec, warn
        self._file = self._run / FOLDER / SENT
        state = _state(self._file)
        self._id: str = state["id"]
        self._noted: dict[str, dict[str, dict[str, int]]] = state["trackers"]
        """Of each tracker, the rows that it has of each unit and of each of its runs."""
        folder = Path(spec.folder).expanduser().resolve() if spec.folder else self._run / FOLDER
        project = spec.project or str(recipe.get("name", "study"))
        usual = (self._run / FOLDER, str(recipe.get("name", "study")), False)
        where = (folder, project, spec.online)
        # What went elsewhere isn't here: each place is counted by itself.
        suffix = "" if where == usual else f" {json.dumps([str(folder), project, spec.online])}"
        self._keys = {name: f"{name}{suffix}" for name in spec.to}
        noted = {name: self._noted.get(self._keys[name], {}) for name in spec.to}
        self._units = {name: Counter[str](of.get("units", {})) for name, of in noted.items()}
        self._runs = {name: Counter[str](of.get("runs", {})) for name, of in noted.items()}
        self._study = Study(
            name=self._run.name, id=self._id, project=project, folder=folder, online=spec.online, config=recipe
        )
        self._trackers: dict[str, Tracker] = {}
        self.failed: dict[str, str] = {}
        """Trackers that get no more rows, with the reason."""
        self._follower = Follower(self._run / "metrics.jsonl")

    def send(self) -> int:
        """Send what is new, and note it; how many rows that were, over all trackers."""
        sent = 0
        for unit, number, row in self._follower.poll():
            place, values = Place(row.seed, row.arm), values_of(row)
            for name in self._spec.to:
                if number < self._units[name][unit]:
                    continue
                if self._try(name, "log", place, self._runs[name][place.key], row.step, values):
                    self._units[name][unit] += 1
                    self._runs[name][place.key] += 1
                    sent += 1
        if sent:
            self._note([name for name in list(self._trackers) if self._try(name, "flush")])
        return sent

    def _fail(self, name: str, why: str) -> None:
        """The tracker gets no more; what it took before is noted where it can be made safe."""
        self.failed[name] = why
        self._warn(f"tracker {name} failed and gets no more rows for now; `omni-thinker track` sends them: {why}")
        tracker = self._trackers.pop(name, None)
        with contextlib.suppress(Exception, SystemExit):
            if tracker is not None:
                tracker.flush()
                self._note([name])

    def close(self, *, ended: bool) -> None:
        """Let the trackers finish."""
        for name in list(self._trackers):
            self._try(name, "close", ended=ended)
        self._follower.close()

    def words(self) -> dict[str, str]:
        """How to look at what each tracker has."""
        names = [name for name, count in self.counts().items() if count and name not in self.failed]
        return {name: words for name in names if (words := self._words_of(name))}

    def _words_of(self, name: str) -> str:
        """Empty where a tracker has none, or fails to say them."""
        with contextlib.suppress(Exception):
            return str(TRACKERS.find(name, "track.to").words(self._study))
        return ""

    def counts(self) -> dict[str, int]:
        """Rows that each tracker has."""
        return {name: sum(self._runs[name].values()) for name in self._spec.to}

    def _try(self, name: str, method: str, *values: Any, **named: Any) -> bool:
        """Call a method of a tracker, which is made at its first row. One that raises gets no more."""
        if name in self.failed:
            return False
        try:
            if name not in self._trackers:
                self._study.folder.mkdir(parents=True, exist_ok=True)
                quiet(self._study)
                self._trackers[name] = TRACKERS.find(name, "track.to")(self._study)
            getattr(self._trackers[name], method)(*values, **named)
        except (Exception, SystemExit) as exc:  # whatever a tracker's package raises
            why = " ".join(printable(f"{type(exc).__name__}: {exc}").split())[:_LONGEST]
            self._fail(name, why)
            return False
        return True

    def _note(self, whole: list[str]) -> None:
        """Write down what `whole` have."""
        for name in whole:
            self._noted[self._keys[name]] = {"units": dict(self._units[name]), "runs": dict(self._runs[name])}
        write_json(self._file, {"id": self._id, "trackers": self._noted})


def quiet(study: Study) -> None:
    """Let packages of trackers write where they should, and reach nothing but their own servers."""
    os.environ["TRACKIO_DIR"] = str(study.folder / "trackio")
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    if not study.online:
        os.environ["HF_HUB_OFFLINE"] = "1"
        for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_WEBHOOK_URL", "TRACKIO_BUCKET_ID"):
            os.environ.pop(name, None)


def _state(file: Path) -> dict[str, Any]:
    """What was noted before. Where that can't be read, everything is sent anew, to new runs."""
    try:
        state = json.loads(file.read_text("utf-8"))
        counts = [count for of in state["trackers"].values() for by in of.values() for count in by.values()]
        if isinstance(state["id"], str) and all(type(count) is int and count >= 0 for count in counts):
            return dict(state)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return {"id": uuid4().hex[:8], "trackers": {}}
