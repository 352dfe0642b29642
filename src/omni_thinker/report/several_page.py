"""Several studies side by side as one self-contained page."""

from pathlib import Path

from omni_thinker.errors import UserError
from omni_thinker.report.figures.gallery import drawn_twice
from omni_thinker.report.frame import to_csv, to_html, to_latex
from omni_thinker.report.html import page
from omni_thinker.report.several import Studies, contrasts_figure, side_by_side


def write_comparison(studies: Studies, path: Path) -> None:
    """Write the page. Raises UserError where it can't be written."""
    found = side_by_side(studies)
    label = "Every arm against joint training, study by study"
    text = page(
        "compare.html.j2",
        {
            "studies": studies,
            "title": " · ".join(studies.runs),
            "frames": found,
            "tables": {name: to_html(frame) for name, frame in found.items()},
            "copies": {name: (to_csv(frame), to_latex(frame)) for name, frame in found.items()},
            "figures": {"studies": drawn_twice(lambda room: contrasts_figure(studies, room), "studies", label)},
        },
    )
    try:
        path.write_bytes(text.encode("utf-8", "replace"))
    except OSError as exc:
        raise UserError(f"can't be written: {exc.strerror or exc}", file=path, key="--out") from None
