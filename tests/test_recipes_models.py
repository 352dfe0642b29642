"""Recipes for families of models, each with a made-up tokenizer whose chats are written in the family's form."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from chat_forms import FORMS, make_model
from omni_thinker.recipe import load_recipe

Run = Callable[..., tuple[int, str, str]]
_TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
_QUIET = "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
_PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n" + _QUIET + "{% endif %}"
_CHANNELS = (
    "<sot>system<msg>Today: {{ strftime_now('%Y-%m-%d') }}. Effort: {{ reasoning_effort }}<end>"
    "{% for m in messages %}<sot>{{ m.role }}"
    "{{ '<|channel|>final<|message|>' if m.role == 'assistant' else '<msg>' }}{{ m.content }}<end>{% endfor %}"
    "{# thoughts: <|channel|>analysis<|message|> #}{% if add_generation_prompt %}<sot>assistant{% endif %}"
)
TEMPLATES = {
    "qwen3": _TURNS + _PROMPT,
    "llama3": FORMS["headers, and the date in a variable"].template,
    "gemma3": FORMS["another end than eos, both sides trimmed, a model, no system"].template,
    "mistral": FORMS["brackets, by turns alone, a space before the answer"].template,
    "gpt-oss": _CHANNELS,
    "smollm3": "<|im_start|>system\nToday: {{ strftime_now('%d %B %Y') }}<|im_end|>\n" + _TURNS + _PROMPT,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("family") / "model"
    make_model(made)
    return made


@pytest.mark.parametrize("family", TEMPLATES)
def test_recipe_of_a_family_is_checked_with_a_tokenizer_of_its_form(
    run: Run, repo: Path, folder: Path, tmp_path: Path, family: str
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(TEMPLATES[family], "utf-8")
    recipe = repo / "recipes" / "models" / f"{family}.toml"
    keys = {"model.name": folder, "model.chat_template": template}
    settings = [word for key, value in keys.items() for word in ("--set", f'{key}="{value}"')]
    code, out, err = run("study", recipe, "--dry-run", *settings)
    assert code == 0, err
    assert all(task in out for task in ("math", "coding", "qa"))


def test_there_is_a_recipe_for_each_family_and_each_guess_is_marked(repo: Path) -> None:
    recipes = sorted((repo / "recipes" / "models").glob("*.toml"))
    assert [path.stem for path in recipes] == sorted(TEMPLATES)
    for path in recipes:
        load_recipe(path)
        numbers = [line for line in path.read_text("utf-8").splitlines() if re.match(r"\w+ = [\d.]", line)]
        assert len(numbers) > 8
        assert all("# guess" in line for line in numbers), path.name
