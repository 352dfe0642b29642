"""A worker: makes units of one run, wherever its process is."""

import gc
import logging
import time
import traceback
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from omni_thinker.errors import UserError
from omni_thinker.isolation import allow_weak_sandbox, use_workers
from omni_thinker.judging.shared.share import Share
from omni_thinker.recipe import Recipe, parse_recipe
from omni_thinker.runs.journal import NAME, unit_id
from omni_thinker.runs.progress import Silent
from omni_thinker.runs.resume import digests
from omni_thinker.runs.rundir import DRAWN
from omni_thinker.runs.tape import Entry, Tape
from omni_thinker.runs.unit_run import Files, Shared, UnitRun
from omni_thinker.studies.crews.mail import Mail, broke, entries_of
from omni_thinker.studies.setup import Setup, prepare
from omni_thinker.studies.units import Unit, plan_work
from omni_thinker.studies.walk import SeedWalk

_log = logging.getLogger(__name__)


class Worker:
    """Holds what the units of one run share, and the walk of the seed that it worked on last."""

    def __init__(self, hello: Mapping[str, Any], where: str, files: Files | None = None) -> None:
        """hello: recipe, run (its directory, or this machine's copy), folder (in which the command runs), problems
        (what the driver has), judged, weak, cores."""
        self.where, self._files = where, files or Shared()
        self._run, self._problems = Path(hello["run"]), hello["problems"]
        self._recipe: Recipe = parse_recipe(hello["recipe"], self._run / "recipe.toml")
        self._work = plan_work(self._recipe)
        self._setup: Setup | None = None
        self._walk: SeedWalk | None = None
        self._mail: Mail | None = None
        self._share = Share(self._ask_owner) if hello["judged"] else None
        allow_weak_sandbox(hello["weak"])
        use_workers(hello["cores"])

    def work(self, order: Mapping[str, Any], mail: Mail) -> None:
        """Work on a unit until it has ended or failed, and say so. Signals come through as exceptions, once said."""
        began, self._mail = time.monotonic(), mail
        try:
            self._make(order, mail)
        except Exception as exc:
            self._walk = None  # who knows what its policy holds
            if not isinstance(exc, UserError):
                traceback.print_exc()
            mail.send(broke(self.where, exc))
        except BaseException as exc:
            mail.send({**broke(self.where, exc), "leaves": True})
            raise
        else:
            self._files.ended()
            mail.send({"kind": "ended", "where": self.where, "seconds": time.monotonic() - began})

    def _make(self, order: Mapping[str, Any], mail: Mail) -> None:
        seed = order["seed"]
        unit = next(each for each in self._work.of_seed(seed) if each.name == order["unit"])
        if self._walk is None or self._walk.seed != seed:
            self._walk = None
            gc.collect()  # the last seed's policy, before the next one is loaded
            self._walk = SeedWalk(self.prepare(), self._work, seed)
        walk = self._walk
        for each in self._work.inputs(unit):
            if each.name not in walk.ran:
                walk.run(each, self._unit_run(each, order, mail), Silent())
        walk.run(unit, self._unit_run(unit, order, mail), _Sender(mail))

    def prepare(self) -> Setup:
        """Make and check what all units share, once. Raises UserError where this machine finds other problems than the
        driver."""
        if self._setup is None:
            self._files.need(self._run / DRAWN)
            self._setup = prepare(self._recipe, resumed=self._run, shared=self._share)
            here = digests(self._setup.pools)
            if other := [name for name in self._problems if here.get(name) != self._problems[name]]:
                raise UserError(f"{self.where} finds other problems than the driver: {', '.join(other)}")
        return self._setup

    def _ask_owner(self, method: str, arguments: dict[str, Any]) -> "Future[Any]":
        """What the judge asks of the one that is shared."""
        if self._mail is None:
            raise RuntimeError("the judge asks while no unit is worked on")
        return self._mail.ask({"kind": "judge", "method": method, "arguments": arguments})

    def _unit_run(self, unit: Unit, order: Mapping[str, Any], mail: Mail) -> UnitRun:
        def write(key: str, kind: str, value: Any) -> None:
            mark = {} if self._share is None else {"mark": self._share.state()}
            mail.ask({"kind": "line", "entry": [key, kind, value], **mark}).result()

        def append(log: str, text: str) -> None:
            mail.send({"kind": "row", "log": log, "text": text})

        known: list[Entry] = list(entries_of(order, unit_id(unit.seed, unit.name)))
        return UnitRun(self._run, unit.name, Tape(known, write, self._run / NAME), append, self._files)


class _Sender:
    """Tells the driver how far a unit is."""

    def __init__(self, mail: Mail) -> None:
        self._mail = mail

    def say(self, text: str) -> None:
        self._mail.send({"kind": "say", "text": text})

    def show(self, text: str, *, always: bool = False) -> None:
        self._mail.send({"kind": "show", "text": text})

    def unit(self, kind: str, seconds: float, count: int = 1) -> None:
        self._mail.send({"kind": "did", "work": kind, "count": count, "seconds": seconds})

    def skip(self, kind: str, count: int) -> None:
        self._mail.send({"kind": "skip", "work": kind, "count": count})
