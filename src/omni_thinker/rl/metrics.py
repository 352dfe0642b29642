"""What a step or an evaluation saw, as `name/all` and `name/<task>`."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from omni_thinker.protocol import TokenStats
from omni_thinker.rl.advantages import has_signal
from omni_thinker.rl.batch import ScoredGroup
from omni_thinker.rl.turns.metrics import turn_metrics
from omni_thinker.types import Sample, TaskName

Metrics = dict[str, float]


def group_metrics(groups: Sequence[ScoredGroup]) -> Metrics:
    """Rewards, parts, lengths and rates of sampled groups, for all and per task."""
    metrics: Metrics = {}
    for name, task_groups in _by_task(groups):
        for key, value in _describe(task_groups).items():
            metrics[f"{key}/{name}"] = value
    return metrics


def token_metrics(stats: Mapping[TaskName, TokenStats]) -> Metrics:
    """Means per trained token, for all and per task."""
    metrics: Metrics = {}
    total = TokenStats()
    for sums in stats.values():
        total = total + sums
    for name, sums in {"all": total, **stats}.items():
        if sums.tokens:
            metrics[f"entropy/{name}"] = sums.entropy / sums.tokens
            metrics[f"clip_frac/{name}"] = sums.clipped / sums.tokens
            metrics[f"mismatch_abs/{name}"] = sums.mismatch / sums.tokens
        if sums.kl_tokens:
            metrics[f"kl_ref/{name}"] = sums.kl / sums.kl_tokens
        if sums.weighed:
            metrics[f"importance/{name}"] = sums.importance / sums.weighed
            metrics[f"importance_cut/{name}"] = sums.cut / sums.weighed
        if sums.screened:
            metrics[f"off_policy/{name}"] = sums.off_policy / sums.screened
        metrics[f"tokens_trained/{name}"] = float(sums.tokens)
    return metrics


def sampled_entropy(groups: Iterable[ScoredGroup]) -> float | None:
    """Nats per token: the mean surprise of the sampled tokens, an unbiased estimate of the entropy at the
    temperature that was sampled at."""
    logprobs = [x for group in groups for sample in group.group.samples for x in sample.drawn_logprobs]
    return -fmean(logprobs) if logprobs else None


def _by_task(groups: Sequence[ScoredGroup]) -> list[tuple[str, list[ScoredGroup]]]:
    tasks: dict[str, list[ScoredGroup]] = {"all": list(groups)}
    for group in groups:
        tasks.setdefault(group.problem.task, []).append(group)
    return list(tasks.items())


def _describe(groups: Sequence[ScoredGroup]) -> Metrics:
    scores = [score for group in groups for score in group.scores]
    samples = [sample for group in groups for sample in group.group.samples]
    values = [score.value for score in scores if score.value is not None]
    count = len(scores)
    if not count:
        return {}
    described = {
        "completion_length": fmean(sample.length for sample in samples),
        "truncated": sum(sample.stop == "length" for sample in samples) / count,
        "abstain_rate": sum(score.status == "abstain" for score in scores) / count,
        "error_rate": sum(score.status == "error" for score in scores) / count,
        "zero_variance": sum(not group.has_signal for group in groups) / len(groups),
        "problems": float(len(groups)),
        "tokens_sampled": float(sum(sample.length for sample in samples)),
    }
    described |= _thoughts(samples) | _ends(groups) | turn_metrics(groups)
    if versions := [sample.version for sample in samples if sample.version is not None]:
        described["weights_version"] = float(max(versions))
    if values:
        described["reward"] = fmean(values)
        described["accuracy"] = sum(value > 1 - 1e-9 for value in values) / len(values)
    for part in sorted({part for score in scores for part in score.parts}):
        described[f"part.{part}"] = fmean(score.parts[part] for score in scores if part in score.parts)
    for part in sorted({part for group in groups for part in group.weights}):
        own = [has_signal(group.parts[part]) for group in groups if part in group.weights]
        described[f"part_signal.{part}"] = sum(own) / len(own)
    return described


def _ends(groups: Sequence[ScoredGroup]) -> Metrics:
    """Answers that ended apart from those that were cut at the token limit, and what training took off for length."""
    described: Metrics = {}
    pairs = [pair for group in groups for pair in zip(group.group.samples, group.scores, strict=True)]
    for name, cut in (("ended", False), ("truncated", True)):
        own = [(sample, score) for sample, score in pairs if (sample.stop == "length") == cut]
        if own and not cut:
            described["completion_length_ended"] = fmean(sample.length for sample, _ in own)
        if values := [score.value for _, score in own if score.value is not None]:
            described[f"reward_{name}"] = fmean(values)
    if penalties := [penalty for group in groups for penalty in group.penalties]:
        described["overlong_penalty"] = fmean(penalties)
    return described


def _thoughts(samples: Sequence[Sample]) -> Metrics:
    """Lengths of thoughts and of answers, and how thoughts ended; nothing where no sample has any."""
    thoughts = [sample.thoughts for sample in samples if sample.thoughts is not None]
    if not thoughts:
        return {}
    count = len(samples)
    return {
        "thought_length": sum(one.tokens for one in thoughts) / count,
        "answer_length": fmean(sample.answer_length for sample in samples),
        "thoughts_closed": sum(bool(one.forced) for one in thoughts) / count,
        "thoughts_unfinished": sum(not one.closed for one in thoughts) / count,
    }
