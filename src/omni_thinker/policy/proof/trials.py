"""Log-probs of a made-up batch by the model's own plain pass, by each layout of training and by each decoder."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from omni_thinker.engine.logprobs import Layout, answer_logprobs, plain_logits
from omni_thinker.protocol import TrainGroup
from omni_thinker.sampling.decoders.base import Decoder

SPREAD = 3.0
"""Standard deviation of a trained model's logits over the vocabulary, in nats. Where a model's are closer together, as
random weights make them, its temperature is lowered to that: an error shows as it would after training."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What the model makes of the answers of some groups: N tokens at a temperature, flat, samples one after another;
    and of all tokens but the first of the longest sequence, [T]."""

    logprobs_N: torch.Tensor
    longest_T: torch.Tensor
    temperature: float


@torch.inference_mode()
def reference(model: PreTrainedModel, groups: Sequence[TrainGroup]) -> Reference:
    """By one pass over each sequence, unpadded."""
    logits, targets, whole = [], [], None
    for group in groups:
        for sample in group.samples:
            row = torch.tensor([[*group.prompt, *sample.tokens]], device=model.device)
            out = plain_logits(model, row)[0].float()
            if whole is None:
                whole = out[:-1], row[0, 1:]
            logits.append(out[len(group.prompt) - 1 : -1])
            targets.append(row[0, len(group.prompt) :])
    logits_N_V = torch.cat(logits)
    temperature = min(1.0, max(float(logits_N_V.std(-1).mean()) / SPREAD, 1e-3))
    assert whole is not None
    return Reference(_chosen(logits_N_V, torch.cat(targets), temperature), _chosen(*whole, temperature), temperature)


@torch.inference_mode()
def sequence_logprobs(
    model: PreTrainedModel, tokens: Sequence[int], targets: Sequence[int], temperature: float
) -> torch.Tensor:
    """Of `targets`, each as the token that follows the one at its place in `tokens`, by the plain pass."""
    row = torch.tensor([list(tokens)], device=model.device)
    target_T = torch.tensor(list(targets), device=model.device)
    return _chosen(plain_logits(model, row)[0, : len(targets)].float(), target_T, temperature)


@torch.no_grad()
def layout_logprobs(
    model: PreTrainedModel, groups: Sequence[TrainGroup], temperature: float, layout: Layout
) -> torch.Tensor:
    """As training computes them."""
    return answer_logprobs(model, groups, temperature=temperature, layout=layout).logprobs_N


@torch.inference_mode()
def decoder_logprobs(
    model: PreTrainedModel, groups: Sequence[TrainGroup], temperature: float, make: type[Decoder]
) -> torch.Tensor:
    """As sampling computes them, would it draw these answers. Ended groups leave the batch, and columns change places.

    All groups must have the same number of samples."""
    size = len(groups[0].samples)
    answers = [[sample.tokens for sample in group.samples] for group in groups]
    steps = max(len(answer) for own in answers for answer in own)
    found: list[list[list[torch.Tensor]]] = [[[] for _ in own] for own in answers]
    decoder = make(model, size, steps)
    group_P = list(range(len(groups)))
    sample_P_G = [list(range(size)) for _ in groups]
    logits = decoder.prefill([group.prompt for group in groups])[:, None].expand(-1, size, -1)
    for step in range(steps):
        logprobs_P_G_V = (logits.float() / temperature).log_softmax(-1)
        tokens = [[0] * len(sample_P_G[0]) for _ in group_P]
        for i, p in enumerate(group_P):
            for j, g in enumerate(sample_P_G[i]):
                if g < 0:
                    continue
                tokens[i][j] = answers[p][g][step]
                found[p][g].append(logprobs_P_G_V[i, j, tokens[i][j]])
                if step + 1 == len(answers[p][g]):
                    sample_P_G[i][j] = -1
        going = [i for i, own in enumerate(sample_P_G) if max(own) >= 0]
        if not going:
            break
        if len(going) < len(group_P):  # as the loop does, but every time: those that are left, backwards
            width = max(sum(g >= 0 for g in sample_P_G[i]) for i in going)
            order = [sorted(range(size), key=lambda j, own=sample_P_G[i]: -own[j])[:width] for i in going]  # type: ignore[misc]
            decoder.keep(torch.tensor(going, device=model.device), torch.tensor(order, device=model.device))
            group_P, size = [group_P[i] for i in going], width
            tokens = [[tokens[i][j] for j in columns] for i, columns in zip(going, order, strict=True)]
            sample_P_G = [[sample_P_G[i][j] for j in columns] for i, columns in zip(going, order, strict=True)]
        fed = torch.tensor(tokens, device=model.device), torch.tensor(sample_P_G, device=model.device)
        logits = decoder.step(*fed).of_columns(size)
    return torch.stack([x for own in found for answer in own for x in answer])


def gradient(
    model: PreTrainedModel, groups: Sequence[TrainGroup], temperature: float, layout: Layout, *, recompute: bool
) -> torch.Tensor:
    """Of the answers' summed log-probs by the embeddings, or by all adapters: it comes through every layer. Flat.

    Raises RuntimeError where the pass can't be differentiated, or no weight that is trained takes part."""
    embeddings: Any = getattr(model.get_input_embeddings(), "weight", None)
    trained = [p for p in model.parameters() if p.requires_grad]
    params = [embeddings] if getattr(embeddings, "requires_grad", False) else trained
    with torch.enable_grad():
        scored = answer_logprobs(model, groups, temperature=temperature, layout=layout, recompute=recompute)
        found = torch.autograd.grad(scored.logprobs_N.sum(), params, allow_unused=True)
    taking_part = [gradient.detach().flatten() for gradient in found if gradient is not None]
    if not taking_part:
        raise RuntimeError("no weight that is trained takes part in it")
    return torch.cat(taking_part)


@contextmanager
def spread_adapters(model: PreTrainedModel) -> Iterator[None]:
    """Inside, LoRA's factors are random: at the start they add nothing, and would prove nothing."""
    factors: list[tuple[Any, torch.Tensor]] = [
        (param, param.detach().clone()) for name, param in model.named_parameters() if "lora_B" in name
    ]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for param, _ in factors:
            param.copy_(0.02 * torch.randn(param.shape, generator=generator))
    try:
        yield
    finally:
        with torch.no_grad():
            for param, before in factors:
                param.copy_(before)


def _chosen(logits_T_V: torch.Tensor, target_T: torch.Tensor, temperature: float) -> torch.Tensor:
    return (logits_T_V / temperature).log_softmax(-1).gather(-1, target_T[:, None])[:, 0]
