"""What people hand over by mistake or on purpose, by name: recipes, rows, matrices."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import zlib
from typing import Any

import torch

DEEP = "[" * 100_000
TASK = '[tasks.sums]\nsource = "jsonl"\nfiles = ["rows.jsonl"]\n'


class _Bomb:
    """Unpickled, it leaves a file behind."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("unpickled", "w"))


PICKLE = pickle.dumps(_Bomb())


def torch_pickle() -> bytes:
    stream = io.BytesIO()
    torch.save({"weight": _Bomb()}, stream)
    return stream.getvalue()


_RECIPES: dict[str, str | bytes] = {
    "nothing": "",
    "no tasks": "[tasks]\n",
    "only white space": " \n\t\n",
    "latin-1": '[tasks.caf\u00e9]\nsource = "builtin:math"\n'.encode("latin-1"),
    "utf-16": TASK.encode("utf-16"),
    "utf-32": TASK.encode("utf-32"),
    "NUL": TASK + "\x00",
    "gzip": gzip.compress(TASK.encode()),
    "pickle": PICKLE,
    "json": json.dumps({"tasks": {}}),
    "yaml": "tasks:\n  sums:\n    source: jsonl\n",
    "cut in a string": TASK[:-6],
    "cut in a table": "[tasks.sums",
    "twice the key": TASK + 'source = "jsonl"\n',
    "twice the table": TASK + TASK,
    "deep list": f"name = {DEEP}",
    "deep table": "name = " + "{a=" * 20_000,
    "deep key": "[" + "a." * 20_000 + "b]\nc = 1",
    "huge number": f"{TASK}train = 1{'0' * 5000}",
    "huge hexadecimal": f"{TASK}train = 0x{'f' * 50_000}",
    "huge octal": f"{TASK}seed = 0o{'7' * 50_000}",
    "large number": f"{TASK}train = 99999999999999999999999999",
    "huge float": f"{TASK}difficulty = 1e999",
    "a date": f"{TASK}train = 1979-05-27T07:32:00Z",
    "a list for a name": f"name = ['a']\n{TASK}",
    "a table for a name": f"name = {{a = 1}}\n{TASK}",
    "a number for tasks": "tasks = 3\n",
    "a list for tasks": "tasks = [1, 2]\n",
    "a text for a task": 'tasks.sums = "jsonl"\n',
    "tables for tasks": '[[tasks]]\nsource = "jsonl"\n',
    "unknown table": f"{TASK}[modle]\nname = 'tiny'\n",
    "unknown key": f"{TASK}[rl]\nlearning_rate = 1\n",
    "name that climbs": f'name = "../../up"\n{TASK}',
    "absolute name": f'name = "/etc/passwd"\n{TASK}',
    "name with NUL": f'name = "a\\u0000b"\n{TASK}',
    "endless name": f'name = "{"x" * 100_000}"\n{TASK}',
    "task that climbs": TASK.replace("sums", '"../up"'),
    "absolute task": TASK.replace("sums", '"/tmp/x"'),
    "task of nothing": TASK.replace("sums", '""'),
    "endless task": TASK.replace("sums", "s" * 10_000),
    "task with a line": TASK.replace("sums", '"a\\nb"'),
    "no source": "[tasks.sums]\ntrain = 3\n",
    "unknown source": TASK.replace("jsonl", "pickle"),
    "source that climbs": TASK.replace('"jsonl"', '"builtin:../../x"'),
    "source to import": TASK.replace('"jsonl"', '"python:os:system"'),
    "source to import from nowhere": TASK.replace('"jsonl"', '"python:nowhere.at.all:x"'),
    "no files": '[tasks.sums]\nsource = "jsonl"\nfiles = []\n',
    "absent file": TASK.replace("rows.jsonl", "absent.jsonl"),
    "folder for a file": TASK.replace("rows.jsonl", "."),
    "device for a file": TASK.replace("rows.jsonl", "/dev/null"),
    "file with NUL": TASK.replace("rows.jsonl", "a\\u0000b"),
    "endless file": TASK.replace("rows.jsonl", "x" * 10_000),
    "negative train": f"{TASK}train = -1\n",
    "train of half": f"{TASK}train = 0.5\n",
    "train of truth": f"{TASK}train = true\n",
    "template without prompt": f'{TASK}template = "{{question}}"\n',
    "reward of nothing": f"{TASK}reward = {{}}\n",
    "unknown reward": f"{TASK}reward = {{ sum = {{ maths = 1.0 }} }}\n",
    "reward of infinity": f"{TASK}reward = {{ sum = {{ math = inf }} }}\n",
    "reward of nan": f"{TASK}reward = {{ sum = {{ math = nan }} }}\n",
    "reward text": f'{TASK}reward = "math"\n',
    "lr nan": f"{TASK}[rl]\nlr = nan\n",
    "lr negative": f"{TASK}[rl]\nlr = -1e-3\n",
    "lr text": f'{TASK}[rl]\nlr = "1e-3"\n',
    "group of one": f"{TASK}[rl]\ngroup_size = 1\n",
    "unknown loss": f'{TASK}[rl]\nloss = "ppoo"\n',
    "seeds none": f"{TASK}[study]\nseeds = []\n",
    "seeds twice": f"{TASK}[study]\nseeds = [1, 1]\n",
    "seed text": f'{TASK}[study]\nseeds = ["a"]\n',
    "seed negative": f"{TASK}[study]\nseeds = [-1]\n",
    "arm unknown": f'{TASK}[study]\narms = ["jiont"]\n',
    "arms none": f"{TASK}[study]\narms = []\n",
    "order unknown": f'{TASK}[study]\norder = ["nope"]\n',
    "steps none": f"{TASK}[study]\nsteps = 0\n",
    "confidence of two": f"{TASK}[study]\nconfidence = 2.0\n",
    "target upside down": f"{TASK}[warmup]\ntarget = [0.6, 0.2]\n",
    "lora rank": f"{TASK}[model.lora]\nrank = 0\n",
    "device unknown": f'{TASK}[model]\ndevice = "tpu"\n',
    "judge unknown": f'{TASK}[judge]\nkind = "oracle"\n',
    "judge without address": f'{TASK}[judge]\nkind = "endpoint"\n',
    "secret in a recipe": f'{TASK}[judge.endpoint]\nbase_url = "https://h/v1"\nmodel = "m"\napi_key = "sk"\n',
}
RECIPES = {name: text.encode() if isinstance(text, str) else text for name, text in _RECIPES.items()}

GOOD_ROWS: list[dict[str, object]] = [{"prompt": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(60)]
GOOD = json.dumps(GOOD_ROWS[0]).encode() + b"\n"
ROWS: dict[str, bytes] = {
    "nothing": b"",
    "white space": b" \n\n\t\n",
    "no json": b"{prompt: 1}\n",
    "cut": b'{"prompt": "p"\n',
    "a list": b"[1]\n",
    "a number": b"3\n",
    "null": b"null\n",
    "a text": b'"prompt"\n',
    "two on a line": b'{"prompt": "p"} {"prompt": "q"}\n',
    "nan": b'{"prompt": "p", "answer": NaN}\n',
    "minus infinity": b'{"prompt": "p", "answer": -Infinity}\n',
    "too large a float": b'{"prompt": "p", "answer": 1e999}\n',
    "huge number": b'{"prompt": "p", "answer": ' + b"9" * 5000 + b"}\n",
    "deep": DEEP.encode() + b"\n",
    "deep in a field": b'{"prompt": "p", "meta": ' + b"[" * 50_000 + b"]" * 50_000 + b"}\n",
    "latin-1": '{"prompt": "caf\u00e9", "answer": "x"}\n'.encode("latin-1"),
    "utf-16": '{"prompt": "p", "answer": "x"}\n'.encode("utf-16"),
    "utf-32": '{"prompt": "p", "answer": "x"}\n'.encode("utf-32"),
    "utf-7": b"+AHsAIg-prompt+ACI-: 1}\n",
    "overlong utf-8": b'{"prompt": "\xc0\xaf"}\n',
    "half a surrogate": b'{"prompt": "\\ud800", "answer": "x"}\n',
    "raw surrogate": b'{"prompt": "\xed\xa0\x80"}\n',
    "NUL": b'{"prompt": "a\x00b"}\n',
    "pickle": PICKLE,
    "torch pickle": torch_pickle(),
    "png": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "zip": b"PK\x03\x04" + bytes(100),
    "long line": b'{"prompt": "' + b"x" * (1 << 20) + b'"}\n',
    "no prompt": b'{"question": "p", "answer": "x"}\n',
    "null prompt": b'{"prompt": null, "answer": "x"}\n',
    "empty prompt": b'{"prompt": " ", "answer": "x"}\n',
    "prompt list": b'{"prompt": ["p"], "answer": "x"}\n',
    "prompt table": b'{"prompt": {"text": "p"}, "answer": "x"}\n',
    "prompt truth": b'{"prompt": true, "answer": "x"}\n',
    "empty answer": b'{"prompt": "p", "answer": ""}\n',
    "answer list": b'{"prompt": "p", "answer": ["x"]}\n',
    "answer table": b'{"prompt": "p", "answer": {"x": 1}}\n',
    "choices text": b'{"prompt": "p", "answer": "x", "choices": "x, y"}\n',
    "choices one": b'{"prompt": "p", "answer": "x", "choices": ["x"]}\n',
    "choices of lists": b'{"prompt": "p", "answer": "x", "choices": [["x"], ["y"]]}\n',
    "choices without answer": b'{"prompt": "p", "answer": "z", "choices": ["x", "y"]}\n',
    "letter too far": b'{"prompt": "p", "answer": "Q", "choices": ["x", "y"]}\n',
    "tests none": b'{"prompt": "p", "tests": []}\n',
    "tests tables": b'{"prompt": "p", "tests": [{}]}\n',
    "tests number": b'{"prompt": "p", "tests": 3}\n',
    "constraints text": b'{"prompt": "p", "constraints": "short"}\n',
    "same id": b'{"prompt": "p", "answer": "x", "id": 7}\n{"prompt": "r", "answer": "x", "id": 7}\n',
    "id list": b'{"prompt": "p", "answer": "x", "id": [1]}\n',
    "id of nan": b'{"prompt": "p", "answer": "x", "id": 1e999}\n',
    "reference list of tables": b'{"prompt": "p", "reference": [{}]}\n',
}
ZIPPED: dict[str, bytes] = {
    "plain text": GOOD,
    "nothing": b"",
    "cut": gzip.compress(GOOD * 99)[:-12],
    "cut in the head": gzip.compress(GOOD)[:7],
    "wrong sum": gzip.compress(GOOD)[:-8] + bytes(8),
    "flipped": gzip.compress(GOOD * 99)[:40] + b"\xff\xff\xff" + gzip.compress(GOOD * 99)[43:],
    "zlib": zlib.compress(GOOD),
    "zip": b"PK\x03\x04" + bytes(100),
    "pickle": gzip.compress(PICKLE),
    "twice": gzip.compress(gzip.compress(GOOD)),
    "bomb of one line": gzip.compress(b" " * (64 << 20)),
    "bomb of a number": gzip.compress(b'{"prompt": "p", "answer": ' + b"9" * (32 << 20) + b"}\n"),
    "bomb behind a row": gzip.compress(GOOD) + gzip.compress(b"\x00" * (64 << 20)),
    "junk behind a row": gzip.compress(GOOD) + b"junk",
}


CELL = {"mean": 0.5, "n": 10, "stderr": 0.1}


def matrix(**changes: Any) -> bytes:
    table = {
        "version": 1,
        "tasks": ["a", "b"],
        "start": {"a": CELL, "b": CELL},
        "after": {"a": {"a": CELL, "b": CELL}, "b": {"a": CELL, "b": CELL}},
    }
    return json.dumps(table | changes).encode()


MATRICES: dict[str, bytes] = {
    "nothing": b"",
    "a list": b"[]",
    "cut": matrix()[:-3],
    "deep": DEEP.encode(),
    "deep table": b'{"a":' * 100_000,
    "utf-16": matrix().decode().encode("utf-16"),
    "latin-1": b'{"tasks": ["\xe9"]}',
    "gzip": gzip.compress(matrix()),
    "pickle": PICKLE,
    "huge number": matrix().replace(b'"n": 10', b'"n": ' + b"9" * 5000),
    "large number": matrix(start={"a": CELL | {"n": 10**300}, "b": CELL}),
    "mean nan": matrix(start={"a": CELL | {"mean": float("nan")}, "b": CELL}),
    "mean of two": matrix(start={"a": CELL | {"mean": 2}, "b": CELL}),
    "mean text": matrix(start={"a": CELL | {"mean": "0.5"}, "b": CELL}),
    "mean list": matrix(start={"a": CELL | {"mean": [0.5]}, "b": CELL}),
    "unknown in a cell": matrix(start={"a": CELL | {"std": 0.1}, "b": CELL}),
    "no start": matrix(start=None),
    "start list": matrix(start=[CELL, CELL]),
    "start of another": matrix(start={"a": CELL, "z": CELL}),
    "no after": matrix(after={}),
    "after list": matrix(after=[[0.5]]),
    "after of another": matrix(after={"z": {}}),
    "tasks none": matrix(tasks=[]),
    "tasks text": matrix(tasks="ab"),
    "tasks twice": matrix(tasks=["a", "a"]),
    "tasks numbers": matrix(tasks=[1, 2]),
    "tasks that climb": matrix(tasks=["../a", "b"]),
    "task with a comma": matrix(tasks=["a,b", "b"]),
    "half a surrogate": matrix(tasks=["a", "\ud800"]),
    "version of later": matrix(version=99),
    "version text": matrix(version="one"),
    "entropy list": matrix(entropy=[1]),
    "evaluations list": matrix(evaluations=[]),
    "evaluation of nothing": matrix(evaluations={"x": None}),
}
