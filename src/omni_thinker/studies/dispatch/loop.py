"""The walk through a study: what may be begun is handed to a crew, and what comes back is kept.

Only this process writes the journal and the logs. A unit may be worked on more than once: what an attempt left that
can't be resumed from is cut off before the next one, and what an attempt says once another has begun isn't heard."""

import time
from collections.abc import Callable, Mapping, Sequence

from omni_thinker.errors import UserError
from omni_thinker.judging.shared.owner import JudgeOwner
from omni_thinker.runs.journal import STUDY
from omni_thinker.runs.rundir import RunDir
from omni_thinker.runs.tape import Entry
from omni_thinker.studies.dispatch.board import Board
from omni_thinker.studies.dispatch.crew import Broke, Crew, Did, Ended, Order, Row, Said, Told, Written, caller
from omni_thinker.studies.dispatch.queue import Queue
from omni_thinker.studies.units import Unit, WorkPlan

_PATIENCE_S = 40.0
"""Time for workers to stop: a step and a checkpoint."""


class Dispatcher:
    """Walks the units of one study."""

    def __init__(
        self,
        run: RunDir,
        work: WorkPlan,
        board: Board,
        *,
        attempts: int,
        on_end: Callable[[Unit], None],
        owner: JudgeOwner | None = None,
    ) -> None:
        """attempts: at one unit, before the study ends. on_end: told each unit that has ended, whose lines are kept.
        owner: of the judge that all units share, whose counts stand in the journal."""
        self._owner = owner
        self._run, self._work, self._board, self._attempts, self._on_end = run, work, board, attempts, on_end
        self._units = {unit.id: unit for unit in work.units}
        self._running = dict[str, int]()
        """The number of the attempt that is under way, by unit."""
        self._tried = dict[str, int]()

    def walk(self, crew: Crew, first: Mapping[str, float]) -> None:
        """Have all units worked on that haven't ended; `first`: see Queue.

        Raises UserError where a unit fails for good, in the words of its last attempt; all others are kept."""
        ended = self._run.journal.ended()
        queue = self._queue = Queue(self._work.units, first, ended)
        for known in self._work.units:
            if known.id in ended:
                self._board.known(known)
        try:
            while queue.left:
                while len(self._running) < crew.size and (unit := queue.pop(crew.near)) is not None:
                    self._start(unit, crew)
                for told in crew.wait():
                    self._hear(told)
                self._board.draw()
            self._board.draw(now=True)
        finally:
            self._wind_down(crew)

    def _wind_down(self, crew: Crew) -> None:
        """Let what runs come to where nothing is lost, for a while."""
        try:
            crew.stop()
            until = time.monotonic() + _PATIENCE_S
            while self._running and time.monotonic() < until:
                for told in crew.wait():
                    if isinstance(told.message, Broke):
                        if self._running.get(told.unit) == told.attempt:
                            self._leave(self._units[told.unit])
                    else:
                        self._hear(told)
        finally:
            crew.close()

    def _start(self, unit: Unit, crew: Crew) -> None:
        attempt = self._tried[unit.id] = self._tried.get(unit.id, 0) + 1
        self._running[unit.id] = attempt
        journal, inputs = self._run.journal, tuple(self._work.inputs(unit))
        if attempt > 1:
            journal.note(f"again {unit.id}", {"attempt": attempt, "lines": len(journal.entries(unit.id))}, STUDY)
        entries: dict[str, Sequence[Entry]] = {each.id: journal.entries(each.id) for each in (*inputs, unit)}
        self._board.began(unit)
        try:
            crew.start(Order(unit, attempt, inputs, entries))
        except BaseException:
            self._running.pop(unit.id)  # nobody works on it, so there is nobody to wait for
            raise

    def _hear(self, told: Told) -> None:
        unit, message = self._units[told.unit], told.message
        if self._running.get(unit.id) != told.attempt:
            return  # of an attempt that was given up; its worker waits in vain for what it writes to be kept
        match message:
            case Row():
                self._run.journal.append(unit.id, message.log, message.text)
            case Written():
                if self._owner is not None and message.mark is not None:
                    self._owner.keep(caller(unit.id, told.attempt), message.mark)
                self._run.journal.record(unit.id, message.entry)
                message.done()
            case Said():
                self._board.said(unit, message.text, moment=message.moment)
            case Did():
                self._board.did(unit, message)
            case Ended():
                self._end(unit, message)
            case Broke():
                self._break(unit, message)

    def _end(self, unit: Unit, ended: Ended) -> None:
        self._leave(unit)
        value = {"seconds": round(ended.seconds, 3), "where": ended.where, "at": round(time.time(), 3)}
        self._run.journal.record(unit.id, Entry("end", "end", value))
        self._queue.end(unit)
        self._board.ended(unit)
        self._on_end(unit)

    def _leave(self, unit: Unit) -> None:
        """The attempt at a unit is over."""
        attempt = self._running.pop(unit.id)
        if self._owner is not None:
            self._owner.gone(caller(unit.id, attempt))

    def _break(self, unit: Unit, broke: Broke) -> None:
        self._leave(unit)
        self._run.journal.rewind(unit.id)
        tried = self._tried[unit.id]
        if isinstance(broke.final, UserError):
            why = broke.final
            raise UserError(f"{unit.words} ended early: {why.message}", file=why.file, key=why.key)
        if broke.final is not None:
            raise broke.final
        if tried >= self._attempts:
            raise UserError(f"{unit.words} was tried {tried} times, at last on {broke.where}: {broke.why}")
        self._board.broke(unit, f"{broke.why} ({broke.where}); it is worked on again, attempt {tried + 1}")
        self._queue.put(unit)
