"""A training service that answers nonsense: one clear line, before anything is trained on it."""

from __future__ import annotations

import gzip
import io
import json
import socket
import tarfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from omni_thinker.errors import UserError
from omni_thinker.policy.tinker.adapter import fetch_adapter
from omni_thinker.policy.tinker.answers import drawn, scored
from omni_thinker.policy.tinker.losses import Row
from omni_thinker.policy.tinker.service import Service, _kind_at
from omni_thinker.recipe.engines.tinker import TinkerSpec

NAN, INF = float("nan"), float("inf")
KEY = "tml-of-nobody-else"


def _reply(*samples: tuple[list[int], list[float] | None]) -> Any:
    return SimpleNamespace(
        sequences=[SimpleNamespace(tokens=tokens, logprobs=logprobs) for tokens, logprobs in samples]
    )


def test_samples_come_back_as_they_were_drawn() -> None:
    assert drawn(_reply(([3, 4], [-1.0, 0.0]), ([], None)), 2) == [([3, 4], [-1.0, 0.0]), ([], [])]


@pytest.mark.parametrize(
    "samples",
    [
        [], [([1], [-1.0])] * 3, [([1], None)] * 2, [([1], [])] * 2, [([1], [NAN])] * 2, [([1], [-INF])] * 2,
        [([1], [0.5])] * 2, [([-1], [-1.0])] * 2, [([1, 2], [-1.0])] * 2,
    ],
)  # fmt: skip
def test_samples_that_make_no_sense_are_one_line(samples: Any) -> None:
    with pytest.raises(UserError, match=r"engine\.tinker\.url: the service"):
        drawn(_reply(*samples), 2)


def _output(*rows: list[float] | None) -> Any:
    parts = [{} if row is None else {"logprobs": SimpleNamespace(data=row)} for row in rows]
    return SimpleNamespace(loss_fn_outputs=parts)


def test_logprobs_that_are_missing_or_no_numbers_are_one_line() -> None:
    made = [Row((1, 2), (2, 3), {}, 1), Row((1,), (2,), {}, 0)]
    assert scored(_output([-1.0, -2.0], [-3.0]), made) == [[-1.0, -2.0], [-3.0]]
    wrong = (_output(), _output([-1.0, -2.0]), _output([-1.0], [-3.0]), _output([-1.0, -2.0], None))
    for output in (*wrong, _output([-1.0, NAN], [-3.0]), _output([-1.0, -2.0], [INF])):
        with pytest.raises(UserError, match=r"engine\.tinker\.url: the service"):
            scored(output, made)


def _archive(weights: bytes, settings: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, held in (("adapter_model.safetensors", weights), ("adapter_config.json", settings)):
            member = tarfile.TarInfo(name)
            member.size = len(held)
            archive.addfile(member, io.BytesIO(held))
    return packed.getvalue()


@pytest.mark.parametrize(
    "archive",
    [
        b"", b"no archive", _archive(b"no tensors", b"{}"), _archive(b"\xff" * 64, b"{}"), _archive(b"", b"{}"),
        _archive(b"\x02" + b"\0" * 7 + b"{}", b"[1]"), _archive(b"\x02" + b"\0" * 7 + b"{}", b"[" * 100_000),
        gzip.compress(_archive(b"", b"{}"))[:-20],
    ],
)  # fmt: skip
def test_archive_that_holds_no_adapter_leaves_nothing(
    archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO(archive))
    with pytest.raises(UserError, match="holds no adapter"):
        fetch_adapter("https://service/archive", tmp_path / "out", "base")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("said", [b"no http at all\r\n", b"", b"HTTP/1.0 200 OK\r\n\r\n" + b"[" * 100_000])
def test_first_page_that_makes_no_sense_is_no_skyrl(said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        assert _kind_at(f"http://127.0.0.1:{listener.getsockname()[1]}") == "hosted"
        thread.join()


def test_key_that_a_service_repeats_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    service: Any = SimpleNamespace(spec=TinkerSpec())
    said = json.dumps({"detail": f"you sent {KEY}"}).replace('"', "'")
    for text in (f"you sent {KEY}", said):
        assert KEY not in str(Service.lost(service, "sample", RuntimeError(text)))
