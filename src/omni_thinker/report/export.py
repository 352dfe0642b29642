"""Every figure and table of a report as a file of its own, for a paper or a page."""

from pathlib import Path

from omni_thinker.errors import UserError
from omni_thinker.report.figures.gallery import as_file, pictures
from omni_thinker.report.frame import to_csv, to_latex
from omni_thinker.report.frames import frames
from omni_thinker.runs.read import load_run

FORMS = ("svg", "png")


def export_report(run_dir: Path, folder: Path) -> list[Path]:
    """Write figures (SVG, PNG) and tables (CSV, LaTeX) into `folder`, which is made; returns their paths.

    Raises UserError as `load_run` does, and where the folder holds anything or can't be written."""
    run = load_run(run_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError("isn't empty; name a new folder", file=folder, key="--export")
        files = dict[str, bytes]()
        for name, picture in pictures(run).items():
            files |= {f"{name}.{form}": as_file(picture.figure, form) for form in FORMS}
        for name, frame in frames(run).items():
            files |= {f"{name}.csv": _bytes(to_csv(frame)), f"{name}.tex": _bytes(to_latex(frame))}
        for name, data in files.items():
            (folder / name).write_bytes(data)
    except OSError as exc:
        raise UserError(f"can't be written: {exc.strerror or exc}", file=folder, key="--export") from None
    return [folder / name for name in files]


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")
