"""A policy that isn't ours: one distribution over characters, with the protocol's methods and no others."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from omni_thinker.protocol import (
    Loss,
    LossReport,
    OnGroup,
    OptimParams,
    OptimReport,
    TokenBatch,
    TokenStats,
    TrainBatch,
)
from omni_thinker.types import Chat, Group, Sample, SampleRequest, SamplingParams

_STOP = 0
_CHARS = 128


class UnigramPolicy:
    def __init__(self, spec: Any, *, folder: str | Path | None = None, seed: int = 0) -> None:
        self.logits = torch.zeros(_CHARS, requires_grad=True)
        self.start = self.logits.detach().clone()

    def encode_prompt(self, chat: str | Chat) -> tuple[int, ...]:
        text = chat if isinstance(chat, str) else chat.text
        return tuple(min(ord(char), _CHARS - 1) for char in text)

    def encode_answer(self, text: str) -> tuple[int, ...]:
        return (*self.encode_prompt(text), _STOP)

    def sample(
        self, requests: Sequence[SampleRequest], params: SamplingParams, on_group: OnGroup | None = None
    ) -> list[Group]:
        groups = []
        for place, request in enumerate(requests):
            rng = random.Random(request.seed)
            drawn = [self._draw(rng, request.max_tokens, params.temperature) for _ in range(params.group_size)]
            groups.append(Group(tuple(request.prompt), tuple(drawn)))
            if on_group is not None:
                on_group(place, groups[-1])
        return groups

    def _draw(self, rng: random.Random, longest: int, temperature: float) -> Sample:
        logprobs = torch.log_softmax(self.logits.detach() / (temperature or 1e-3), 0).tolist()
        weights = torch.softmax(self.logits.detach() / (temperature or 1e-3), 0).tolist()
        tokens: list[int] = []
        while len(tokens) < longest and (not tokens or tokens[-1] != _STOP):
            tokens += rng.choices(range(_CHARS), weights)
        ended = tokens[-1] == _STOP
        text = "".join(map(chr, tokens[:-1] if ended else tokens))
        return Sample(tuple(tokens), tuple(logprobs[t] for t in tokens), text, "stop" if ended else "length")

    def forward_backward(
        self, batch: TrainBatch, loss: Loss, *, temperature: float = 1.0, reference: bool = False
    ) -> LossReport:
        total, stats = 0.0, dict[str, TokenStats]()
        for group in batch:
            tokens = torch.tensor([token for sample in group.samples for token in sample.tokens])
            counts = [len(sample.tokens) for sample in group.samples]

            def spread(values: Sequence[float], counts: Sequence[int] = counts) -> torch.Tensor:
                return torch.tensor(values).repeat_interleave(torch.tensor(counts))

            terms = loss(
                TokenBatch(
                    torch.log_softmax(self.logits / temperature, 0)[tokens],
                    torch.tensor([value for sample in group.samples for value in sample.logprobs]),
                    torch.log_softmax(self.start / temperature, 0)[tokens] if reference else None,
                    spread(group.advantages),
                    spread(group.weights),
                    spread(range(len(counts))),
                )
            )
            terms.loss.backward()
            total += float(terms.loss.detach())
            stats[group.task] = stats.get(group.task, TokenStats()) + TokenStats(len(tokens))
        return LossReport(total, sum(group.tokens for group in batch), stats)

    def optim_step(self, optim: OptimParams) -> OptimReport:
        gradient = torch.zeros(_CHARS) if self.logits.grad is None else self.logits.grad
        norm = float(gradient.norm())
        with torch.no_grad():
            self.logits -= 1e3 * optim.lr * gradient
        self.logits.grad = None
        return OptimReport(norm, True)

    def reset_optimizer(self) -> None: ...

    def mark_start(self) -> None:
        self.start = self.logits.detach().clone()

    def save_weights(self, path: Path) -> None:
        save_file({"logits": self.logits.detach().clone()}, path)

    def load_weights(self, path: Path) -> None:
        self.logits = load_file(path)["logits"].requires_grad_()

    save_state, load_state = save_weights, load_weights

    def export(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.save_weights(path / "model.safetensors")
