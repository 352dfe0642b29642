"""What a policy is asked: the prompt of a problem, and how its answers are drawn."""

from omni_thinker.errors import UserError
from omni_thinker.protocol import Policy, Thinks
from omni_thinker.types import Problem, SampleRequest, Thinking


def request_for(
    policy: Policy,
    problem: Problem,
    seed: int,
    max_tokens: int,
    stop: tuple[str, ...] = (),
    thinking: Thinking = "auto",
) -> SampleRequest:
    """A request for answers to a problem. Raises UserError where thoughts are to be changed and the policy can't."""
    if isinstance(policy, Thinks):
        prompt, thoughts = policy.ask(problem.chat, thinking)
        return SampleRequest(prompt, max_tokens, seed, stop, thoughts)
    if thinking != "auto":
        raise UserError("this policy has no say over thoughts", key=f"tasks.{problem.task}.thinking")
    return SampleRequest(policy.encode_prompt(problem.chat), max_tokens, seed, stop)
