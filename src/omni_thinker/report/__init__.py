"""A run directory as one self-contained HTML file."""

from omni_thinker.report.figures.figure_file import plot_transfer
from omni_thinker.report.html import write_report

__all__ = ["plot_transfer", "write_report"]
