"""The model card in an exported folder: what the model is, how it did, and what isn't known of it."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import tomli_w
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from omni_thinker import __version__
from omni_thinker.arms import kind_of, task_of
from omni_thinker.errors import UserError
from omni_thinker.runs.files import write_whole
from omni_thinker.runs.read import read_result
from omni_thinker.runs.schema.base import MACRO, Estimate
from omni_thinker.runs.schema.result import ArmRun, Comparison, Result
from omni_thinker.runs.unit_run import models_of

CARD = "README.md"
_NORMAL = 1.96
"""Standard errors on each side of a mean, for 95 %."""
_BUILTIN = "HuggingFaceTB/SmolLM2-135M-Instruct"
_MARK = re.compile(r"\n<!-- as written by omni-thinker: ([0-9a-f]{16}) -->\n\Z")
"""The last line of a card. The digest is of all before it, so a card that somebody changed is known."""
_AT_HOME = ("track", "cluster", "engine", "atlas", "data_root")
"""Tables and keys of a recipe that say something of this machine and nothing of the model."""


def write_cards(run: Path) -> list[Path]:
    """Write a card into each model folder of a run that has a result; the cards. A folder that somebody removed gets
    none, and a card that somebody changed stays. Raises UserError where the result or the recipe can't be read."""
    result, file = read_result(run / "result.json"), run / "recipe.toml"
    try:
        recipe = tomllib.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as exc:
        raise UserError(f"can't be read: {exc}", file=file) from None
    written = []
    for arm, seeds in result.arms.items():
        for one in seeds:
            folder = models_of(run, one.seed) / arm.replace(":", "-")
            if (folder / "config.json").exists():
                try:
                    text = _marked(card(result, recipe, arm, one))
                except (AttributeError, KeyError, TypeError) as exc:
                    raise UserError(f"isn't the recipe of a run: {type(exc).__name__}: {exc}", file=file) from None
                if _is_stale(folder / CARD, text):
                    write_whole(folder / CARD, lambda partial, text=text: partial.write_text(text, "utf-8"))  # type: ignore[misc]
                written.append(folder / CARD)
    return written


def _marked(text: str) -> str:
    return f"{text.rstrip()}\n<!-- as written by omni-thinker: {_digest(text)} -->\n"


def _is_stale(path: Path, text: str) -> bool:
    """Whether a card is missing, or is an older one of ours that nobody changed."""
    if not path.exists():
        return True
    known = path.read_text("utf-8", "replace")
    mark = _MARK.search(known)
    return known != text and mark is not None and mark[1] == _digest(known[: mark.start()])


def _digest(text: str) -> str:
    return sha256(text.rstrip().encode()).hexdigest()[:16]


def card(result: Result, recipe: Mapping[str, Any], arm: str, one: ArmRun) -> str:
    """The card of one arm with one seed. recipe: its tables, as in the run's recipe.toml."""
    named = f"{result.name}: {arm}, seed {one.seed}"
    return str(
        ModelCard(f"---\n{_data(result, recipe, arm, one).to_yaml()}\n---\n\n{_text(result, recipe, arm, one, named)}")
    )


def _data(result: Result, recipe: Mapping[str, Any], arm: str, one: ArmRun) -> ModelCardData:
    """What the hub reads of a card."""
    base = _base(recipe)
    found = [
        EvalResult(
            task_type="text-generation",
            dataset_type=_source(recipe, task),
            dataset_name=task,
            dataset_split="test",
            metric_type="accuracy",
            metric_value=round(estimate.mean, 4),
        )
        for task, estimate in one.test.items()
    ]
    return ModelCardData(
        base_model=base if "/" in base and not Path(base).is_absolute() else None,
        library_name="transformers",
        license="apache-2.0" if base == _BUILTIN else None,
        pipeline_tag="text-generation",
        tags=["omni-thinker", "reinforcement-learning", *(["grpo"] if one.steps else [])],
        model_name=f"{result.name}-{arm.replace(':', '-')}-{one.seed}",
        eval_results=found or None,
    )


def _text(result: Result, recipe: Mapping[str, Any], arm: str, one: ArmRun, named: str) -> str:
    kind = kind_of(arm)
    about = kind.about if kind else "an arm that a scheduler of the recipe makes"
    about += f" ({task_of(arm)})" if task_of(arm) else ""
    seeds = len(result.arms[arm])
    machine = result.machine
    parts = [
        f"# {named}",
        f"One arm of a study with [Omni-Thinker](https://arxiv.org/abs/2507.14783): {about}.",
        "## Results",
        "Mean score in [0, 1] on the test split. Its interval (95 %) covers other problems, not other training runs. "
        f"The difference from the start has the study's interval over {seeds} seed{'s' if seeds > 1 else ''}.",
        "\n".join(_table(result, arm, one)),
        f"The study's verdict: {result.verdict}",
        "## Training",
        "\n".join(_training(recipe, one)),
        "## Data",
        "\n".join(_data_rows(recipe)),
        "## Limits",
        "\n".join(f"- {note}" for note in (*_limits(result, seeds), *result.notes)),
        "## Versions",
        f"omni-thinker {__version__}, torch {machine.torch}, transformers {machine.transformers}, "
        f"Python {machine.python}, {machine.platform}.",
        "## Recipe",
        "Without what concerns only the machine that it ran on.",
        f"```toml\n{tomli_w.dumps(_filled(_public(recipe)))}```",
    ]
    return "\n\n".join(parts) + "\n"


def _table(result: Result, arm: str, one: ArmRun) -> Iterator[str]:
    yield "| task | score | 95 % interval | problems | difference from the start |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for task, estimate in one.test.items():
        against = _difference(result, arm, task)
        yield f"| {task} | {estimate.mean:.3f} | {_interval(estimate)} | {estimate.n} | {against} |"
    means = [estimate.mean for estimate in one.test.values()]
    if len(means) > 1:
        yield f"| mean of tasks | {sum(means) / len(means):.3f} | | | {_difference(result, arm, MACRO)} |"


def _interval(estimate: Estimate) -> str:
    low, high = (estimate.mean + side * _NORMAL * estimate.stderr for side in (-1, 1))
    return f"{max(0.0, low):.3f} to {min(1.0, high):.3f}" if estimate.n > 1 else "–"


def _difference(result: Result, arm: str, task: str) -> str:
    found: Comparison | None = None
    for row in result.comparisons:
        if row.task == task and {row.a, row.b} == {arm, "start"}:
            found = row if row.a == arm else row.swapped()
    return "–" if found is None else f"{found.difference:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def _training(recipe: Mapping[str, Any], one: ArmRun) -> Iterator[str]:
    yield f"- base model: {_base(recipe)}"
    yield f"- RL steps: {one.steps}, after a supervised warm-up of at most {recipe.get('warmup', {}).get('steps', 0)}"
    if one.selected is not None:
        yield f"- weights of step {one.selected}, the best on validation"
    if one.steps:
        yield f"- {one.tokens_sampled:,} tokens sampled, {one.tokens_trained:,} trained, in {one.seconds:,.0f} s"
    if one.stages:
        yield f"- stages: {', '.join(stage.task for stage in one.stages)}"


def _data_rows(recipe: Mapping[str, Any]) -> Iterator[str]:
    yield "| task | source | files |"
    yield "| --- | --- | --- |"
    for name, spec in recipe.get("tasks", {}).items():
        yield f"| {name} | {_source(recipe, name)} | {', '.join(Path(file).name for file in spec.get('files', []))} |"


def _limits(result: Result, seeds: int) -> Iterator[str]:
    yield "The scores are those of the study's own tasks. Nothing was measured of other uses, of safety or of bias."
    if seeds == 1:
        yield "There was one seed, so another training run may come out differently."
    if result.seeds_left:
        yield f"The study isn't finished: {result.seeds_left} seeds are to come."


def _base(recipe: Mapping[str, Any]) -> str:
    """The model that was trained: its name at the hub, or that of its folder."""
    name = str(recipe.get("model", {}).get("name", "builtin"))
    return _BUILTIN if name == "builtin" else _short(name)


def _source(recipe: Mapping[str, Any], task: str) -> str:
    source = str(recipe.get("tasks", {}).get(task, {}).get("source", "unknown"))
    kind, colon, rest = source.partition(":")
    return kind + colon + (_short(rest) if kind == "hf" else rest)


def _short(name: str) -> str:
    """A folder's name without the way to it; names at the hub stay."""
    path = Path(name)
    return path.name if path.is_absolute() or name.startswith(("~", ".")) or len(path.parts) > 2 else name


def _public(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe without what is nobody's business: paths, addresses, trackers."""
    table: dict[str, Any] = {key: value for key, value in recipe.items() if key not in _AT_HOME}
    if "model" in table:
        table["model"] = {**table["model"], "name": _base(recipe)}
        table["model"].pop("chat_template", None)
    if "judge" in table:
        table["judge"] = {key: value for key, value in table["judge"].items() if key != "endpoint"}
        table["judge"] |= {"model": _short(str(table["judge"]["model"]))} if "model" in table["judge"] else {}
    tasks = {}
    for name, spec in table.get("tasks", {}).items():
        tasks[name] = {**spec, "source": _source(recipe, name)}
        if spec.get("files"):
            tasks[name]["files"] = [Path(file).name for file in spec["files"]]
        if isinstance(spec.get("test_set"), Mapping):
            files = [Path(file).name for file in spec["test_set"].get("files", [])]
            tasks[name]["test_set"] = {**spec["test_set"], "files": files}
    return table | {"tasks": tasks}


def _filled(table: Mapping[str, Any]) -> dict[str, Any]:
    """Without empty tables and lists."""
    kept = {key: _filled(value) if isinstance(value, Mapping) else value for key, value in table.items()}
    return {key: value for key, value in kept.items() if value not in ({}, [])}
