"""Chat templates of our own, one for each thing that published ones do."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omni_thinker.models.tiny import make_tiny

TOKENS = (
    "<bos>", "<sot>", "<eot>", "<hdr>", "</hdr>", "[ASK]", "[/ASK]", "<chan>", "<msg>", "<end>", "<ret>", "<usr>",
    "<bot>",
)  # fmt: skip
"""Special tokens that the tiny model gets besides its own."""
THINK = ("<think>", "</think>")
"""Tokens that aren't special."""
EOS = "<|im_end|>"
"""The tokenizer's end of a text; `<bos>` is its beginning."""

LOOP = "{% for m in messages %}"
END = "{% endfor %}"
CHATML = LOOP + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n" + END
ASSISTANT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@dataclass(frozen=True)
class Form:
    """A template and what is to be found: how an answer `x` goes on after the prompt, what ends it, and the facts.

    ends: of generation_config."""

    template: str
    target: str
    end: tuple[str, ...] = (EOS,)
    ends: tuple[str, ...] = ()
    system: str = "yes"
    prefix: bool = True
    date: bool = False
    bos: str = "tokenizer"
    stop_text: str | None = None
    in_parts: bool = False
    options: dict[str, Any] = field(default_factory=dict)


FORMS: dict[str, Form] = {
    "the plain form": Form(CHATML + ASSISTANT, "x<|im_end|>"),
    "another end than eos, both sides trimmed, a model, no system": Form(
        "{{ bos_token }}" + LOOP
        + "{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
        + "<sot>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<eot>\n" + END
        + "{% if add_generation_prompt %}<sot>model\n{% endif %}",
        "x<eot>", ("<eot>",), system="none", bos="template",
    ),
    "headers, and the date in a variable": Form(
        "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "{{ bos_token }}<hdr>system</hdr>\n\nToday: {{ date_string }}\n"
        "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% set messages = messages[1:] %}{% endif %}"
        "<eot>"
        + LOOP + "<hdr>{{ m.role }}</hdr>\n\n{{ m.content | trim }}<eot>" + END
        + "{% if add_generation_prompt %}<hdr>assistant</hdr>\n\n{% endif %}",
        "x<eot>", ("<eot>",), date=True, bos="template",
    ),
    "brackets, by turns alone, a space before the answer": Form(
        "{{ bos_token }}" + LOOP
        + "{% if (m.role == 'user') != (loop.index0 is even) %}{{ raise_exception('by turns') }}{% endif %}"
        + "{% if m.role == 'user' %}[ASK] {{ m.content }} [/ASK]{% else %} {{ m.content }}{{ eos_token }}{% endif %}"
        + END,
        " x<|im_end|>", system="none", bos="template",
    ),
    "channels, and another end for the last turn": Form(
        LOOP + "<sot>{{ m.role }}{% if m.role == 'assistant' %}<chan>final{% endif %}<msg>{{ m.content }}"
        + "{{ '<ret>' if loop.last and m.role == 'assistant' else '<end>' }}" + END
        + "{% if add_generation_prompt %}<sot>assistant{% endif %}",
        "<chan>final<msg>x<ret>", ("<ret>",), ends=("<ret>",),
    ),
    "nothing ends a turn": Form(
        LOOP + "{{ m.role | capitalize }}: {{ m.content }}\n" + END
        + "{% if add_generation_prompt %}Assistant: {% endif %}",
        "x<|im_end|>",
    ),
    "a text ends a turn": Form(
        LOOP + "### {{ m.role }}\n{{ m.content }}\n[OVER]\n" + END
        + "{% if add_generation_prompt %}### assistant\n{% endif %}",
        "x\n[OVER]", ("\n[OVER]",), stop_text="[OVER]",
    ),
    "two tokens end a turn": Form(
        LOOP + "<sot>{{ m.role }}\n{{ m.content }}<end><ret>" + END
        + "{% if add_generation_prompt %}<sot>assistant\n{% endif %}",
        "x<end><ret>", ("<end>", "<ret>"), ends=("<ret>",),
    ),
    "the next turn's first token ends a turn": Form(
        LOOP + "{{ '<bot>' if m.role == 'assistant' else '<usr>' }}\n{{ m.content }}" + END
        + "{% if add_generation_prompt %}<bot>\n{% endif %}",
        "x<usr>", ("<usr>",), ends=("<usr>",),
    ),
    "the whole is closed besides the turn": Form(
        LOOP + "<sot>{{ m.role }}\n{{ m.content }}<end>\n" + END
        + "{% if add_generation_prompt %}<sot>assistant\n{% else %}{{ eos_token }}{% endif %}",
        "x<end>", ("<end>",),
    ),
    "opens a thought": Form(
        CHATML + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
        "x<|im_end|>", prefix=False,
    ),
    "closes an empty thought": Form(
        CHATML + ASSISTANT
        + "{% if add_generation_prompt and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}",
        "x<|im_end|>", prefix=False, options={"enable_thinking": False},
    ),
    "writes an empty thought before the last answer": Form(
        LOOP + "<|im_start|>{{ m.role }}\n"
        + "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
        + "{{ m.content }}<|im_end|>\n" + END + ASSISTANT,
        "<think>\n\n</think>\n\nx<|im_end|>",
    ),
    "words of its own, and a last line that is lost": Form(
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Bo.<|im_end|>\n{% endif %}"
        + LOOP + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{{ '' if loop.last else '\n' }}" + END
        + "{% if add_generation_prompt %}{{ '\n' }}<|im_start|>assistant\n{% endif %}",
        "x<|im_end|>", system="own",
    ),
    "the date, asked for in a macro": Form(
        "{% macro head() %}{% if strftime_now is defined %}{{ strftime_now('%Y-%m-%d, a %A') }}\n{% endif %}"
        "{% endmacro %}"
        "{{ head() }}" + CHATML + ASSISTANT,
        "x<|im_end|>", date=True,
    ),
    "parts": Form(
        LOOP + "<sot>{{ m.role }}\n{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}"
        + "{% endfor %}<eot>\n" + END + "{% if add_generation_prompt %}<sot>assistant\n{% endif %}",
        "x<eot>", ("<eot>",), in_parts=True,
    ),
    "arguments": Form(
        "You are {{ persona.name }}.\n" + CHATML + ASSISTANT, "x<|im_end|>", options={"persona": {"name": "Bo"}}
    ),
}  # fmt: skip


def make_model(folder: Path) -> None:
    """The tiny model with the tokens of all forms. Its tokenizer puts <bos> before plain texts."""
    from tokenizers import AddedToken
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoModelForCausalLM, AutoTokenizer

    make_tiny(folder)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in THINK])
    tokenizer.bos_token = "<bos>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.convert_tokens_to_ids("<bos>"))]
    )
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def with_ends(folder: Path, ends: tuple[str, ...]) -> None:
    """Let generation_config.json name these tokens as ends of a text, besides the tokenizer's."""
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids([EOS, *ends])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}), "utf-8")
