"""The weights of the one policy that all arms of a seed take turns in: which are wanted, and which lie in files."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from omni_thinker.errors import UserError
from omni_thinker.protocol import ExportsAdapters
from omni_thinker.runs.files import checksum, is_whole, remove, write_whole
from omni_thinker.runs.unit_run import UnitRun

if TYPE_CHECKING:
    from omni_thinker.studies.session import Session


class Weights:
    """Loaded lazily: a resumed study reads most results from the journal, and only what is computed needs weights.

    Files that an earlier process wrote are compared with their checksums before they are first read."""

    def __init__(self, session: "Session", seed: int) -> None:
        self._session, self._seed = session, seed
        self._current: Path | None = None
        """File of the weights that are wanted; None where they lie in none."""
        self._stale = False
        """Whether the policy still has others."""
        self._start: Path | None = None
        """File of the start, where the policy doesn't know the start yet."""
        self._unverified: dict[Path, str] = {}
        self._exported: set[str] = set()

    @property
    def folder(self) -> Path:
        """Where the weights of this seed are kept."""
        return self._run.models(self._seed) / "state"

    @property
    def _run(self) -> UnitRun:
        return self._session.run

    def file(self, arm: str) -> Path:
        """Where an arm's weights are kept."""
        return self.folder / f"{slug(arm)}.safetensors"

    def saved(self, path: Path, expected: str | None, *, start: bool = False) -> None:
        """The wanted weights lie in `path`. expected: its checksum where an earlier process wrote it, and the policy
        doesn't have them. start: they are the start of the study."""
        self._current, self._stale = path, expected is not None
        if expected is not None:
            self._unverified[path] = expected
            if start:
                self._start = path

    def changed(self) -> None:
        """The policy is about to be trained: its weights lie in no file."""
        self._current = None

    def load(self, path: Path) -> None:
        """Want the weights in `path`, with a fresh optimiser."""
        self._current, self._stale = path, True

    def ensure_loaded(self) -> None:
        """Let the policy have the wanted weights, before anything is computed with it."""
        if self._start is not None:
            self.verify(self._start)
            self._session.policy.load_weights(self._start)
            self._session.policy.mark_start()
            self._start = None
        if self._stale and self._current is not None:
            self.verify(self._current)
            self._session.policy.load_weights(self._current)
        self._stale = False

    def verify(self, path: Path) -> None:
        """Raises UserError where weights that an earlier process wrote aren't as it left them."""
        expected = self._unverified.pop(path, None)
        self._run.files.need(path)
        if expected is not None and not is_whole(path, expected):
            raise UserError("has changed since it was written and can't be rebuilt; begin another run", file=path)

    def save(self, arm: str) -> Path:
        """Keep the wanted weights in fp32, unless they lie in that file already."""
        path = self.file(arm)
        if self._current != path:
            self.make_file(arm, self._write)
        return path

    def _write(self, path: Path) -> None:
        self._session.policy.save_weights(path)

    def make_file(self, arm: str, write: Callable[[Path], object]) -> Path:
        """Let `write` make weights called `arm`, which are the wanted ones then."""
        path = self.file(arm)
        fresh = not self._run.journal.replaying

        def make() -> str:
            self.ensure_loaded()
            write_whole(path, write)
            self._run.files.made(path)
            return checksum(path)

        recorded = self._run.journal.once(f"{self._seed} weights {arm}", make)
        self.saved(path, None if fresh else recorded)
        return path

    def exported(self, name: str) -> Path:
        """The folder that `export` writes."""
        return self._run.models(self._seed) / slug(name)

    def export(self, name: str, *, adapter: bool = False) -> Path:
        """Write the wanted weights as a folder for Hugging Face's libraries, the factors alone if `adapter`."""
        folder = self.exported(name)

        def make() -> None:
            if name in self._exported:  # a kill now would tear what is there already
                return
            self.ensure_loaded()
            policy = self._session.policy
            if adapter and isinstance(policy, ExportsAdapters):
                policy.export_adapter(folder)
            else:
                policy.export(folder)
            self._run.files.made(folder)

        self._run.journal.once(f"{self._seed} export {name}", make)
        self._exported.add(name)
        return folder


class BestWeights:
    """The weights of an arm that were best on validation so far, beside those that are trained.

    A file lies there until no checkpoint that may be gone back to needs it."""

    def __init__(self, session: "Session", arm: str) -> None:
        self._session, self._arm = session, arm
        self.step: int | None = None
        """After which they were; None: there are none."""
        self._sum = ""
        self._at_checkpoint = 0

    def write(self, step: int) -> None:
        """The weights after `step` are the best."""
        session, path = self._session, self._file(step)

        def make() -> str:
            write_whole(path, session.policy.save_weights)
            session.run.files.made(path)
            return checksum(path)

        self._sum = session.run.journal.once(f"{session.seed} best {self._arm} {step}", make)
        self.step = step

    def load(self) -> None:
        """Let the policy have them, with a fresh optimiser."""
        if self.step is not None:
            self._session.weights.saved(self._file(self.step), self._sum)
            self._session.weights.ensure_loaded()

    def drop_older(self) -> None:
        """A checkpoint was written: those that the one before it didn't need may go."""
        self._drop(self._at_checkpoint)
        self._at_checkpoint = self.step or 0

    def drop_all(self) -> None:
        """They are of no more use."""
        self._drop(None)

    def _drop(self, below: int | None) -> None:
        mark = f"{slug(self._arm)}.best."
        for path in self._session.weights.folder.glob(f"{mark}*"):
            if below is None or int(path.name.removeprefix(mark).partition(".")[0]) < below:
                remove(path)
                self._session.run.files.dropped(path)

    def _file(self, step: int) -> Path:
        return self._session.weights.file(f"{self._arm}.best.{step}")


def slug(name: str) -> str:
    """An arm's name as part of a file's."""
    return name.replace(":", "-")
