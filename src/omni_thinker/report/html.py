"""The report: data, tables and figures poured into one template."""

import base64
import hashlib
import json
import math
import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from omni_thinker.errors import UserError
from omni_thinker.report import samples, tables, words
from omni_thinker.report.figures import curves, svg
from omni_thinker.report.figures.gallery import GALLERY, on_page
from omni_thinker.report.figures.plots import learning_arms, told_apart
from omni_thinker.report.frame import to_csv, to_html, to_latex
from omni_thinker.report.frames import frames
from omni_thinker.report.headline import headline
from omni_thinker.report.orders import mixture_words, told_apart_words
from omni_thinker.runs.read import RunData, load_run
from omni_thinker.runs.schema.base import MACRO
from omni_thinker.transfer.priors.named import priors_words

_ROOM = "omni_thinker.report"


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
    """The whole page. Everything that a run wrote is escaped; only our own SVG, CSS and script are not."""
    return page("report.html.j2", context(run))


def page(template: str, values: Mapping[str, Any], *more: str) -> str:
    """A template of `page/` with our sheet and scripts and the policy that lets only these run. more: names of scripts
    beside the one of every page."""
    scripts = [package_text(f"page/{name}.js") for name in ("script", *more)]
    return (
        environment()
        .get_template(template)
        .render(
            css=Markup(svg.sheet() + package_text("page/style.css")),  # noqa: S704
            scripts=[Markup(script) for script in scripts],  # noqa: S704
            script_hashes=Markup(" ".join(f"'{csp_hash(script)}'" for script in scripts)),  # noqa: S704
            **values,
        )
    )


def environment() -> Environment:
    """Templates that escape whatever a run wrote."""
    made = Environment(
        loader=PackageLoader(_ROOM, "page"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.filters.update(number=words.number, signed=words.signed, duration=words.duration)
    made.filters.update(shown=words.shown_text, visible=words.visible)
    return made


def csp_hash(script: str) -> str:
    """What the page's policy names an inline script by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def context(run: RunData) -> dict[str, Any]:
    """What the report's template shows of a run."""
    found = frames(run)
    return {
        "run": run,
        "result": run.result,
        "headline": headline(run),
        "several": len(run.seeds) > 1,
        "facts": [*tables.facts(run), *_interim_facts(run)],
        "columns": [*run.tasks, MACRO],
        "arm_rows": tables.arm_rows(run),
        "frames": found,
        "tables": {name: to_html(frame) for name, frame in found.items()},
        "copies": {name: (to_csv(frame), to_latex(frame)) for name, frame in found.items()},
        "order_words": told_apart_words(run.plan) if run.plan else "",
        "mixture_words": mixture_words(run.plan) if run.plan else "",
        "priors_words": priors_words(run.plan.priors) if run.plan and run.plan.priors else "",
        "transfer_words": _transfer_words(run),
        "examples": samples.examples(run),
        "example_arms": samples.example_arms(run),
        "learning_arms": json.dumps(learning_arms(run)),
        "figures": {name: on_page(run, name) for name in GALLERY},
    }


def _transfer_words(run: RunData) -> str:
    if run.transfer is None:
        return ""
    apart, measured = told_apart(run.transfer)
    pairs = ", ".join(f"{trained} on {task}" for trained, task in apart[:6]) + (", …" if len(apart) > 6 else "")
    return f"{len(apart)} of {measured} effects can be told apart from noise" + (f": {pairs}." if pairs else ".")


def _interim_facts(run: RunData) -> list[tuple[str, str]]:
    taken = curves.share_of_time(run)
    return [("Interim validations", f"{words.share(taken)} of the time of arms")] if math.isfinite(taken) else []


def package_text(name: str) -> str:
    """A file of this room."""
    return files(_ROOM).joinpath(name).read_text(encoding="utf-8")
