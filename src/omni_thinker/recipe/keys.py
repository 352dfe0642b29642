"""Every key of a recipe: what it takes, its default and its meaning, for people and for editors. Imports no torch."""

import ast
import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from omni_thinker.recipe.schedulers import KINDS, SchedulerSpec
from omni_thinker.recipe.types import MAX_INT, Table
from omni_thinker.recipe.whole import Recipe

_WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text"}


@dataclass(frozen=True, slots=True)
class Key:
    """One key. `path` has NAME where a name of one's own stands."""

    path: str
    takes: str
    default: str
    meaning: str


def all_keys(kind: type[Table] = Recipe, prefix: str = "") -> Iterator[Key]:
    """The keys of a table and of the tables within it, in their order. A scheduler's own keys follow its kind."""
    meanings = docstrings(kind)
    for name, field in kind.model_fields.items():
        path = f"{prefix}{name}"
        yield Key(path, taken(field.annotation, list(field.metadata)), default(field), meanings.get(name, ""))
        for table, named in _tables(field.annotation):
            yield from all_keys(table, f"{path}.NAME." if named else f"{path}.")
            if table is SchedulerSpec:
                yield from _of_schedulers(f"{path}.NAME.")


def classes() -> dict[str, type[Table]]:
    """Every class that a recipe is made of, and those of the schedulers."""
    known: dict[str, type[Table]] = {}
    waiting: list[Any] = [Recipe, *(KINDS.find(name, "kind") for name in KINDS.names)]
    while waiting:
        kind = waiting.pop(0)
        if is_table(kind) and kind.__name__ not in known:
            known[kind.__name__] = kind
        waiting += [f.annotation for f in kind.model_fields.values()] if is_table(kind) else get_args(kind)
    return known


def schema() -> dict[str, Any]:
    """The JSON schema of a recipe, with what its keys mean, for editors that check TOML."""
    whole = Recipe.model_json_schema()
    tables = whole["$defs"]
    kinds = []
    for name in KINDS.names:
        own: type[Table] = KINDS.find(name, "kind")
        table = own.model_json_schema()
        tables.update(table.pop("$defs", {}))
        table["properties"]["kind"] = {"const": name}
        table["required"] = sorted({*table.get("required", []), "kind"})
        tables[own.__name__] = table
        kinds.append({"$ref": f"#/$defs/{own.__name__}"})
    tables["SchedulerSpec"] = {"anyOf": kinds}
    for name, kind in classes().items():
        properties = (whole if kind is Recipe else tables.get(name, {})).get("properties", {})
        for key, meaning in docstrings(kind).items():
            if key in properties:
                properties[key]["description"] = meaning
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole, "title": "A recipe of Omni-Thinker"}


def docstrings(kind: type[BaseModel]) -> dict[str, str]:
    """What stands below each key of a class, as one line."""
    [node] = ast.parse(inspect.getsource(kind)).body
    assert isinstance(node, ast.ClassDef)
    found = {}
    for key, below in zip(node.body, node.body[1:], strict=False):
        if isinstance(key, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[ast.unparse(key.target)] = " ".join(str(below.value.value).split())
    return found


def taken(kind: Any, bounds: list[Any]) -> str:
    """What a key takes, in words."""
    origin, parts = get_origin(kind), get_args(kind)
    bounds = [bound for given in bounds for bound in (given.metadata if isinstance(given, FieldInfo) else [given])]
    if origin is Annotated:
        return taken(parts[0], [*bounds, *parts[1:]])
    if origin in (Union, UnionType):
        return " or ".join(taken(part, bounds) for part in parts if part is not NoneType)
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin is tuple:
        return (
            f"list of {len(parts)}: {taken(parts[0], [])}" if Ellipsis not in parts else f"list: {taken(parts[0], [])}"
        )
    if origin is dict:
        return "table" if is_table(parts[1]) or (inner := taken(parts[1], [])) == "table" else f"table: {inner}"
    return "table" if is_table(kind) else " ".join(filter(None, (_WORDS.get(kind, "anything"), _span(bounds))))


def default(field: FieldInfo) -> str:
    """A key's default as the recipe would set it."""
    value = None if field.is_required() else field.get_default(call_default_factory=True)
    if value is None:
        return "required" if field.is_required() else "none"
    return "" if isinstance(value, Table) else f"`{json.dumps(value).replace('{}', '{ }')}`"


def is_table(kind: Any) -> bool:
    """Whether it is a class of the recipe."""
    return isinstance(kind, type) and issubclass(kind, Table)


def _of_schedulers(prefix: str) -> Iterator[Key]:
    for name in KINDS.names:
        own: type[Table] = KINDS.find(name, "kind")
        for key in all_keys(own, prefix):
            if key.path.removeprefix(prefix) not in SchedulerSpec.model_fields:
                yield Key(key.path, key.takes, key.default, f'(kind = "{name}") {key.meaning}')


def _tables(kind: Any) -> Iterator[tuple[type[Table], bool]]:
    """Tables that a key takes, and whether they have names."""
    origin, parts = get_origin(kind), get_args(kind)
    if is_table(kind):
        yield kind, False
    elif origin is dict:
        yield from ((table, True) for table, _ in _tables(parts[1]))
    elif origin is Annotated or origin in (Union, UnionType):
        for part in parts:
            yield from _tables(part)


def _span(bounds: list[Any]) -> str:
    """The range of a number, by the narrowest of its bounds."""
    values = {key: [v for b in bounds if (v := getattr(b, key, None)) is not None] for key in ("gt", "ge", "lt", "le")}
    low = max(values["gt"] + values["ge"], default=None)
    high = min([*values["lt"], *(value for value in values["le"] if value != MAX_INT)], default=None)
    begin = "" if low is None else f"{'above' if low in values['gt'] else 'from'} {low:g}"
    if high is None or (low not in values["gt"] and high not in values["lt"]):
        return begin if high is None else f"{begin} to {high:g}"
    return f"{begin}, {'below' if high in values['lt'] else 'at most'} {high:g}"
