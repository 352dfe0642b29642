"""Links of the pages lead somewhere, and what the pages print as code is what the package takes. Nothing is run."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from omni_thinker.cli.app import app
from omni_thinker.recipe.keys import all_keys
from omni_thinker.recipe.load import parse_recipe
from pages import PAGES, ROOT, Code, all_blocks, anchors, blocks, links, rows, short_code

PUBLISHED = ("README.md", "CHANGELOG.md", "docs", "recipes")
"""What `make site` copies."""


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page: str) -> None:
    wrong = []
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, heading = link.partition("#")
        target = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        path = target.relative_to(ROOT) if target.is_relative_to(ROOT) else Path()
        # A folder has no page of its own on the site.
        published = target.is_file() and str(path).split("/")[0] in PUBLISHED
        if not published or (heading and heading not in anchors(str(path))):
            wrong.append(link)
    assert not wrong


@pytest.mark.parametrize("page", PAGES)
def test_nested_lists_are_indented_by_four(page: str) -> None:
    """The site's Markdown takes less for the outer list."""
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text("utf-8"), flags=re.S)
    assert not re.findall(r"^ {1,3}[-*] .*", text, re.M)


def test_navigation_names_every_page_once() -> None:
    def leaves(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            for inner in entry.values() if isinstance(entry, dict) else entry:
                yield from leaves(inner)

    project = tomllib.loads((ROOT / "zensical.toml").read_text("utf-8"))["project"]
    assert sorted(leaves(project["nav"])) == PAGES


@pytest.mark.parametrize("code", all_blocks("toml"), ids=lambda code: code.place)
def test_toml_is_part_of_a_recipe(code: Code) -> None:
    table = tomllib.loads(code.text)
    tasks = table.setdefault("tasks", {"math": {}})
    for task in tasks.values():
        task.setdefault("source", "builtin:math")
    parse_recipe(table, code.place)


@pytest.mark.parametrize("code", all_blocks("json"), ids=lambda code: code.place)
def test_json_is_json(code: Code) -> None:
    json.loads(code.text)


@pytest.mark.parametrize("code", all_blocks("python"), ids=lambda code: code.place)
def test_python_compiles_and_names_what_the_package_has(code: Code) -> None:
    tree = ast.parse(code.text, code.place)
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "omni_thinker":
            module = importlib.import_module(node.module or "")
            assert not [alias.name for alias in node.names if not hasattr(module, alias.name)]
        if isinstance(node, ast.Import):
            modules |= {a.asname or a.name: a.name for a in node.names if a.name.split(".")[0] == "omni_thinker"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            assert hasattr(importlib.import_module(modules[node.value.id]), node.attr), node.attr


@cache
def command_line() -> Any:
    return get_command(app)


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the words name, and the words after it."""
    command = command_line()
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    return command, words


def lines_of_commands() -> list[tuple[str, str]]:
    """Our commands in blocks of code, whole, with where they stand."""
    found = []
    for page in PAGES:
        for code in blocks(page):
            if code.language in ("", "sh"):
                text = code.text.replace("\\\n", " ")
                found += [
                    (code.place, line) for line in re.findall(r"(?:^ *|&& |/|-m )(omni[-_]thinker .*)", text, re.M)
                ]
    return found


@pytest.mark.parametrize(("place", "line"), lines_of_commands())
def test_command_in_a_block_is_taken_by_the_command_line(place: str, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    command, rest = command_of(words)
    assert not hasattr(command, "commands"), f"{place}: no such command"
    command.make_context(words[0], rest)  # parses, and raises what a user would see


def test_commands_within_sentences_exist() -> None:
    wrong = []
    for page in PAGES:
        for code in short_code(page):
            if code.startswith("omni-thinker "):
                words = code.replace("\\|", "|").split()[1:]
                # `tasks list|show` is a synopsis of two commands.
                for second in words[1].split("|") if len(words) > 1 else [""]:
                    command, rest = command_of([words[0], second])
                    options = {name for param in command.params for name in param.opts} | {"--help"}
                    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", code))
                    unknown = hasattr(command, "commands") and any(rest) and not rest[0].startswith("-")
                    if unknown or named - options:
                        wrong.append((page, code))
    assert not wrong


def test_keys_within_sentences_exist() -> None:
    known = {key.path: key.takes for key in all_keys()}
    tables = {path.split(".")[0] for path in known}
    wrong = []
    for page in PAGES:
        others = {code for row in rows(page) for code in row[0]} if page.startswith("docs/from-") else set()
        for code in short_code(page):
            key = code.partition("=")[0].strip("[] ")
            if (
                re.fullmatch(r"[a-z_]+(\.\w+)+", key)
                and code not in others
                and not key.endswith((".jsonl", ".toml", ".py", ".md"))
                and key.split(".")[0] in tables
                and not _is_key(key.split("."), known)
            ):
                wrong.append((page, code))
    assert not wrong


def _is_key(words: list[str], known: dict[str, str]) -> bool:
    """Names of the user's own stand for NAME. Below a table of anything there may be anything."""
    for named in (words, [words[0], "NAME", *words[2:]], [*words[:2], "NAME", *words[3:]]):
        path = ".".join(named)
        if path in known or any(key.startswith(f"{path}.") for key in known):
            return True
        if any(known.get(".".join(named[:n]), "").startswith("table:") for n in range(1, len(named))):
            return True
    return False


def test_targets_of_make_and_files_within_sentences_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    wrong = []
    for page in PAGES:
        lines = [line for code in blocks(page) if code.language == "sh" for line in code.text.splitlines()]
        for code in [*short_code(page), *lines]:
            if (named := re.match(r"make ([a-z-]+)", code)) and named[1] not in targets:
                wrong.append((page, code))
            if re.fullmatch(r"(recipes|tests|scripts|benchmarks|src)/[\w./-]+", code) and not (ROOT / code).exists():
                wrong.append((page, code))
    assert not wrong


def test_keys_that_a_page_says_are_of_trl_are() -> None:
    """verl and prime-rl can't be installed beside the package; their keys were looked up."""
    from dataclasses import fields
    from inspect import signature

    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    known = {field.name for field in fields(GRPOConfig)} | set(signature(GRPOTrainer.__init__).parameters)
    named = {name for row in rows("docs/from-trl.md") for name in row[0]}
    assert len(named) > 40
    assert not named - known
