"""The judge that a recipe asks for, with its guards, cache and meter."""

from omni_thinker.judging.base import Judge
from omni_thinker.judging.endpoint.client import ChatClient
from omni_thinker.judging.endpoint.desk import open_desk
from omni_thinker.judging.guards import LengthGuard
from omni_thinker.judging.likelihood import LikelihoodJudge
from omni_thinker.judging.pairwise import EndpointJudge
from omni_thinker.judging.shared.share import Share
from omni_thinker.judging.trained import Hidden, TrainedJudge
from omni_thinker.recipe import EndpointSpec, JudgeSpec, ModelSpec


def make_judge(spec: JudgeSpec, model: ModelSpec, hidden: Hidden, shared: Share | None = None) -> Judge:
    """The judge of a recipe. model: whose system prompt and date a likelihood judge answers under. hidden: how the
    built-in judge reads a model's last hidden states. shared: what this process shares with others; without it the
    judge's limits, cache and counts are its own."""
    judge = _bare_judge(spec, model, hidden, shared)
    if spec.longest_win is None:
        return judge
    return LengthGuard(judge, spec.longest_win, None if shared is None else shared.tally)


def _bare_judge(spec: JudgeSpec, model: ModelSpec, hidden: Hidden, shared: Share | None) -> Judge:
    if spec.endpoint is not None and spec.kind == "endpoint":
        return make_endpoint_judge(spec.endpoint, shared)
    tally = None if shared is None else shared.tally
    if spec.kind == "builtin":
        return TrainedJudge.builtin(spec.margin, hidden, tally)
    return LikelihoodJudge.of(spec.model, spec.margin, model.system, model.date, tally)


def make_endpoint_judge(spec: EndpointSpec, shared: Share | None = None) -> EndpointJudge:
    """A judge behind an API, with its cache. Asks nothing yet."""
    if shared is None:
        return EndpointJudge(ChatClient(spec, open_desk(spec)))
    return EndpointJudge(ChatClient(spec, shared.desk), shared.tally)
