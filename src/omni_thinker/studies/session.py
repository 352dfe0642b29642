"""One seed of a study: a policy, and the moves that units are made of.

Every move goes through the journal of its unit, so that a unit which was killed takes the same path again, and computes
only what it had not. So the policy is made, and weights are brought to it, when something is computed with them."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from omni_thinker.baselines.sft import WarmupReport, WarmupState, warm_up
from omni_thinker.compare.at_k import with_measures
from omni_thinker.policy.make import make_policy
from omni_thinker.protocol import Policy
from omni_thinker.recipe import scheduled_arms
from omni_thinker.rewards.base import Reward
from omni_thinker.rl.difficulty import training_streams
from omni_thinker.rl.evaluate import Evaluation, evaluate
from omni_thinker.rl.loop import Learner
from omni_thinker.rl.requests import request_for
from omni_thinker.rl.stream import make_streams
from omni_thinker.runs.checkpoints import Checkpoints
from omni_thinker.runs.files import checksum, write_whole
from omni_thinker.runs.progress import Listener
from omni_thinker.runs.schema.base import Estimate
from omni_thinker.runs.schema.logs import Answer, Kind, Metrics, Reference
from omni_thinker.runs.unit_run import UnitRun
from omni_thinker.schedulers.base import Scheduler
from omni_thinker.studies.budget import Budget, Cost
from omni_thinker.studies.setup import Setup, study_seed
from omni_thinker.studies.training import Outcome, Stage, Training
from omni_thinker.studies.weights import Weights, slug
from omni_thinker.tasks.registry import Pools
from omni_thinker.types import Problem, SamplingParams, Split, TaskName


@dataclass
class ArmResult:
    """A trained arm: where its weights are, and what it cost."""

    name: str
    weights: Path
    spent: Cost
    validation: Mapping[TaskName, Estimate]
    stages: list[Stage] = field(default_factory=list)
    training: Outcome | None = None
    """None where it has none of its own."""

    @property
    def step(self) -> int:
        """The step after which its weights were taken."""
        selected = self.training.selected if self.training else None
        return self.spent.steps if selected is None else selected


@dataclass
class Desk:
    """The unit of now: what it reads and writes, and who is told. Sessions of one seed share it."""

    run: UnitRun
    progress: Listener


class Session:
    """Holds the one policy that all arms of a seed take turns in."""

    def __init__(self, setup: Setup, seed: int, desk: Desk, *, folder: Path | None = None) -> None:
        """`folder`: weights to begin with, which are the start then, instead of the recipe's model."""
        self.setup, self.seed, self.desk = setup, seed, desk
        self.recipe = setup.recipe
        self.pools: dict[Split, Pools] = dict(setup.pools)
        self.weights = Weights(self, seed)
        self._folder = folder

    @property
    def run(self) -> UnitRun:
        """What the unit of now reads and writes."""
        return self.desk.run

    @property
    def progress(self) -> Listener:
        """Who is told how far the unit of now is."""
        return self.desk.progress

    @cached_property
    def policy(self) -> Policy:
        """Made when it is first asked for: what is only read from the journal needs none."""
        seed = study_seed(self.seed, "lora")
        if self._folder is None:
            return make_policy(self.recipe.model, self.recipe.engine, seed=seed)
        self.run.files.need(self._folder)
        policy = make_policy(self.recipe.model, self.recipe.engine, folder=self._folder, seed=seed)
        policy.mark_start()
        return policy

    def warm_up(self) -> tuple[WarmupReport, float]:
        """Bring the policy from the bare model to where RL has something to tell apart; that is the start.

        Also the seconds that it took, over all processes that worked at it."""
        key, path = f"{self.seed} warm-up", self.weights.file("start")
        known = self.run.journal.begin(key)

        def make() -> dict[str, Any]:
            before = float(known.values[-1].get("seconds", 0.0)) if known.values else 0.0
            began = time.monotonic()
            report = self._warm_up(key, known.values, began - before)
            self.policy.mark_start()
            write_whole(path, self.policy.save_weights)
            self.run.files.made(path)
            return {**asdict(report), "sum": checksum(path), "seconds": time.monotonic() - began + before}

        row = self.run.journal.once(key, make)
        self.checkpoints("warmup").drop(0)
        self.weights.saved(path, row["sum"] if known.ended else None, start=True)
        if known.ended:
            self.progress.skip("warmup", self.recipe.warmup.steps)
        report = WarmupReport(row["steps"], row["tokens"], _estimates(row["reached"]), row["inside"])
        return report, float(row.get("seconds", 0.0))

    def _warm_up(self, key: str, known: Sequence[Mapping[str, Any]], began: float) -> WarmupReport:
        """`known`: what its checkpoints say. `began`: when it would have begun, had nothing come in between."""
        spec = self.recipe.warmup
        gold = {task: [p for p in problems if p.answer is not None] for task, problems in self.pools["train"].items()}
        streams = make_streams(
            {task: problems for task, problems in gold.items() if problems}, study_seed(self.seed, "warmup")
        )
        if spec.steps and (without := [task for task, problems in gold.items() if not problems]):
            self.progress.say(f"the warm-up leaves out {', '.join(without)}: no gold answers")
        checkpoints, begun = self.checkpoints("warmup"), None
        if known:
            checkpoints.read(self.policy, known[-1])
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
            if checkpoints.due():
                value = {"state": asdict(state), "seconds": time.monotonic() - began}
                self.run.journal.checkpoint(key, checkpoints.write(self.policy, state.step) | value)
                checkpoints.drop()

        report = warm_up(
            self.policy, streams, spec, check, on_step, thinking=self.setup.thinking, begun=begun, keep=keep
        )
        self.progress.skip("warmup", spec.steps - report.steps)
        self.progress.say(
            f"warm-up: {report.steps} steps, {time.monotonic() - began:.0f} s; " + _scores(report.reached)
        )
        return report

    def write_references(self) -> None:
        """Let the start answer every problem that is compared and has no reference yet; kept for the whole study."""
        for split, pools in self.pools.items():
            filled = dict(pools)
            for task in self.setup.compared:
                filled[task] = self._with_references(list(pools[task]), split)
            self.pools[split] = filled

    def _with_references(self, problems: list[Problem], split: Split) -> list[Problem]:
        lacking = [problem for problem in problems if "reference" not in problem.data]

        def make() -> dict[str, str]:
            self.weights.ensure_loaded()
            requests = [
                request_for(
                    self.policy,
                    problem,
                    study_seed(self.seed, "reference", problem.id),
                    self.setup.tasks[problem.task].max_tokens,
                    self.setup.stops.get(problem.task, ()),
                    self.setup.thinking[problem.task],
                )
                for problem in lacking
            ]
            temperature = self.recipe.judge.reference_temperature
            groups = self.policy.sample(requests, SamplingParams(group_size=1, temperature=temperature))
            texts = {problem.id: group.samples[0].text for problem, group in zip(lacking, groups, strict=True)}
            for problem_id, text in texts.items():
                row = Reference(seed=self.seed, unit=self.run.name, problem=problem_id, reference=text)
                self.run.append("references.jsonl", row)
            return texts

        texts = self.run.journal.once(f"{self.seed} references {split} {problems[0].task}", make) if problems else {}
        return [
            replace(problem, data={**problem.data, "reference": texts[problem.id]}) if problem.id in texts else problem
            for problem in problems
        ]

    def train(
        self,
        arm: str,
        scheduler: Scheduler,
        budget: Budget,
        *,
        watched: Sequence[TaskName] = (),
        at_step: Callable[[Cost], None] | None = None,
        stage_ends: bool = False,
        on_stage: Callable[[Sequence[Stage]], None] | None = None,
        least: int = 0,
    ) -> Outcome:
        """Train the wanted weights, and keep what comes of it (`Training`, `Training.run`)."""
        training = Training(self, arm, scheduler, budget, watched)
        return training.run(at_step=at_step, stage_ends=stage_ends, on_stage=on_stage, least=least)

    def budget(self, steps: int, whole: int | None = None) -> Budget:
        """So many steps of the plan. whole: those that the learning rate's schedule is over, by default the same."""
        study = self.recipe.study
        return Budget(steps, whole or steps, study.tokens / study.steps)  # no tokens: steps count

    def trained(self, arm: str, outcome: Outcome) -> ArmResult:
        """The arm with the weights that its training kept, and what validation says of these."""
        ended = outcome.stages[-1].evaluation if outcome.stages else None
        if ended is None or outcome.selected not in (None, outcome.spent.steps):
            step = outcome.spent.steps if outcome.selected is None else outcome.selected
            ended = self.evaluate(arm, "validation", step)
        weights = self.weights.save(arm)
        return ArmResult(arm, weights, outcome.spent, ended.estimates(), outcome.stages, outcome)

    def learner(self, rewards: Mapping[TaskName, Reward], arm: str = "") -> Learner:
        """At the beginning of every task's stream, so that all arms see the same problems. The scheduler of `arm` may
        have an `update` of its own."""
        streams = training_streams(self.pools["train"], study_seed(self.seed, "train"))
        max_tokens, stops = self.setup.max_tokens, self.setup.stops
        spec, scheduled = self.recipe.rl, scheduled_arms(self.recipe.study).get(arm)
        if scheduled is not None and scheduled.update is not None:
            spec = spec.model_copy(update={"update": scheduled.update})
        own = {task: task_spec.rl for task, task_spec in self.recipe.tasks.items()}
        return Learner(
            self.policy, spec, streams, rewards, max_tokens, stops, self.setup.thinking, own, self.setup.turns
        )

    def evaluate(self, arm: str, split: Split, step: int, stage: TaskName | None = None) -> Evaluation:
        """Every task on `split`, logged, with a few rollouts kept."""
        fresh = not self.run.journal.replaying
        row = self.run.journal.once(
            evaluation_key(self.seed, arm, split, step, stage), lambda: self._evaluate(arm, split, step, stage)
        )
        result = Evaluation(**row)
        if not fresh:
            self.progress.skip(split, 1)
        after = f" after {stage}" if stage else ""
        self.progress.say(f"{arm}{after}: {split} " + _scores(result.estimates()))
        return result

    def _evaluate(self, arm: str, split: Split, step: int, stage: TaskName | None) -> dict[str, Any]:
        self.progress.show(f"{arm}: answering the {split} problems")
        spec, pool, seed = self.recipe.evaluation, self.pools[split], study_seed(self.seed, split)
        greedy, seconds = None, 0.0
        if spec.greedy and split == "test":
            greedy, seconds = self._answer(pool, spec.sampling_greedy, seed)
        sampled, more = self._answer(pool, spec.sampling, seed)
        result, seconds = with_measures(sampled, spec, self.setup.eval_rewards, greedy), seconds + more
        self.progress.unit(split, seconds)
        self.log(arm, split, step, seconds, result.metrics, stage)
        self._keep_samples(arm, split, step, stage, result)
        row = {"values": result.values, "metrics": result.metrics, "tokens": result.tokens}
        return row | ({"measures": result.measures} if result.measures else {})

    def validate_interim(self, arm: str, step: int) -> Mapping[TaskName, Mapping[str, float]]:
        """Score of each problem, by task, after so many steps of `arm`, on the first validation problems of each task:
        the same ones with the same draws in every arm and after every step. Logged."""
        count = self.recipe.interim_problems

        def make() -> Mapping[TaskName, Mapping[str, float]]:
            pools = {task: problems[:count] for task, problems in self.pools["validation"].items()}
            params = replace(self.recipe.evaluation.sampling, group_size=1)
            result, seconds = self._answer(pools, params, study_seed(self.seed, "validation"))
            self.progress.unit("interim", seconds)
            self.log(arm, "interim", step, seconds, result.metrics)
            self.progress.show(f"{arm} after {step} steps: {_scores(result.estimates())}", always=True)
            return result.values

        fresh = not self.run.journal.replaying
        values: Mapping[TaskName, Mapping[str, float]] = self.run.journal.once(
            f"{self.seed} interim {arm} {step}", make
        )
        if not fresh:
            self.progress.skip("interim", 1)
        return values

    def _answer(
        self, pools: Mapping[TaskName, Sequence[Problem]], params: SamplingParams, seed: int
    ) -> tuple[Evaluation, float]:
        """Let the wanted weights answer some problems. Also the seconds that it took."""
        self.weights.ensure_loaded()
        began = time.monotonic()
        result = evaluate(
            self.policy,
            pools,
            self.setup.eval_rewards,
            self.setup.max_tokens,
            params=params,
            seed=seed,
            stops=self.setup.stops,
            thinking=self.setup.thinking,
            turns=self.setup.turns,
            max_error_rate=self.recipe.rl.max_error_rate,
        )
        return result, time.monotonic() - began

    def checkpoints(self, name: str) -> Checkpoints:
        """The checkpoints of one training."""
        return Checkpoints(
            self.weights.folder, self.run, f"{slug(name)}.checkpoint", self.recipe.study.checkpoint_steps
        )

    def _check_form(self, step: int) -> Mapping[TaskName, Estimate]:
        pools = {
            task: problems[: self.recipe.warmup.check_problems] for task, problems in self.pools["validation"].items()
        }
        began = time.monotonic()
        result = evaluate(
            self.policy,
            pools,
            self.setup.gate_rewards,
            self.setup.max_tokens,
            params=SamplingParams(1, self.recipe.rl.temperature),
            seed=study_seed(self.seed, "warmup", step),
            stops=self.setup.stops,
            thinking=self.setup.thinking,
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
        kind: Kind,
        step: int,
        seconds: float,
        metrics: Mapping[str, float],
        stage: TaskName | None = None,
    ) -> None:
        took = round(seconds, 3)
        row = Metrics(
            seed=self.seed,
            unit=self.run.name,
            arm=arm,
            kind=kind,
            stage=stage,
            step=step,
            seconds=took,
            metrics=metrics,
        )
        self.run.append("metrics.jsonl", row)

    def _keep_samples(self, arm: str, split: Split, step: int, stage: TaskName | None, result: Evaluation) -> None:
        counts: dict[TaskName, int] = {}
        for group in result.groups:
            task = group.problem.task
            if counts.get(task, 0) >= self.recipe.evaluation.keep_samples:
                continue
            counts[task] = counts.get(task, 0) + 1
            sample, score = group.group.samples[0], group.scores[0]
            self.run.append(
                "samples.jsonl",
                Answer(
                    seed=self.seed,
                    unit=self.run.name,
                    arm=arm,
                    split=split,
                    stage=stage,
                    step=step,
                    task=task,
                    problem=group.problem.id,
                    prompt=group.problem.shown,
                    answer=group.problem.answer,
                    reference=group.problem.data.get("reference"),
                    response=sample.text,
                    turns=() if sample.dialogue is None else sample.dialogue.texts,
                    thoughts=None if sample.thoughts is None else sample.thoughts.text,
                    stop=sample.stop,
                    status=score.status,
                    score=score.value,
                    parts=score.parts,
                    reason=score.reason,
                ),
            )


def evaluation_key(seed: int, arm: str, split: Split, step: int, stage: TaskName | None) -> str:
    """How the journal calls an evaluation."""
    return f"{seed} evaluate {arm} {split} {step} {stage}"


def _estimates(rows: Mapping[TaskName, Mapping[str, Any]]) -> dict[TaskName, Estimate]:
    return {task: Estimate(**row) for task, row in rows.items()}


def _scores(estimates: Mapping[TaskName, Estimate]) -> str:
    return " ".join(f"{task} {estimate.mean:.2f}" for task, estimate in estimates.items())
