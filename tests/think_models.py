"""Tiny models that think: templates of ours that open a block, close one, know a switch, or write channels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from omni_thinker.types import Mark, ThoughtRule, ThoughtState

_TURNS = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
_BEGIN = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}PUT{% endif %}"


def template(written: str = "") -> str:
    """ChatML whose prompts end with `written`, which may hold Jinja."""
    return _TURNS + _BEGIN.replace("PUT", written)


OPEN = template("{{ '<think>\n' }}")
EMPTY = template("{{ '<think>\n\n</think>\n\n' }}")
OWN = template("{# a model that opens <think> itself #}")
SWITCH = template(
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)
STUCK = template("{% if enable_thinking %}{% endif %}{{ '<think>' }}")
BRACKETS = template("{{ '[THINK]' }}")
WORD_AFTER = template("{{ '<|channel>thought\n' }}")
CHANNELS = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '<|message|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{# thoughts come in <|channel|>analysis<|message|> #}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
TAGS = ("<think>", "</think>")
CHANNEL_TOKENS = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>")


def tokenizer(tiny: Path, chat_template: str, special: tuple[str, ...] = (), added: tuple[str, ...] = ()) -> Any:
    """The tiny model's tokenizer, with more tokens."""
    made = AutoTokenizer.from_pretrained(tiny)
    made.add_tokens(list(special), special_tokens=True)
    made.add_tokens(list(added))
    made.chat_template = chat_template
    return made


def save_model(tiny: Path, folder: Path, made: Any, *, likely: tuple[str, ...] = ()) -> Path:
    """A model with this tokenizer. The tokens `likely` are drawn as often as the tiny model's favourite."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny)
    model.resize_token_embeddings(len(made))
    prompt = made("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        run: Any = model
        favourite = int(run(input_ids=prompt).logits[0, -1].argmax())
        weight: Any = model.get_input_embeddings().weight
        for token in likely:
            weight[made.convert_tokens_to_ids(token)] = weight[favourite] * 1.02
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


STOP = 0
OPENS, CLOSES = 0x1000, 0x1001
"""Tokens that are marks, where all others are characters."""


def decode(tokens: Sequence[int]) -> str:
    return "".join(chr(token) for token in tokens if token not in (OPENS, CLOSES, STOP))


def rule_for(state: ThoughtState, budget: int | None = None, *, own: bool = True) -> ThoughtRule:
    if own:
        return ThoughtRule(
            Mark("<think>", (OPENS,), True), Mark("</think>", (CLOSES,), True), (10, CLOSES, 10), state, budget
        )
    opening, closing = (Mark(text, tuple(map(ord, text)), False) for text in TAGS)
    return ThoughtRule(opening, closing, tuple(map(ord, "\n</think>\n")), state, budget)


def ids_of(text: str, *, own: bool = True) -> list[int]:
    if own:
        return [{"[": OPENS, "]": CLOSES, "$": STOP}.get(char, ord(char)) for char in text]
    return [STOP if char == "$" else ord(char) for char in text.replace("[", "<think>").replace("]", "</think>")]
