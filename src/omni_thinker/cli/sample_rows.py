"""Every answer of an evaluation as JSONL: the files and keys of lm-eval's `--log_samples` (0.4.13).

One file a task, `samples_TASK_TIME.jsonl`, with a row for each problem in the order of the split. What lm-eval has no
key for comes after its own: `scores`, `reasons` and `stops` of each answer."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from omni_thinker.compare.at_k import GREEDY
from omni_thinker.errors import UserError
from omni_thinker.rl.batch import ScoredGroup
from omni_thinker.rl.evaluate import Evaluation
from omni_thinker.runs.files import write_whole
from omni_thinker.runs.json_text import to_json
from omni_thinker.types import Problem, SamplingParams, TaskName

SAMPLED = "none"
"""What lm-eval calls answers that no filter went through."""

Asked = Callable[[Problem], tuple[str, Sequence[str], int]]
"""The prompt of a problem as the model reads it, the texts that end an answer, and its most tokens."""


def write_samples(
    folder: Path,
    sampled: Evaluation,
    params: SamplingParams,
    asked: Asked,
    greedy: tuple[Evaluation, SamplingParams] | None,
) -> list[Path]:
    """The files, a new one for each task. Rows of greedy answers follow the others, with the filter `greedy`.

    Raises UserError where the folder can't be made or written."""
    time = datetime.now().isoformat().replace(":", "-")
    nested = params.group_size > 1
    rows: dict[TaskName, list[dict[str, Any]]] = {}
    evaluations = [(SAMPLED, sampled, params), *([(GREEDY, *greedy)] if greedy else [])]
    for name, evaluation, drawn in evaluations:
        places: dict[TaskName, int] = {}
        for group in evaluation.groups:
            task = group.problem.task
            place = places[task] = places.get(task, -1) + 1
            measures = _measures(group, sampled.measures.get(task, {}) if name == SAMPLED else {})
            rows.setdefault(task, []).append(
                _row(place, group, name, measures, _arguments(asked, group, drawn), nested)
            )
    files = [folder / f"samples_{task}_{time}.jsonl" for task in rows]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, own in zip(files, rows.values(), strict=True):
            _write(file, own)
    except OSError as exc:
        raise UserError(f"can't be written: {exc.strerror or exc}", file=folder, key="--samples") from None
    return files


def _write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = "".join(to_json(row) + "\n" for row in rows)
    write_whole(file, lambda partial: partial.write_text(text, "utf-8"))


def _measures(group: ScoredGroup, measures: Mapping[str, Mapping[str, float]]) -> dict[str, float | None]:
    """The mean score first; null for what a problem has no value of."""
    values = group.values
    mean = {"score": sum(values) / len(values) if values else None}
    own = {name: by_problem.get(group.problem.id) for name, by_problem in measures.items() if name != GREEDY}
    return mean | own


def _arguments(asked: Asked, group: ScoredGroup, params: SamplingParams) -> tuple[str, dict[str, Any]]:
    """The prompt, and how answers to it were drawn, in the words of lm-eval's `generation_kwargs`."""
    prompt, stops, most = asked(group.problem)
    drawn: dict[str, Any] = {"until": list(stops), "max_gen_toks": most, "do_sample": params.temperature > 0}
    drawn |= {"temperature": params.temperature, "top_k": params.top_k, "top_p": params.top_p, "min_p": params.min_p}
    return prompt, drawn


def _row(
    place: int,
    group: ScoredGroup,
    name: str,
    measures: Mapping[str, float | None],
    arguments: tuple[str, Mapping[str, Any]],
    nested: bool,
) -> dict[str, Any]:
    """`nested`: whether the answers to a problem are a list, as they are where there are several."""
    problem, samples = group.problem, group.group.samples
    doc = {
        "id": problem.id,
        "prompt": problem.shown,
        "answer": problem.answer,
        "data": json.loads(to_json(problem.data)),
    }
    target = problem.answer if problem.answer is not None else str(problem.data.get("reference", ""))
    answers = [sample.text for sample in samples]
    return {
        "doc_id": place,
        "doc": doc,
        "target": target,
        "arguments": {"gen_args_0": {"arg_0": arguments[0], "arg_1": arguments[1]}},
        "resps": [[sample.response for sample in samples]],
        "filtered_resps": [answers] if nested else answers,
        "filter": name,
        "metrics": list(measures),
        "doc_hash": _hash(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": _hash(arguments[0]),
        "target_hash": _hash(target),
        **measures,
        "scores": [score.value for score in group.scores],
        "reasons": [score.reason or "" for score in group.scores],
        "stops": [sample.stop for sample in samples],
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
