"""Run directories of single seeds become one, as if one process had run all seeds in turn."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from omni_thinker.runs.files import write_whole
from omni_thinker.runs.journal import NAME, Line, encode, read_lines

SHARED = ("begun", "recipe", "model", "template", "judge", "problems")
"""Moves that every run begins with."""


def join_runs(folders: Sequence[Path], out: Path, logs: Sequence[str], shared: Mapping[str, object]) -> None:
    """Put the logs, models and journals of `folders`, which have all ended, into `out`; the journal last, so that one
    that was cut short is done again. `shared`: values that take the place of those the parts began with."""
    sizes = dict.fromkeys(logs, 0)
    lines: list[bytes] = []
    for place, folder in enumerate(folders):
        for line in read_lines(folder / NAME):
            if (line.key in SHARED and place) or line.key.startswith("result of "):
                continue
            moved = Line(
                line.key,
                line.kind,
                shared.get(line.key, line.value),
                {name: size + sizes[name] for name, size in line.logs.items()},
                line.counts,
            )
            lines.append(encode(moved))
        for name in logs:
            sizes[name] += (folder / name).stat().st_size if (folder / name).exists() else 0
        for models in sorted((folder / "models").glob("*")):
            (out / "models").mkdir(exist_ok=True)
            os.rename(models, out / "models" / models.name)
            for config in (out / "models" / models.name).rglob("adapter_config.json"):
                _follow_base(config, folder, out)
    for name in logs:
        if present := [folder / name for folder in folders if (folder / name).exists()]:
            write_whole(out / name, _joined(present))
    write_whole(out / NAME, lambda path: path.write_bytes(b"".join(lines)))


def _follow_base(config: Path, before: Path, after: Path) -> None:
    """An adapter names the folder of the model that it belongs to, which may have moved with it."""
    table = json.loads(config.read_text("utf-8"))
    base = Path(table.get("base_model_name_or_path") or "").absolute()
    if base.is_relative_to(before.absolute()):
        table["base_model_name_or_path"] = str(after.absolute() / base.relative_to(before.absolute()))
        write_whole(config, lambda path: path.write_text(json.dumps(table, indent=2, sort_keys=True), "utf-8"))


def _joined(files: Sequence[Path]) -> Callable[[Path], None]:
    def write(target: Path) -> None:
        with target.open("wb") as stream:
            for file in files:
                stream.write(file.read_bytes())

    return write
