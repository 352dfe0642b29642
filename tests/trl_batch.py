"""One batch for TRL's GRPOTrainer and for us: the same tokens, log-probs and rewards.

TRL does all of its own work: it pads the batch, takes the advantages from the rewards, loads its own reference
model and computes its own log-probs. Only its generation is replaced, by our fixed tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from omni_thinker.policy.torch_policy import TorchPolicy
from omni_thinker.protocol import TrainGroup
from omni_thinker.recipe import ModelSpec
from omni_thinker.rl.batch import ScoredGroup
from omni_thinker.types import Group, Problem, Sample, Score

MAX_TOKENS = 9
PROMPT_LENGTHS = (7, 4)
ANSWER_LENGTHS = ((6, 1, 4), (9, 3, 2))
REWARDS = ((1.0, 0.0, 0.25), (0.2, 0.9, 0.9))
GROUP_SIZE = 3
EOS = 2


def _ids(count: int, rng: torch.Generator) -> list[int]:
    return [int(t) for t in torch.randint(3, 512, (count,), generator=rng)]


def moved_policy(tiny_model: Path, seed: int = 1) -> TorchPolicy:
    """A policy that has moved away from its start."""
    made = TorchPolicy(ModelSpec(name=str(tiny_model), dtype="float32"))
    made.mark_start()
    move(made, seed)
    return made


def move(policy: TorchPolicy, seed: int, by: float = 0.01) -> None:
    """Add noise to the weights."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for master in policy._masters:
            master.add_(by * torch.randn(master.shape, generator=rng))
    policy._updates.publish()


def ragged_groups(policy: TorchPolicy) -> list[ScoredGroup]:
    """Ragged groups whose log-probs differ from the policy's by enough to clip on both sides."""
    rng = torch.Generator().manual_seed(2)
    groups = []
    for g, (prompt_length, lengths) in enumerate(zip(PROMPT_LENGTHS, ANSWER_LENGTHS, strict=True)):
        prompt = tuple(_ids(prompt_length, rng))
        answers = [(*_ids(n - 1, rng), EOS) for n in lengths]
        bare = tuple(Sample(a, (0.0,) * len(a), "", "stop") for a in answers)
        unweighted = TrainGroup("task", prompt, bare, (0.0,) * len(bare), (0.0,) * len(bare))
        now = policy.logprobs([unweighted])
        noise = (0.3 * torch.randn(now.shape, generator=rng)).split(lengths)
        # A shift of the whole sample too, or sequence ratios would stay within the clip.
        shifts = [0.5 * (-1) ** (n // 2) for n in range(len(lengths))]
        old = [x + e + shift for x, e, shift in zip(now.split(lengths), noise, shifts, strict=True)]
        samples = tuple(Sample(a, tuple(o.tolist()), "", "stop") for a, o in zip(answers, old, strict=True))
        problem = Problem(id=str(g), task="task", prompt="")
        groups.append(ScoredGroup(problem, Group(prompt, samples), tuple(Score.of(r) for r in REWARDS[g])))
    return groups


def trainer_maker(tiny_model: Path, tmp_path: Path) -> Callable[..., Any]:
    """Makes a GRPOTrainer that scores completions by the `reward` column and generates nothing."""
    from datasets import Dataset
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    def by_column(completions: list[str], reward: list[Any], **_: Any) -> list[Any]:
        return reward

    def part(number: int) -> Callable[..., list[float]]:
        def of_row(completions: list[str], reward: list[Any], **_: Any) -> list[float]:
            return [row[number] for row in reward]

        of_row.__name__ = f"part{number}"
        return of_row

    def make(parts: int = 0, **settings: Any) -> Any:
        """`parts`: how many reward functions there are, each of its own place in the column; 0: one of the whole."""
        arguments = GRPOConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=False,
            report_to="none",
            per_device_train_batch_size=GROUP_SIZE * 2,
            num_generations=GROUP_SIZE,
            gradient_accumulation_steps=1,
            gradient_checkpointing=False,
            max_completion_length=MAX_TOKENS,
            temperature=1.0,
            model_init_kwargs={"dtype": "float32"},
            **settings,
        )
        rows = Dataset.from_dict({"prompt": ["a", "b"], "reward": [0.0, 0.0]})
        functions: Any = [part(number) for number in range(parts)] or by_column
        made: Any = GRPOTrainer(str(tiny_model), reward_funcs=functions, args=arguments, train_dataset=rows)
        made.current_gradient_accumulation_steps = 1  # what training sets before each step
        made.model.train()
        return made

    return make


def trl_inputs(
    trainer: Any, groups: Sequence[ScoredGroup], rewards: Sequence[Any], *, sampler: bool = False
) -> dict[str, Any]:
    """What TRL would train on, had it generated our tokens. `sampler`: by an engine with our log-probs; the old ones
    are then its own model's of now. `rewards`: one for each sample, or one for each function."""
    flat = [(group.group.prompt, sample) for group in groups for sample in group.group.samples]
    prompts, answers = [list(p) for p, _ in flat], [list(s.tokens) for _, s in flat]
    drawn = [list(s.logprobs) for _, s in flat] if sampler else None
    trainer.use_vllm = sampler
    trainer._generate = lambda _: (prompts, answers, None, ["x"] * len(flat), drawn, {}, None, None)
    rows = [{"prompt": "x", "reward": reward} for reward in rewards]
    inputs: dict[str, Any] = trainer._generate_and_score_completions(rows)
    if sampler:
        return inputs
    width = inputs["completion_ids"].shape[1]
    old = [[*s.logprobs, *[0.0] * (width - len(s.logprobs))] for _, s in flat]
    inputs["old_per_token_logps"] = torch.tensor(old)
    return inputs
