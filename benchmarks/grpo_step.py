"""Seconds of a whole GRPO step (sampling, reward, update): ours against TRL's GRPOTrainer, on the built-in model.

    python benchmarks/grpo_step.py --peer trl --prompts 8 --prompt-tokens 70 --group 8 --completion-tokens 32 --json

Same model, prompts, group, lengths and data type, one update a step, the same coin for a reward; the first step of a
process is not counted. TRL runs with whichever of its batch sizes was faster here. Nothing else may run beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from itertools import pairwise
from typing import Any

from peers import arguments, compare, finish_side, prompts

STEPS = 3


def coin(text: str) -> float:
    """A reward that tells samples apart and that nothing can learn."""
    return float(hashlib.sha256(text.encode("utf-8", "replace")).digest()[0] % 2)


def main() -> None:
    parser = arguments(__doc__, ("trl",))
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=70)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--completion-tokens", type=int, default=32)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--model", default="builtin", help="of our side; TRL trains the built-in one")
    parser.add_argument("--peer-batch", type=int, default=16, help="sequences of one of TRL's backward passes")
    chosen = parser.parse_args()
    if chosen.side == "ours":
        _ours(chosen)
    elif chosen.side == "peer":
        _trl(chosen)
    else:
        names = ("prompts", "prompt_tokens", "group", "completion_tokens", "dtype", "peer_batch")
        compare(chosen, {name: getattr(chosen, name) for name in names})


def _ours(chosen: argparse.Namespace) -> None:
    from omni_thinker.policy.torch_policy import TorchPolicy
    from omni_thinker.recipe import ModelSpec, RlSpec
    from omni_thinker.rl.loop import Learner
    from omni_thinker.rl.stream import make_streams
    from omni_thinker.types import Group, Problem, Score

    class Coin:
        async def score(self, group: Group, problem: Problem) -> list[Score]:
            return [Score.of(coin(sample.text)) for sample in group.samples]

        def check(self, problem: Problem) -> str | None:
            return None

        def wrong_answer(self, problem: Problem) -> str:
            return ""

    policy = TorchPolicy(ModelSpec(name=chosen.model, dtype=chosen.dtype))
    policy.stop_ids = frozenset([-1])  # nothing ends early, as with the peer
    made = prompts(chosen.prompts * (STEPS + 1), chosen.prompt_tokens, policy.tokenizer)
    problems = [Problem(str(n), "t", text) for n, (text, _) in enumerate(made)]
    spec = RlSpec(group_size=chosen.group, problems_per_step=chosen.prompts, refill_rounds=0, kl_every=0, lr=1e-6)
    streams = make_streams({"t": problems}, 0)
    learner = Learner(policy, spec, streams, {"t": Coin()}, {"t": chosen.completion_tokens})
    seconds, trained = [], 0
    for step in range(STEPS + 1):
        began = time.perf_counter()
        result = learner.step({"t": chosen.prompts}, step)
        seconds.append(time.perf_counter() - began)
        trained = result.tokens_trained
        phases = {k: round(v, 2) for k, v in result.metrics.items() if k.startswith("seconds/")}
    finish_side(seconds[1:], tokens_trained=trained, **phases)


def _trl(chosen: argparse.Namespace) -> None:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from omni_thinker.models.builtin import builtin_folder
    from omni_thinker.models.load import compute_device, load_tokenizer

    folder = str(builtin_folder())
    tokenizer: Any = load_tokenizer("builtin")
    tokenizer.padding_side = "left"
    made = prompts(chosen.prompts * (STEPS + 1), chosen.prompt_tokens, tokenizer)
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text, _ in made])
    sequences = chosen.prompts * chosen.group
    batch = min(chosen.peer_batch, sequences)
    marks: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            marks.append(time.perf_counter())

    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=compute_device().type == "cpu",
        bf16=False,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=sequences // batch,
        num_generations=chosen.group,
        max_completion_length=chosen.completion_tokens,
        max_steps=STEPS + 1,
        learning_rate=1e-6,
        temperature=1.0,
        beta=0.0,
        loss_type="grpo",
        gradient_checkpointing=False,
        model_init_kwargs={"dtype": chosen.dtype},
        generation_kwargs={"eos_token_id": None, "min_new_tokens": chosen.completion_tokens},
        logging_steps=1000,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )

    def reward(completions: list[Any], **kwargs: Any) -> list[float]:
        return [coin(own[0]["content"]) for own in completions]

    trainer = GRPOTrainer(
        model=folder,
        reward_funcs=reward,
        args=config,
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    trainer.train()
    finish_side([b - a for a, b in pairwise(marks)])


if __name__ == "__main__":
    main()
