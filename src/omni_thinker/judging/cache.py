"""Replies that were paid for once: a SQLite file that several processes may share.

The standard library's sqlite3 in WAL mode: readers never wait, writers take turns."""

import hashlib
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omni_thinker.errors import UserError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY, model TEXT NOT NULL, prompt_version TEXT NOT NULL, reply TEXT NOT NULL,
    input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, created REAL NOT NULL
) WITHOUT ROWID
"""
_COLUMNS = ("key", "model", "prompt_version", "reply", "input_tokens", "output_tokens", "created")
_BUSY_S = 30.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model answered, and what it cost in tokens."""

    text: str
    input_tokens: int
    output_tokens: int


class JudgeCache:
    """Content-addressed: the key covers the endpoint's model, the prompt's version, every text and the sampling."""

    def __init__(self, path: Path) -> None:
        """Raises UserError where `path` can't be opened or is no cache."""
        self.path = path
        self.hits = self.misses = 0
        self._warned = False
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
            self._check(path)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(_SCHEMA)
            self._db.execute("SELECT key, reply FROM replies LIMIT 1")
        except (sqlite3.Error, OSError) as exc:
            raise UserError(f"can't be used as the judge's cache: {exc}", file=path, key="judge.cache") from None

    def _check(self, path: Path) -> None:
        """Refuses another program's database before anything is written to it."""
        tables = {row[0] for row in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        columns = [row[1] for row in self._db.execute("PRAGMA table_info(replies)")]
        if (tables and "replies" not in tables) or (columns and columns != list(_COLUMNS)):
            raise UserError("is the database of another program", file=path, key="judge.cache")

    @staticmethod
    def key(**parts: Any) -> str:
        """A key of whatever decides a reply."""
        return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()

    def get(self, key: str) -> Reply | None:
        """The reply, or None. Counted as a hit or a miss."""
        with self._lock:
            try:
                row = self._db.execute(
                    "SELECT reply, input_tokens, output_tokens FROM replies WHERE key = ?", (key,)
                ).fetchone()
            except sqlite3.Error as exc:
                self._lost(exc)
                row = None
            self.hits += row is not None
            self.misses += row is None
        return None if row is None else Reply(*row)

    def drop(self, key: str) -> None:
        """Forget a reply that turned out to be of no use; its hit was a miss."""
        with self._lock:
            self.hits, self.misses = self.hits - 1, self.misses + 1
            try:
                self._db.execute("DELETE FROM replies WHERE key = ?", (key,))
            except sqlite3.Error as exc:
                self._lost(exc)

    def put(self, key: str, reply: Reply, *, model: str, prompt_version: str) -> None:
        """Keep a reply; on the disk when this returns. The first one of a key stays. Where the disk is full or the file
        is locked for long, what was paid for is used all the same, and may have to be paid for again."""
        values = (key, model, prompt_version, reply.text, reply.input_tokens, reply.output_tokens, time.time())
        with self._lock:
            try:
                self._db.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?)", values)
            except sqlite3.Error as exc:
                self._lost(exc)

    def _lost(self, exc: sqlite3.Error) -> None:
        if not self._warned:
            self._warned = True
            _log.warning("the judge's cache %s fails (%s); replies are not cached", self.path, exc)

    def stats(self) -> dict[str, Any]:
        """Counts by model, and the size of the file."""
        with self._lock:
            rows = self._db.execute(
                "SELECT model, COUNT(*), SUM(input_tokens), SUM(output_tokens) FROM replies GROUP BY model"
            ).fetchall()
        models = {m: {"replies": n, "input_tokens": i, "output_tokens": o} for m, n, i, o in rows}
        return {"path": str(self.path), "bytes": self.path.stat().st_size, "models": models}

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """Everything, oldest first."""
        with self._lock:
            rows = self._db.execute(
                f"SELECT {', '.join(_COLUMNS)} FROM replies ORDER BY created"  # noqa: S608 - our own names
            ).fetchall()
        return (dict(zip(_COLUMNS, row, strict=True)) for row in rows)

    def clear(self, model: str | None = None) -> int:
        """Forget all replies, or those of one model; how many."""
        with self._lock:
            done = self._db.execute("DELETE FROM replies WHERE ? IS NULL OR model = ?", (model, model)).rowcount
            self._db.execute("VACUUM")
        return done

    def close(self) -> None:
        with self._lock:
            self._db.close()
