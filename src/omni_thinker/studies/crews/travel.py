"""A run's files where nodes share no disk: pieces of them go through Ray's object store, never a whole file at once.

The driver's machine has the run. A node has copies of what its units need, known by their checksums."""

import json
import os
import uuid
from pathlib import Path
from typing import Any

from omni_thinker.errors import UserError
from omni_thinker.runs.files import checksum, remove

_PIECE_BYTES = 1 << 24


class Keeper:
    """An actor on the driver's machine: reads and writes files of one run."""

    def __init__(self, run: str) -> None:
        self._run = Path(run)

    def holds(self, name: str) -> dict[str, str]:
        """The files of the file or folder `name`, with their checksums."""
        path = self._inside(name)
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        return {str(file.relative_to(self._run)): checksum(file) for file in files if file.is_file()}

    def read(self, name: str, begin: int) -> bytes:
        """A piece of a file; empty at its end."""
        with self._inside(name).open("rb") as stream:
            stream.seek(begin)
            return stream.read(_PIECE_BYTES)

    def write(self, name: str, token: str, begin: int, piece: bytes) -> None:
        """A piece of a file that isn't whole yet. token: whose."""
        partial = self._partial(name, token)
        partial.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("r+b" if begin else "wb") as stream:
            stream.seek(begin)
            stream.write(piece)

    def finish(self, name: str, token: str, expected: str, copy: str) -> None:
        """All pieces are there. copy: the node's folder, which paths inside of the file may name.

        Raises UserError where they aren't what was sent."""
        partial, target = self._partial(name, token), self._inside(name)
        if not partial.exists():
            partial.touch()  # an empty file has no pieces
        if checksum(partial) != expected:
            partial.unlink()
            raise UserError("was damaged on its way from a node", file=target)
        if target.name == "adapter_config.json":
            _follow_base(partial, copy, self._run)
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(partial, target)

    def drop(self, name: str) -> None:
        """A file or folder isn't needed any more."""
        remove(self._inside(name))

    def _inside(self, name: str) -> Path:
        path = self._run / name
        if not path.resolve().is_relative_to(self._run.resolve()):
            raise UserError("is outside of the run's directory", file=path)
        return path

    def _partial(self, name: str, token: str) -> Path:
        path = self._inside(name)
        return path.with_name(f"{path.name}.{token}.partial")


class Travelling:
    """Brings a run's files to this node, and takes them to the keeper."""

    def __init__(self, copy: Path, keeper: Any) -> None:
        """copy: this node's copy of the run's directory."""
        self._copy, self._keeper = copy, keeper

    def need(self, path: Path) -> None:
        """See Files."""
        for name, expected in self._ask("holds", self._name(path)).items():
            target = self._copy / name
            if target.is_file() and checksum(target) == expected:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.partial")
            with partial.open("wb") as stream:
                while piece := self._ask("read", name, stream.tell()):
                    stream.write(piece)
            os.replace(partial, target)

    def made(self, path: Path) -> None:
        """See Files."""
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if not file.is_file():
                continue
            name, token = self._name(file), uuid.uuid4().hex[:8]
            with file.open("rb") as stream:
                while piece := stream.read(_PIECE_BYTES):
                    self._ask("write", name, token, stream.tell() - len(piece), piece)
            self._ask("finish", name, token, checksum(file), str(self._copy))

    def dropped(self, path: Path) -> None:
        """See Files."""
        self._ask("drop", self._name(path))

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._copy))

    def _ask(self, method: str, *arguments: Any) -> Any:
        import ray

        return ray.get(getattr(self._keeper, method).remote(*arguments))


def _follow_base(config: Path, before: str, after: Path) -> None:
    """An adapter names the folder of the model that it belongs to, which travels with it."""
    table = json.loads(config.read_text("utf-8"))
    base = Path(table.get("base_model_name_or_path") or "")
    if base.is_relative_to(before):
        table["base_model_name_or_path"] = str(after / base.relative_to(before))
        config.write_text(json.dumps(table, indent=2, sort_keys=True), "utf-8")
