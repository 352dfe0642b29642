"""One seed of a study: a policy, its log, and the moves that arms are made of.

Every move goes through the run's journal, so that a study which was killed takes the same path again, and computes only
what it had not. Weights are therefore brought to the policy when something is computed with them, not before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from omni_thinker.baselines.sft import WarmupReport, WarmupState, warm_up
from omni_thinker.errors import UserError
from omni_thinker.policy.make import make_policy
from omni_thinker.protocol import ExportsAdapters
from omni_thinker.rewards.base import Reward
from omni_thinker.rl.difficulty import training_streams
from omni_thinker.rl.evaluate import Estimate, Evaluation, evaluate
from omni_thinker.rl.loop import Diverged, Learner, StepResult
from omni_thinker.rl.stream import make_streams
from omni_thinker.runs.checkpoints import Checkpoints
from omni_thinker.runs.files import checksum, is_whole, write_whole
from omni_thinker.runs.progress import Progress
from omni_thinker.runs.rundir import RunDir
from omni_thinker.runs.stopping import stopping
from omni_thinker.schedulers.base import Scheduler
from omni_thinker.studies.setup import Bench, Pools, evaluation_params, study_seed
from omni_thinker.types import Problem, SampleRequest, SamplingParams, Split, TaskName


@dataclass
class Spent:
    """What an arm cost. RL only: evaluations are the same for all arms and not counted."""

    steps: int = 0
    tokens_sampled: int = 0
    tokens_trained: int = 0
    seconds: float = 0.0
    samples: int = 0

    def add(self, result: StepResult, seconds: float) -> None:
        self.steps += 1
        self.tokens_sampled += result.tokens_sampled
        self.tokens_trained += result.tokens_trained
        self.samples += sum(len(group.group.samples) for group in result.groups)
        self.seconds += seconds

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class Stage:
    """A stage of a curriculum that has ended: its task, every task's validation accuracy and entropy, and its steps."""

    task: TaskName
    evaluation: Evaluation
    steps: int


@dataclass
class ArmResult:
    """A trained arm: where its weights are, and what it cost."""

    name: str
    weights: Path
    spent: Spent
    validation: Mapping[TaskName, Estimate]
    stages: list[Stage] = field(default_factory=list)


class Session:
    """Holds the one policy that all arms of a seed take turns in."""

    def __init__(self, bench: Bench, run: RunDir, progress: Progress, seed: int, *, folder: Path | None = None) -> None:
        """`folder`: weights to begin with, instead of the recipe's model."""
        self.bench, self.run, self.progress, self.seed = bench, run, progress, seed
        self.recipe = bench.recipe
        self.policy = make_policy(self.recipe.model, folder=folder, seed=study_seed(seed, "lora"))
        self.pools: dict[Split, Pools] = dict(bench.pools)
        self.state = run.models(seed) / "state"
        self._at_hand: Path | None = None
        """Weights that the policy has, or is to have, where they lie in a file."""
        self._to_load = False
        self._start: Path | None = None
        """Weights of the start, where the policy doesn't know them yet."""
        self._doubted: dict[Path, str] = {}
        """Files of an earlier process that have not been read since, with their checksums."""
        self._exported: set[str] = set()

    # -- the start ------------------------------------------------------------------------------------------

    def warm_up(self) -> tuple[WarmupReport, float]:
        """Bring the policy from the bare model to where RL has something to tell apart; that is the start.

        Also the seconds that it took, over all processes that worked at it.
        """
        key, path = f"{self.seed} warm-up", self._file("start")
        known = self.run.journal.begin(key)

        def make() -> dict[str, Any]:
            before = float(known.values[-1].get("seconds", 0.0)) if known.values else 0.0
            began = time.monotonic()
            report = self._warm_up(key, known.values, began - before)
            self.policy.mark_start()
            write_whole(path, self.policy.save_weights)
            return {**asdict(report), "sum": checksum(path), "seconds": time.monotonic() - began + before}

        row = self.run.journal.once(key, make)
        self._kept("warmup").drop(0)
        self._at_hand = path
        if known.ended:
            self._to_load, self._start = True, path
            self._doubted[path] = row["sum"]
            self.progress.skip("warmup", self.recipe.warmup.steps)
        report = WarmupReport(row["steps"], row["tokens"], _estimates(row["reached"]), row["inside"])
        return report, float(row.get("seconds", 0.0))

    def _warm_up(self, key: str, known: Sequence[Mapping[str, Any]], began: float) -> WarmupReport:
        """`known`: what its checkpoints say. `began`: when it would have begun, had nothing come in between."""
        spec = self.recipe.warmup
        gold = {task: [p for p in own if p.answer is not None] for task, own in self.pools["train"].items()}
        streams = make_streams({task: own for task, own in gold.items() if own}, study_seed(self.seed, "warmup"))
        kept, begun = self._kept("warmup"), None
        if known:
            kept.read(self.policy, known[-1])
            state = known[-1]["state"]
            begun = WarmupState(**{**state, "reached": _estimates(state["reached"])})
            self.progress.skip("warmup", begun.step)
        mark = time.monotonic()

        def on_step(step: int, loss: float, active: list[TaskName]) -> None:
            nonlocal mark
            seconds = time.monotonic() - mark
            self.progress.unit("warmup", seconds)
            self.progress.show(f"warm-up {step}/{spec.steps} | loss {loss:.3f} on {', '.join(active)}")
            self.log("warmup", "warmup", step, seconds, {"loss/all": loss})
            mark = time.monotonic()

        def check(step: int) -> Mapping[TaskName, Estimate]:
            nonlocal mark
            result = self._check_form(step)
            mark = time.monotonic()
            return result

        def keep(state: WarmupState) -> None:
            if kept.due():
                value = {"state": asdict(state), "seconds": time.monotonic() - began}
                self.run.journal.checkpoint(key, kept.write(self.policy, state.step) | value)
                kept.drop()

        report = warm_up(self.policy, streams, spec, check, on_step, begun=begun, keep=keep)
        self.progress.skip("warmup", spec.steps - report.steps)
        self.progress.say(
            f"warm-up: {report.steps} steps, {time.monotonic() - began:.0f} s; " + _scores(report.reached)
        )
        return report

    def write_references(self) -> None:
        """Let the start answer every problem that is compared and has no reference yet; kept for the whole study."""
        for split, pools in self.pools.items():
            filled = dict(pools)
            for task in self.bench.compared:
                filled[task] = self._with_references(list(pools[task]), split)
            self.pools[split] = filled

    def _with_references(self, problems: list[Problem], split: Split) -> list[Problem]:
        lacking = [problem for problem in problems if "reference" not in problem.data]
        requests = [
            SampleRequest(
                self.policy.encode_prompt(problem.prompt),
                self.bench.tasks[problem.task].max_tokens,
                study_seed(self.seed, "reference", problem.id),
                self.bench.stops.get(problem.task, ()),
            )
            for problem in lacking
        ]

        def make() -> dict[str, str]:
            self.bring()
            temperature = self.recipe.judge.reference_temperature
            groups = self.policy.sample(requests, SamplingParams(group_size=1, temperature=temperature))
            texts = {problem.id: group.samples[0].text for problem, group in zip(lacking, groups, strict=True)}
            for problem_id, text in texts.items():
                self.run.append("references.jsonl", {"seed": self.seed, "problem": problem_id, "reference": text})
            return texts

        texts = self.run.journal.once(f"{self.seed} references {split} {problems[0].task}", make) if problems else {}
        return [
            replace(problem, data={**problem.data, "reference": texts[problem.id]}) if problem.id in texts else problem
            for problem in problems
        ]

    # -- arms -----------------------------------------------------------------------------------------------

    def train(
        self,
        arm: str,
        scheduler: Scheduler,
        steps: int,
        *,
        at_step: Callable[[Spent], None] | None = None,
        stage_ends: bool = False,
        serial: bool = False,
        on_stage: Callable[[Sequence[Stage]], None] | None = None,
    ) -> tuple[Spent, list[Stage]]:
        """Train from the weights at hand, and keep what comes of it. Evaluates where a stage ends if asked, and tells
        `on_stage` all that have; `at_step` runs after each step."""
        key = f"{self.seed} train {arm}"
        known = self.run.journal.begin(key)
        kept = self._kept(arm)
        learner = self.learner(self.bench.rewards, serial=serial)
        spent, stages, unwritten = Spent(), list[Stage](), list[Spent]()
        costs = [Spent(**own) for value in known.values for own in value["spent"]]
        since_reset = 0
        with stopping(self.progress.say) as stop:
            for step in range(steps):
                if step and scheduler.stage(step) != scheduler.stage(step - 1):
                    since_reset = 0
                    if step > len(costs):
                        self.policy.reset_optimizer()  # moments of another task's gradient are no guide
                if step < len(costs):
                    spent = costs[step]
                    self.progress.skip("step", 1)
                else:
                    self.bring()
                    if step and step == len(costs):
                        kept.read(self.policy, known.values[-1])
                        learner.restore(known.values[-1]["learner"])
                        scheduler.load_state_dict(known.values[-1]["scheduler"])
                        if since_reset == 0:
                            self.policy.reset_optimizer()
                    self._at_hand = None
                    spent = self._step(arm, learner, scheduler, step, steps, since_reset, spent)
                    unwritten.append(spent)
                since_reset += 1
                stage = scheduler.stage(step)
                if stage_ends and stage is not None and (step + 1 == steps or scheduler.stage(step + 1) != stage):
                    stages.append(Stage(stage, self.evaluate(arm, "validation", step + 1, stage), since_reset))
                    if on_stage is not None:
                        on_stage(stages)
                if at_step is not None:
                    at_step(replace(spent))
                spent_up = step >= len(costs) and self.bench.costly is not None and self.bench.costly.exhausted
                if step >= len(costs) and step + 1 < steps and (kept.due() or stop.wanted or spent_up):
                    value = {
                        "spent": [asdict(own) for own in unwritten],
                        "learner": learner.state(),
                        "scheduler": scheduler.state_dict(),
                    }
                    self.run.journal.checkpoint(key, kept.write(self.policy, step + 1) | value)
                    unwritten.clear()
                    kept.drop()
                if spent_up:
                    raise UserError(f"spent after step {step + 1} of {arm}", key="judge.endpoint.budget")
                if stop.wanted:
                    stop.leave()
        path = self._file(arm)

        def end() -> dict[str, Any]:
            write_whole(path, self.policy.save_weights)
            return {"spent": [asdict(own) for own in unwritten], "sum": checksum(path)}

        row = self.run.journal.once(key, end)
        if known.ended:
            self._doubted[path] = row["sum"]
        kept.drop(0)
        self._at_hand, self._to_load = path, known.ended
        return spent, stages

    def _step(
        self, arm: str, learner: Learner, scheduler: Scheduler, step: int, steps: int, since_reset: int, before: Spent
    ) -> Spent:
        """One step, logged; all that the arm has cost with it."""
        began = time.monotonic()
        try:
            result = learner.step(scheduler.quotas(step), since_reset)
        except Diverged as exc:
            path = self.run.write_json("diverged.json", {"arm": arm, "step": step + 1, **exc.evidence})
            raise UserError(f"{exc.message}; the batch is in {path}", key=exc.key) from None
        seconds = time.monotonic() - began
        spent = replace(before)
        spent.add(result, seconds)
        scheduler.observe(step, result.metrics)
        metrics = {**result.metrics, **(self.bench.judge.metrics() if self.bench.judge else {})}
        self.log(arm, "train", step + 1, seconds, metrics, scheduler.stage(step))
        self.progress.unit("step", seconds)
        self._show(arm, step + 1, steps, result, seconds)
        return spent

    def learner(self, rewards: Mapping[TaskName, Reward], *, serial: bool = False) -> Learner:
        """At the beginning of every task's stream, so that all arms see the same problems."""
        streams = training_streams(self.pools["train"], study_seed(self.seed, "train"))
        max_tokens, stops = self.bench.max_tokens, self.bench.stops
        return Learner(self.policy, self.recipe.rl, streams, rewards, max_tokens, stops, serial=serial)

    def save(self, arm: str) -> Path:
        """Keep the weights at hand in fp32, unless they lie in a file already."""
        path = self._file(arm)
        if self._at_hand != path:
            self.make_file(arm, self.policy.save_weights)
        return path

    def make_file(self, arm: str, write: Callable[[Path], object]) -> Path:
        """Let `write` make weights called `arm`, which are at hand then."""
        path = self._file(arm)
        fresh = not self.run.journal.replaying

        def make() -> str:
            self.bring()
            write_whole(path, write)
            return checksum(path)

        found = self.run.journal.once(f"{self.seed} weights {arm}", make)
        if not fresh:
            self._doubted[path] = found
        self._at_hand, self._to_load = path, not fresh
        return path

    def export(self, name: str, *, adapter: bool = False) -> Path:
        """Write the weights at hand as a folder for Hugging Face's libraries, the factors alone if `adapter`."""
        folder = self.run.models(self.seed) / _slug(name)

        def make() -> None:
            if name not in self._exported:  # else a kill now would tear what is there already
                self.bring()
                if adapter and isinstance(self.policy, ExportsAdapters):
                    self.policy.export_adapter(folder)
                else:
                    self.policy.export(folder)

        self.run.journal.once(f"{self.seed} export {name}", make)
        self._exported.add(name)
        return folder

    def check(self, path: Path) -> None:
        """Raises UserError where weights that an earlier process wrote aren't as it left them."""
        expected = self._doubted.pop(path, None)
        if expected is not None and not is_whole(path, expected):
            raise UserError("isn't as it was written, and can't be made again; begin another run", file=path)

    def load(self, path: Path) -> None:
        """Go back to kept weights, with a fresh optimiser."""
        self._at_hand, self._to_load = path, True

    def bring(self) -> None:
        """Let the policy have the weights at hand, before anything is computed with it."""
        if self._start is not None:
            self.check(self._start)
            self.policy.load_weights(self._start)
            self.policy.mark_start()
            self._start = None
        if self._to_load and self._at_hand is not None:
            self.check(self._at_hand)
            self.policy.load_weights(self._at_hand)
        self._to_load = False

    def evaluate(self, arm: str, split: Split, step: int, stage: TaskName | None = None) -> Evaluation:
        """Every task on `split`, logged, with a few rollouts kept."""
        fresh = not self.run.journal.replaying
        row = self.run.journal.once(
            f"{self.seed} evaluate {arm} {split} {step} {stage}", lambda: self._evaluate(arm, split, step, stage)
        )
        result = Evaluation(**row)
        if not fresh:
            self.progress.skip(split, 1)
        after = f" after {stage}" if stage else ""
        self.progress.say(f"{arm}{after}: {split} " + _scores(result.estimates()))
        return result

    def _evaluate(self, arm: str, split: Split, step: int, stage: TaskName | None) -> dict[str, Any]:
        self.progress.show(f"{arm}: answering the {split} problems")
        self.bring()
        began = time.monotonic()
        result = evaluate(
            self.policy,
            self.pools[split],
            self.bench.measures,
            self.bench.max_tokens,
            params=evaluation_params(self.recipe),
            seed=study_seed(self.seed, split),
            stops=self.bench.stops,
            max_error_rate=self.recipe.rl.max_error_rate,
        )
        seconds = time.monotonic() - began
        self.progress.unit(split, seconds)
        self.log(arm, split, step, seconds, result.metrics, stage)
        self._keep_samples(arm, split, step, stage, result)
        return {"values": result.values, "metrics": result.metrics, "tokens": result.tokens}

    def _file(self, arm: str) -> Path:
        return self.state / f"{_slug(arm)}.safetensors"

    def _kept(self, name: str) -> Checkpoints:
        return Checkpoints(self.state, self.run.path, f"{_slug(name)}.checkpoint", self.recipe.study.checkpoint_steps)

    # -- logs -----------------------------------------------------------------------------------------------

    def _check_form(self, step: int) -> Mapping[TaskName, Estimate]:
        pools = {
            task: problems[: self.recipe.warmup.check_problems] for task, problems in self.pools["validation"].items()
        }
        began = time.monotonic()
        result = evaluate(
            self.policy,
            pools,
            self.bench.forms,
            self.bench.max_tokens,
            params=SamplingParams(1, self.recipe.rl.temperature),
            seed=study_seed(self.seed, "warmup", step),
            stops=self.bench.stops,
            max_error_rate=self.recipe.rl.max_error_rate,
        )
        seconds = time.monotonic() - began
        self.progress.unit("check", seconds)
        self.log("warmup", "validation", step, seconds, result.metrics)
        self.progress.show(f"warm-up {step}/{self.recipe.warmup.steps} | " + _scores(result.estimates()), always=True)
        return result.estimates()

    def log(
        self,
        arm: str,
        kind: str,
        step: int,
        seconds: float,
        metrics: Mapping[str, float],
        stage: TaskName | None = None,
    ) -> None:
        row = {"seed": self.seed, "arm": arm, "kind": kind, "stage": stage, "step": step, "seconds": round(seconds, 3)}
        self.run.append("metrics.jsonl", {**row, "metrics": dict(metrics)})

    def _show(self, arm: str, step: int, steps: int, result: StepResult, seconds: float) -> None:
        rewards = " ".join(
            f"{name.removeprefix('reward/')} {value:.2f}"
            for name, value in result.metrics.items()
            if name.startswith("reward/") and name != "reward/all"
        )
        sampling = result.metrics.get("seconds/sample", 0.0)
        pace = f"{result.tokens_sampled / sampling:.0f} tok/s" if sampling else ""
        self.progress.show(f"{arm} {step}/{steps} | reward {rewards} | {pace} | {seconds:.1f} s/step")

    def _keep_samples(self, arm: str, split: Split, step: int, stage: TaskName | None, result: Evaluation) -> None:
        kept: dict[TaskName, int] = {}
        for group in result.groups:
            task = group.problem.task
            if kept.get(task, 0) >= self.recipe.evaluation.keep_samples:
                continue
            kept[task] = kept.get(task, 0) + 1
            sample, score = group.group.samples[0], group.scores[0]
            self.run.append(
                "samples.jsonl",
                {
                    "seed": self.seed,
                    "arm": arm,
                    "split": split,
                    "stage": stage,
                    "step": step,
                    "task": task,
                    "problem": group.problem.id,
                    "prompt": group.problem.prompt,
                    "answer": group.problem.answer,
                    "reference": group.problem.data.get("reference"),
                    "response": sample.text,
                    "stop": sample.stop,
                    "status": score.status,
                    "score": score.value,
                    "parts": dict(score.parts),
                    "reason": score.reason,
                },
            )


def _estimates(rows: Mapping[TaskName, Mapping[str, Any]]) -> dict[TaskName, Estimate]:
    return {task: Estimate(**own) for task, own in rows.items()}


def _scores(estimates: Mapping[TaskName, Estimate]) -> str:
    return " ".join(f"{task} {estimate.mean:.2f}" for task, estimate in estimates.items())


def _slug(name: str) -> str:
    return name.replace(":", "-")
