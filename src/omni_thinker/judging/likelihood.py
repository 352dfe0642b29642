"""A judge that needs no instructions: the text that a frozen model finds more likely wins."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import torch

from omni_thinker.judging.base import Verdict, without_asking
from omni_thinker.judging.tally import TalliedJudge, Tally
from omni_thinker.models.chat import ChatFormat
from omni_thinker.models.load import compute_dtype, load_model, load_tokenizer
from omni_thinker.models.think_form import think_form

_MAX_LOGITS = 1 << 26
"""Logits computed at once (positions x vocabulary): 256 MB in fp32."""


class LikelihoodJudge(TalliedJudge):
    """Compares mean log-likelihoods per token, given the chat prompt, under a frozen causal LM.

    There are no seats, so the verdict is symmetric by construction. A difference of at most `margin` nats per token
    is a tie; an empty response loses against any other text."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        margin: float = 0.1,
        *,
        system: str | None = None,
        date: str = "",
        name: str = "likelihood",
        tally: Tally | None = None,
    ) -> None:
        """`model` and `tokenizer`: loaded already, of any dtype and device. `margin` >= 0, else ValueError. `date`:
        what a template that prints the date is given (YYYY-MM-DD); empty for today. `tally`: where verdicts are
        counted; None: in one of its own."""
        if not margin >= 0.0:
            raise ValueError(f"margin must be >= 0, got {margin}")
        super().__init__(tally)
        self.name = name
        self.caveat = (
            "The likelihood judge prefers text that its frozen model finds likely: fluent and expected, not good. "
            "The bare built-in model used this way agrees with people on 47 to 49 % of pairs with length balanced "
            "(chance is 50 %)."
        )
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._chat = ChatFormat(tokenizer, day=date, where=name)
        self._form = think_form(self._chat)
        self._margin = margin
        self._system = system
        self._references: dict[tuple[str, str], float | None] = {}
        self._lock = threading.Lock()

    @classmethod
    def of(cls, name: str, margin: float, system: str, date: str, tally: Tally | None = None) -> "LikelihoodJudge":
        """The judge with the model of this name or folder. Raises UserError where it can't be loaded."""
        tokenizer, model = load_tokenizer(name), load_model(name, compute_dtype("auto"))
        return cls(model, tokenizer, margin, system=system, date=date, name=f"likelihood:{name}", tally=tally)

    async def compare(self, prompt: str, responses: Sequence[str], reference: str) -> list[Verdict]:
        """One verdict per response; `margin` in nats per token. An error where a text outgrows the model."""
        verdicts = await asyncio.to_thread(self._compare, prompt, tuple(responses), reference)
        return self.counted(verdicts, responses, reference)

    def mean_logprobs(self, prompt: str, texts: Sequence[str]) -> list[float | None]:
        """Mean log-likelihood per token of each text, <= 0; None where it is empty or too long for the model."""
        prefix = self._prompt_ids(prompt)
        rows = [self._tokenizer(text, add_special_tokens=False)["input_ids"] if text.strip() else [] for text in texts]
        values: list[float | None] = [None] * len(rows)
        longest = getattr(self._model.config, "max_position_embeddings", None) or 1 << 30
        # By length, so that a long text doesn't pad all others.
        order = sorted(
            (i for i, row in enumerate(rows) if row and len(prefix) + len(row) <= longest), key=lambda i: len(rows[i])
        )
        while order:
            batch = [order.pop()]
            room = _MAX_LOGITS // (self._model.config.vocab_size * (len(rows[batch[0]]) + 1))
            while order and len(batch) < room:
                batch.append(order.pop())
            for i, value in zip(batch, self._forward(prefix, [rows[i] for i in batch]), strict=True):
                values[i] = value
        return values

    def _compare(self, prompt: str, responses: tuple[str, ...], reference: str) -> list[Verdict]:
        with self._lock:
            key = (prompt, reference)
            if key not in self._references:
                # On its own, so that its value doesn't depend on what it is compared with first.
                self._references[key] = self.mean_logprobs(prompt, [reference])[0]
            theirs = self._references[key]
            # Each distinct text once: a group of short answers repeats itself.
            distinct = [text for text in dict.fromkeys(responses) if text != reference]
            ours = dict(zip(distinct, self.mean_logprobs(prompt, distinct), strict=True))
        return [self._verdict(text, reference, ours.get(text), theirs) for text in responses]

    def _verdict(self, text: str, reference: str, ours: float | None, theirs: float | None) -> Verdict:
        if known := without_asking(text, reference):
            return known
        if ours is None or theirs is None:
            return Verdict("error", None, "longer than the judge's context")
        difference = ours - theirs
        if difference != difference:
            return Verdict("error", None, "the judge's log-likelihood is not a number")
        outcome = "tie" if abs(difference) <= self._margin else "win" if difference > 0 else "lose"
        return Verdict(outcome, difference)  # type: ignore[arg-type]

    def _prompt_ids(self, prompt: str) -> list[int]:
        turns = [{"role": "system", "content": self._system}] if self._system is not None else []
        turns.append({"role": "user", "content": prompt})
        text = self._chat.render_text(turns)
        if self._form is not None and self._form.opens:  # texts are compared as answers, not as thoughts
            text = self._form.closed(text)
        return self._chat.encode(text)

    def _forward(self, prefix: list[int], rows: list[list[int]]) -> list[float]:
        longest = max(map(len, rows))
        ids_N_T = torch.zeros(len(rows), len(prefix) + longest, dtype=torch.long)
        mask_N_T = torch.zeros_like(ids_N_T)
        for n, row in enumerate(rows):
            end = len(prefix) + len(row)
            ids_N_T[n, :end] = torch.tensor(prefix + row)
            mask_N_T[n, :end] = 1
        device = next(self._model.parameters()).device
        ids_N_T, mask_N_T = ids_N_T.to(device), mask_N_T.to(device)
        with torch.no_grad():
            # The prompt is the same in all rows and padding is on the right: one range covers every response.
            logits_N_R_V = self._model(
                input_ids=ids_N_T, attention_mask=mask_N_T, logits_to_keep=longest + 1, use_cache=False
            ).logits[:, :-1]
            targets_N_R = ids_N_T[:, len(prefix) :]
            chosen_N_R = logits_N_R_V.gather(-1, targets_N_R[..., None])[..., 0].float()
            logprobs_N_R = chosen_N_R - torch.logsumexp(logits_N_R_V.float(), dim=-1)
            keep_N_R = mask_N_T[:, len(prefix) :].float()
            means_N = (logprobs_N_R * keep_N_R).sum(-1) / keep_N_R.sum(-1)
        return [float(mean) for mean in means_N.cpu()]
