"""What a worker and the driver say to each other, as plain JSON; and how the driver reads it.

The worker sends rows, lines of the journal and what it is at. It waits for a line to be on disk before it goes on."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from omni_thinker.errors import EngineLost, UserError, machine_error
from omni_thinker.judging.shared.owner import JudgeOwner
from omni_thinker.runs.tape import Entry
from omni_thinker.studies.dispatch.crew import Broke, Did, Ended, Message, Order, Row, Said, Told, Written, caller

Reply = Callable[[Any], object]
_POLL_S = 0.2


class Mail(Protocol):
    """The worker's end."""

    def send(self, table: Mapping[str, Any]) -> None:
        """Say something; comes back at once."""

    def ask(self, table: Mapping[str, Any]) -> "Future[Any]":
        """Say something that is replied to; comes back at once. May be called from several threads."""


class Inbox:
    """The driver's end: collects what workers say, from any thread."""

    def __init__(self, owner: JudgeOwner | None) -> None:
        """owner: of the judge that all units share."""
        self._told: SimpleQueue[Told] = SimpleQueue()
        self._owner = owner

    def receive(self, unit: str, attempt: int, table: Mapping[str, Any], reply: Reply) -> None:
        """A worker's message about an attempt at a unit. `reply` is called where it waits for one."""
        if table["kind"] == "judge":
            self._judge(caller(unit, attempt), table, reply)
            return
        self.put(Told(unit, attempt, _message(table, reply)))

    def _judge(self, caller: str, table: Mapping[str, Any], reply: Reply) -> None:
        """The owner answers at once, from a thread of its own: judging doesn't wait for what is written."""
        if self._owner is None:
            raise ValueError("nobody owns a judge")
        answer = self._owner.submit(caller, table["method"], table["arguments"])
        answer.add_done_callback(
            lambda done: reply({"failed": str(exc)} if (exc := done.exception()) else done.result())
        )

    def put(self, told: Told) -> None:
        """A message that the crew makes itself, of a worker that says nothing any more."""
        self._told.put(told)

    def take(self) -> list[Told]:
        """All messages since, in order; waits a moment for the first."""
        told = []
        try:
            told.append(self._told.get(timeout=_POLL_S))
            while True:
                told.append(self._told.get_nowait())
        except Empty:
            return told


def broke(where: str, exc: BaseException) -> dict[str, Any]:
    """How a worker says that a unit failed. Wrong input and a full disk end the study; after all else, a process of the
    unit that was lost included, another attempt may help."""
    table: dict[str, Any] = {"kind": "broke", "where": where, "why": f"{type(exc).__name__}: {exc}"}
    if isinstance(exc, UserError):
        file = None if exc.file is None else str(exc.file)
        table["final"] = {"message": exc.message, "file": file, "key": exc.key}
    elif not isinstance(exc, EngineLost) and isinstance(exc, Exception) and (why := machine_error(exc)) is not None:
        table["machine"] = f"{where}: {why}"
    return table


def to_table(order: Order) -> dict[str, Any]:
    """An order; units by name, since whoever works on them has the plan, too."""
    entries = {
        unit: [[entry.key, entry.kind, entry.value] for entry in of_unit] for unit, of_unit in order.entries.items()
    }
    return {"seed": order.unit.seed, "unit": order.unit.name, "attempt": order.attempt, "entries": entries}


def entries_of(table: Mapping[str, Any], unit: str) -> Sequence[Entry]:
    """What an order says of a unit."""
    return [Entry(*entry) for entry in table["entries"].get(unit, ())]


def _message(table: Mapping[str, Any], reply: Reply) -> Message:
    match table["kind"]:
        case "row":
            return Row(table["log"], table["text"])
        case "line":
            return Written(Entry(*table["entry"]), lambda: reply(None), table.get("mark"))
        case "say" | "show":
            return Said(table["text"], table["kind"] == "show")
        case "did":
            return Did(table["work"], table["count"], table["seconds"])
        case "skip":
            return Did(table["work"], table["count"], skipped=True)
        case "ended":
            return Ended(table["where"], table["seconds"])
        case "broke":
            final: Exception | None = UserError(**table["final"]) if table.get("final") else None
            if table.get("machine"):
                final = EngineLost(table["machine"])
            return Broke(table["where"], table["why"], final)
    raise ValueError(f"no such message: {table['kind']!r:.80}")
