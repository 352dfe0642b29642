"""The report: data, tables and figures poured into one template."""

import math
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import BaseLoader, Environment, StrictUndefined
from markupsafe import Markup

from omni_thinker.errors import UserError
from omni_thinker.report import curves, plots, signals, svg, tables, traces
from omni_thinker.runs.read import RunData, load_run
from omni_thinker.runs.schema.base import MACRO

# Control characters are shown, not sent: some end a document early, others break an HTML reader.
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run directory and return its path.

    Raises UserError naming the file when result.json or metrics.jsonl is missing or can't be read, and when the report
    can't be written."""
    text = render(load_run(run_dir))
    path = run_dir / "report.html"
    partial = run_dir / f".report.html.{os.getpid()}.tmp"
    try:
        # "replace": a model may have written half a surrogate pair, which is no text in UTF-8.
        partial.write_bytes(text.encode("utf-8", "replace"))
        partial.replace(path)
    except OSError as exc:
        raise UserError(f"can't be written: {exc.strerror or exc}", file=path) from None
    finally:
        partial.unlink(missing_ok=True)
    return path


def render(run: RunData) -> str:
    """The whole page. Everything that a run wrote is escaped; only our own SVG and CSS are not."""
    environment = Environment(
        loader=BaseLoader(), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=number, signed=signed, count=tables.count, duration=tables.duration)
    environment.filters.update(shown=shown_text, visible=visible, share=share, at=position)
    return environment.from_string(_package_text("template.html.j2")).render(_context(run))


def _context(run: RunData) -> dict[str, Any]:
    return {
        "css": Markup(_package_text("style.css")),  # noqa: S704
        "run": run,
        "result": run.result,
        "several": len(run.seeds) > 1,
        "facts": [*tables.facts(run), *_interim_facts(run)],
        "columns": [*run.tasks, MACRO],
        "arm_rows": tables.arm_rows(run),
        "measure_rows": tables.measure_rows(run),
        "budgets": tables.budgets(run),
        "orders": tables.orders(run),
        "sequences": tables.sequences(run),
        "scale": _scale(run),
        "health_rows": tables.health_rows(run),
        "signal_rows": signals.signal_rows(run),
        "phases": tables.PHASES,
        "examples": tables.examples(run),
        "example_arms": tables.example_arms(run),
        "figures": {
            "differences": plots.differences(run),
            "learning": plots.learning(run),
            "interim": curves.interim(run),
            "transfer": plots.transfer(run),
            "forecasts": plots.forecasts(run),
            "entropy": traces.entropy(run),
            "health": traces.health(run),
        },
    }


def _interim_facts(run: RunData) -> list[tuple[str, str]]:
    taken = curves.share_of_time(run)
    return [("Interim validations", f"{share(taken)} of the time of arms")] if math.isfinite(taken) else []


def _package_text(name: str) -> str:
    return files("omni_thinker.report").joinpath(name).read_text(encoding="utf-8")


def _scale(run: RunData) -> tuple[float, float]:
    """The ends of the axis on which the orders' intervals are drawn."""
    values = [
        value for item in tables.orders(run) for value in (item.score, item.low, item.high) if math.isfinite(value)
    ]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def position(value: float, scale: tuple[float, float]) -> str:
    """Where a value lies on a scale, as a CSS percentage."""
    if not math.isfinite(value):
        return "0%"
    return f"{100 * min(1.0, max(0.0, (value - scale[0]) / (scale[1] - scale[0]))):.1f}%"


def number(value: float | None, digits: int = 3) -> str:
    return f"{value:.{digits}f}".replace("-", "−") if value is not None and math.isfinite(value) else "–"


def signed(value: float | None, digits: int = 3) -> str:
    return svg.signed(value, digits) if value is not None and math.isfinite(value) else "–"


def share(value: float | None) -> str:
    """A share as a percentage, short: a non-zero one never reads 0."""
    if value is None or not math.isfinite(value):
        return "–"
    if 0 < value < 0.0005:
        return "<0.1%"
    return f"{100 * value:.1f}%"


def shown_text(text: str) -> str:
    """A model's text as it can be shown: controls made visible, cut where very long."""
    shown = text[: tables.LONGEST_TEXT]
    left = len(text) - len(shown)
    return visible(shown) + (f" … [{left} more characters]" if left else "")


def visible(text: str) -> str:
    return text.translate(_CONTROLS)
