"""A run directory as one self-contained HTML file, or as figures and tables."""

from omni_thinker.report.export import export_report
from omni_thinker.report.figures.figure_file import plot_transfer
from omni_thinker.report.html import write_report

__all__ = ["export_report", "plot_transfer", "write_report"]
