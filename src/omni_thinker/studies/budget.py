"""What an arm may spend, and what it has spent."""

from dataclasses import dataclass

from omni_thinker.rl.loop import StepResult

MOST_STEPS = 8
"""Steps that an arm may take on a budget of tokens, in multiples of those of the plan: answers may become so short that
it would never end."""


@dataclass
class Cost:
    """What an arm cost. RL only: evaluations are the same for all arms and not counted."""

    steps: int = 0
    tokens_sampled: int = 0
    tokens_trained: int = 0
    seconds: float = 0.0
    samples: int = 0

    @property
    def tokens(self) -> int:
        """Tokens sampled and trained."""
        return self.tokens_sampled + self.tokens_trained

    def add(self, result: StepResult, seconds: float) -> None:
        self.steps += 1
        self.tokens_sampled += result.tokens_sampled
        self.tokens_trained += result.tokens_trained
        self.samples += sum(len(group.group.samples) for group in result.groups)
        self.seconds += seconds

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True, slots=True)
class Budget:
    """What an arm may spend, in steps of the plan.

    steps: how many of these. whole: what the learning rate's schedule is over. step_tokens: tokens, sampled and
    trained, that a step of the plan stands for; 0: a step of the plan is a step."""

    steps: int
    whole: int
    step_tokens: float = 0.0

    def place(self, spent: Cost) -> float:
        """How far an arm is that has spent so much, from 0; `steps` at the end, or a little more."""
        return spent.tokens / self.step_tokens if self.step_tokens else float(spent.steps)

    def share(self, spent: Cost) -> float:
        """The same as a share of the whole budget."""
        return self.place(spent) / self.steps

    def is_spent(self, spent: Cost) -> bool:
        """Whether no step may begin any more. The last one may have gone beyond a budget of tokens: what it takes is
        known afterwards."""
        return self.place(spent) >= self.steps or self.is_endless(spent)

    def is_endless(self, spent: Cost) -> bool:
        """Whether a budget of tokens isn't used up after all steps that an arm may take."""
        return self.place(spent) < self.steps and spent.steps >= MOST_STEPS * self.steps
