"""A figure of its own, for a paper or a page."""

from omni_thinker.errors import UserError
from omni_thinker.report.figures.gallery import FORMATS, as_file
from omni_thinker.report.figures.plots import transfer_figure
from omni_thinker.runs.schema.transfer import TransferMatrix

_MOST_TASKS = 40


def plot_transfer(matrix: TransferMatrix, form: str) -> bytes:
    """Draw the matrix as `form`, one of FORMATS. Raises UserError for others, and for more tasks than one can read."""
    if form not in FORMATS:
        raise UserError(f"must be a file that ends in .{', .'.join(FORMATS)}", key="--plot")
    if len(matrix.tasks) > _MOST_TASKS:
        raise UserError(f"{len(matrix.tasks)} tasks; more than {_MOST_TASKS} can't be read", key="--plot")
    return as_file(transfer_figure(matrix), form)
