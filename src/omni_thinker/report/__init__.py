"""A run directory as one self-contained HTML file."""

from __future__ import annotations

from omni_thinker.report.html import write_report

__all__ = ["write_report"]
