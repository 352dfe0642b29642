"""A figure of its own, for a paper or a page."""

from __future__ import annotations

from pathlib import Path

from omni_thinker.errors import UserError
from omni_thinker.report.data import Estimate, Transfer
from omni_thinker.report.plots import transfer_figure
from omni_thinker.report.svg import style
from omni_thinker.transfer.matrix import Row, TransferMatrix

FORMATS = (".svg", ".png", ".pdf")


def plot_transfer(matrix: TransferMatrix, path: Path) -> None:
    """Draw the matrix into a new file; its ending says how. Raises UserError for other endings and what can't be
    written."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"takes a file that ends in {', '.join(FORMATS)}", file=path, key="--plot")

    if path.exists():
        raise UserError("exists already", file=path, key="--plot")

    def cells(row: Row) -> dict[str, Estimate]:
        return {task: Estimate(cell.mean, cell.n, cell.stderr) for task, cell in row.items()}

    table = Transfer(list(matrix.tasks), cells(matrix.start), {i: cells(row) for i, row in matrix.after.items()})
    with style():
        figure = transfer_figure(table)
        try:
            figure.savefig(path, dpi=160)
        except OSError as exc:
            raise UserError(f"can't be written: {exc.strerror or exc}", file=path, key="--plot") from None
