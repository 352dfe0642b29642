"""The judge that a recipe asks for, with its guards, cache and meter."""

from pathlib import Path

from omni_thinker.judging.base import Judge
from omni_thinker.judging.cache import JudgeCache
from omni_thinker.judging.endpoint.client import ChatClient
from omni_thinker.judging.guards import LengthGuard
from omni_thinker.judging.likelihood import LikelihoodJudge
from omni_thinker.judging.limits import Meter
from omni_thinker.judging.pairwise import EndpointJudge
from omni_thinker.judging.trained import Hidden, TrainedJudge
from omni_thinker.models.home import home
from omni_thinker.recipe import EndpointSpec, JudgeSpec, ModelSpec


def make_judge(spec: JudgeSpec, model: ModelSpec, hidden: Hidden) -> Judge:
    """The judge of a recipe. model: whose system prompt and date a likelihood judge answers under. hidden: how the
    built-in judge reads a model's last hidden states."""
    judge = _bare_judge(spec, model, hidden)
    return judge if spec.longest_win is None else LengthGuard(judge, spec.longest_win)


def _bare_judge(spec: JudgeSpec, model: ModelSpec, hidden: Hidden) -> Judge:
    if spec.endpoint is not None and spec.kind == "endpoint":
        return make_endpoint_judge(spec.endpoint)
    if spec.kind == "builtin":
        return TrainedJudge.builtin(spec.margin, hidden)
    return LikelihoodJudge.of(spec.model, spec.margin, model.system, model.date)


def make_endpoint_judge(spec: EndpointSpec) -> EndpointJudge:
    """A judge behind an API, with its cache. Asks nothing yet."""
    path = Path(spec.cache).expanduser() if spec.cache else default_cache()
    cache = None if spec.cache == "none" else JudgeCache(path)
    return EndpointJudge(ChatClient(spec, cache, Meter(spec.budget, spec.price)))


def default_cache() -> Path:
    """Where judges' replies are kept for all runs."""
    return home() / "judge.sqlite"
