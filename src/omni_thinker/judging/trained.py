"""The built-in judge: the built-in model with a small adapter and a head that says how good an answer is.

Trained by `scripts/train_judge.py` from pairs that need no human label (Bradley-Terry loss, arXiv 2203.02155). An
answer is scored by itself, so there are no seats, and one forward pass per distinct text is all it costs."""

import asyncio
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from omni_thinker.errors import UserError
from omni_thinker.judging.base import Verdict, without_asking
from omni_thinker.judging.tally import TalliedJudge, Tally
from omni_thinker.models.load import compute_dtype, load_model, load_tokenizer

MAX_PROMPT, MAX_ANSWER = 320, 320
"""Tokens that are read: of a longer request its beginning and its end, of a longer answer its beginning."""
MULTIPLE = 16
"""Widths are filled up, so that matrix products come in few shapes."""
_BATCH_ROWS = 16
"""Rows of one pass through transformers."""
_WORTH_SHARING = 8


def encode(tokenizer: Any, prompt: str, answer: str) -> list[int]:
    """A chat turn and its answer, as the judge reads them; its end is where the head looks."""

    def plain(text: str) -> list[int]:
        """What a text writes in angle brackets stays text: no answer ends itself or begins another turn."""
        words = text.strip().encode("utf-8", "replace").decode()
        return list(tokenizer(words, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    prompt_ids = plain(prompt)
    if len(prompt_ids) > MAX_PROMPT:
        prompt_ids = prompt_ids[: MAX_PROMPT // 2] + prompt_ids[-MAX_PROMPT // 2 :]
    answer_ids = plain(answer)[:MAX_ANSWER]
    begin, middle, end = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>")
    )
    return [*begin, *prompt_ids, *middle, *answer_ids, *end]


def last_hidden(model: Any, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """What `model` (a causal LM) has at the last token of each row; [N, hidden], fp32.

    What all rows begin with, such as the request that several answers share, is computed once."""
    shared = _shared_beginning(rows)
    tails = [row[shared:] for row in rows]
    width = -(-max(map(len, tails)) // MULTIPLE) * MULTIPLE
    ids_N_T = torch.zeros(len(rows), width, dtype=torch.long)
    mask_N_T = torch.zeros(len(rows), shared + width, dtype=torch.long)
    for n, tail in enumerate(tails):
        ids_N_T[n, : len(tail)] = torch.tensor(tail)
        mask_N_T[n, : shared + len(tail)] = 1
    device = next(model.parameters()).device
    options: dict[str, Any] = {"use_cache": False}
    if shared:
        beginning = torch.tensor([list(rows[0][:shared])], device=device)
        cache = model.model(input_ids=beginning, use_cache=True).past_key_values
        cache.batch_repeat_interleave(len(rows))
        options = {"use_cache": True, "past_key_values": cache}
    ids_N_T, mask_N_T = ids_N_T.to(device), mask_N_T.to(device)
    hidden = model.model(input_ids=ids_N_T, attention_mask=mask_N_T, **options).last_hidden_state
    ends = torch.tensor([len(tail) - 1 for tail in tails], device=device)
    states: torch.Tensor = hidden[torch.arange(len(rows), device=device), ends].float()
    return states


Families = Sequence[Sequence[Sequence[int]]]
"""Rows of tokens, in families that begin alike."""
Hidden = Callable[[Any, Families], torch.Tensor]
"""What a causal LM has at the last token of each row, in order; [N, hidden], fp32."""


def through_transformers(model: Any, families: Families) -> torch.Tensor:
    """A Hidden that any model can do. Rows of a family are in the order of their length, so that none pads all."""
    batches = [rows[begin : begin + _BATCH_ROWS] for rows in families for begin in range(0, len(rows), _BATCH_ROWS)]
    return torch.cat([last_hidden(model, batch) for batch in batches])


def _shared_beginning(rows: Sequence[Sequence[int]]) -> int:
    """Tokens that all rows begin with, where it pays; at least one token of each is left."""
    if len(rows) < 2:
        return 0
    most = min(map(len, rows)) - 1
    first = rows[0]
    shared = next((n for n in range(most) if any(row[n] != first[n] for row in rows)), most)
    return shared if shared >= _WORTH_SHARING else 0


def load_card() -> dict[str, Any]:
    """What is known of the shipped adapter: what it was trained on, and how often it agrees with people."""
    card: dict[str, Any] = json.loads(files("omni_thinker.judging").joinpath("adapter", "card.json").read_text("utf-8"))
    return card


def merge_adapter(model: Any, factors: Mapping[str, torch.Tensor], scale: float) -> None:
    """Add scale x B A to the weights that the factors are named after, in place.

    Raises UserError where the model has no such weights: the adapter belongs to another model."""
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name in sorted(key.removesuffix(".lora_A") for key in factors if key.endswith(".lora_A")):
            down, up = factors[f"{name}.lora_A"].float(), factors[f"{name}.lora_B"].float()
            weight = weights.get(f"{name}.weight")
            if weight is None or weight.shape != (up.shape[0], down.shape[1]):
                raise UserError(f"the judge's adapter doesn't fit the model: {name}", key="judge.kind")
            weight += (scale * (up @ down)).to(weight)


@dataclass(slots=True)
class _Asked:
    prompt: str
    texts: Sequence[str]
    scores: asyncio.Future[list[float]]
    answering: asyncio.Task[None] | None = None
    """Held here, since a loop doesn't hold its tasks."""


class TrainedJudge(TalliedJudge):
    """Scores each answer by itself; the difference of two scores is the log-odds that the first is the better one.

    A difference of at most `margin` is a tie; an empty answer loses against any other. What is asked in one turn of the
    event loop, such as a step's answers, is computed together."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        margin: float = 0.1,
        *,
        adapter: Path | None = None,
        hidden: Hidden = through_transformers,
        tally: Tally | None = None,
    ) -> None:
        """`model` is the built-in model and is changed for good; `adapter`: a folder other than the shipped one;
        `hidden`: how the model is computed; `tally`: where verdicts are counted, None: in one of its own.

        Raises ValueError for a negative margin and UserError for an adapter of another model."""
        if not margin >= 0.0:
            raise ValueError(f"margin must be >= 0, got {margin}")
        super().__init__(tally)
        with as_file(files("omni_thinker.judging") / "adapter") as shipped:
            folder = adapter or shipped
            try:
                tensors = load_file(folder / "adapter.safetensors")
                card = json.loads((folder / "card.json").read_text("utf-8"))
                head_H, bias = tensors.pop("head.weight").float(), float(tensors.pop("head.bias"))
                scale, version = float(card["scale"]), str(card["version"])
            except (OSError, ValueError, TypeError, LookupError, SafetensorError) as exc:
                raise UserError(f"the judge's adapter can't be read: {exc}", file=folder) from None
        merge_adapter(model, tensors, scale)
        self._head_H, self._bias = head_H, bias
        self._model, self._tokenizer, self._margin, self._hidden = model.eval(), tokenizer, margin, hidden
        self.name = f"builtin:{version}"
        self.caveat = caveat(card)
        self._lock = threading.Lock()
        self._asked: WeakKeyDictionary[asyncio.AbstractEventLoop, list[_Asked]] = WeakKeyDictionary()

    @classmethod
    def builtin(cls, margin: float, hidden: Hidden, tally: Tally | None = None) -> "TrainedJudge":
        """The judge with the built-in model, loaded for it alone."""
        tokenizer, model = load_tokenizer("builtin"), load_model("builtin", compute_dtype("auto"))
        return cls(model, tokenizer, margin, hidden=hidden, tally=tally)

    async def compare(self, prompt: str, responses: Sequence[str], reference: str) -> list[Verdict]:
        """One verdict per response; `margin` in log-odds."""
        scores = await self._scores_together(prompt, [*responses, reference])
        verdicts = [
            self._verdict(text, reference, score - scores[-1])
            for text, score in zip(responses, scores[:-1], strict=True)
        ]
        return self.counted(verdicts, responses, reference)

    def scores(self, prompt: str, texts: Sequence[str]) -> list[float]:
        """How good each text is as an answer; only differences under the same prompt mean something."""
        return self.all_scores([(prompt, texts)])[0]

    def all_scores(self, requests: Sequence[tuple[str, Sequence[str]]]) -> list[list[float]]:
        """`scores` of several prompts with their texts, one or more each.

        Nothing is remembered: in bf16 a score depends a little on what it is computed with, and a run that is gone on
        with must find what it would have found."""
        with self._lock:
            rows: dict[str, dict[str, list[int]]] = {}
            for prompt, texts in requests:
                encoded = rows.setdefault(prompt, {})
                encoded |= {text: encode(self._tokenizer, prompt, text) for text in texts if text not in encoded}
            # By length, so that a long text doesn't pad all others, whatever the order in which they arrive.
            families = {
                p: sorted(encoded.items(), key=lambda item: (len(item[1]), item[0]))
                for p, encoded in sorted(rows.items())
            }
            with torch.inference_mode():
                hidden_N_H = self._hidden(
                    self._model, [[row for _, row in encoded] for encoded in families.values()]
                ).cpu()
                scores = (hidden_N_H @ self._head_H + self._bias).tolist()
            known = dict(
                zip(((p, text) for p, encoded in families.items() for text, _ in encoded), scores, strict=True)
            )
            return [[known[prompt, text] for text in texts] for prompt, texts in requests]

    async def _scores_together(self, prompt: str, texts: Sequence[str]) -> list[float]:
        loop = asyncio.get_running_loop()
        request = _Asked(prompt, texts, loop.create_future())
        waiting = self._asked.setdefault(loop, [])
        waiting.append(request)
        if len(waiting) == 1:  # it runs after all that the loop has begun by now
            request.answering = loop.create_task(self._answer(loop))
        return await request.scores

    async def _answer(self, loop: asyncio.AbstractEventLoop) -> None:
        together = self._asked.pop(loop)
        try:
            results = await asyncio.to_thread(self.all_scores, [(one.prompt, one.texts) for one in together])
        except Exception as exc:
            for one in together:
                if not one.scores.done():
                    one.scores.set_exception(exc)
            return
        for one, scores in zip(together, results, strict=True):
            if not one.scores.done():  # else nobody waits for it any more
                one.scores.set_result(scores)

    def _verdict(self, text: str, reference: str, lead: float) -> Verdict:
        if known := without_asking(text, reference):
            return known
        if lead != lead:
            return Verdict("error", None, "the judge's score is not a number")
        return Verdict("tie" if abs(lead) <= self._margin else "win" if lead > 0 else "lose", lead)


def caveat(card: Mapping[str, Any]) -> str:
    """One sentence for reports, from the card's figures."""
    measured = card["agreement"].get("pandalm_human_pairs")
    if measured is None:
        return f"How often the built-in judge ({card['version']}) agrees with people has not been measured."
    low, high = measured["balanced_interval_95"]
    return (
        f"The built-in judge ({card['version']}, 135M parameters) agrees with people on {measured['agreement']:.0%} of "
        f"decided PandaLM pairs, {measured['balanced']:.0%} [{low:.0%}, {high:.0%}] with length balanced (chance is "
        f"50 %, another person {measured['ceiling']:.0%}); on harder pairs it does worse (`omni-thinker judge info`)."
    )
